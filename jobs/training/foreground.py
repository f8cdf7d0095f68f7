"""The share of foreground that a segmentation network predicts on its training images, and the share in its labels.

After too few steps a network predicts background everywhere, and its loss does not show this. The comparison reads no
mask that the training did not read.
"""

import numpy as np
import torch

from cluster.training_context import TrainingContext
from ficklenet.segmenter import Segmenter
from ficklenet.transforms import normalize
from jobs.training.segmentation_data import SegmentationImages

NUM_IMAGES = 32  # at most; they take 40 s of one core for VGG-16 at 321 x 321


@torch.inference_mode()
def foreground_shares(
    context: TrainingContext, segmenter: Segmenter, dataset: SegmentationImages, precision: torch.dtype
) -> dict[str, float]:
    """`predicted_foreground` and `taught_foreground`: shares of the cells of some training images.

    All workers get the same shares.

    Args:
        dataset: the training data; its labels are masks if these may be read, else seeds.
    """
    num_images = min(NUM_IMAGES, len(dataset))
    positions = np.linspace(0, len(dataset) - 1, num_images).astype(int)[context.rank :: context.world_size]
    predicted, taught, cells = 0, 0, 0
    segmenter.eval()
    for position in positions:
        example = dataset.example(dataset.images[position])
        if example.problem:
            continue
        pixels = normalize(torch.from_numpy(example.pixels[None]).to(context.device))
        with torch.autocast(context.device.type, precision, enabled=precision != torch.float32):
            logits = segmenter(pixels.contiguous(memory_format=torch.channels_last))
        teaching = example.seeds if dataset.uses_seeds else example.truth
        predicted += int((logits.argmax(1) > 0).sum())
        taught += int(((teaching > 0) & (teaching <= dataset.num_classes)).sum())
        cells += teaching.size
    segmenter.train()
    sums = np.sum(context.gather((predicted, taught, cells)), axis=0)
    if sums[2] == 0:
        return {}
    return {"predicted_foreground": float(sums[0] / sums[2]), "taught_foreground": float(sums[1] / sums[2])}
