"""From images to label probabilities on the grid, and from these to label maps of any size.

Probabilities of several input sizes and of the mirrored image are averaged on the grid of the size trained with; the
grid enlarged, with corners aligned, is what the CRF refines (Chen et al., ICLR 2015).

Shape legend: B images, L labels (background and classes), h w grid, H W pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ficklenet.backbones import OUTPUT_STRIDE
from ficklenet.segmenter import Segmenter
from ficklenet.transforms import normalize, resize_maps


def input_sizes(input_size: int, scales: Sequence[float]) -> tuple[int, ...]:
    """The nearest sides of the form 8 g + 1 to ``scales`` times the size trained with.

    Raises:
        ValueError: no scale, or one that leaves no cell.
    """
    sizes = tuple(OUTPUT_STRIDE * round((scale * input_size - 1) / OUTPUT_STRIDE) + 1 for scale in scales)
    if not sizes or min(sizes) <= OUTPUT_STRIDE:
        raise ValueError(f"scales: {list(scales)} given; give one or more, such as 0.75, 1, 1.25.")
    return sizes


@torch.inference_mode()
def predict_grid(
    model: Segmenter, inputs: Sequence[Tensor], *, mirror: bool = False, precision: torch.dtype = torch.float32
) -> Tensor:
    """Label probabilities float32 (B, L, h, w) on the model's grid.

    Args:
        model: in evaluation mode.
        inputs: the same whole images at each input size, uint8 RGB (B, 3, size, size), on the model's device.
        mirror: average over the image and its mirror image.
        precision: of the network.
    """
    views = [(images_BCHW, False) for images_BCHW in inputs]
    if mirror:
        views += [(images_BCHW.flip(-1), True) for images_BCHW in inputs]
    total_BLhw = torch.zeros((), device=inputs[0].device)
    for images_BCHW, is_mirrored in views:
        with torch.autocast(images_BCHW.device.type, precision, enabled=precision != torch.float32):
            logits_BLhw = model(normalize(images_BCHW).contiguous(memory_format=torch.channels_last))
        probabilities_BLhw = resize_maps(logits_BLhw.float(), model.spec.grid).softmax(1)
        total_BLhw = total_BLhw + (probabilities_BLhw.flip(-1) if is_mirrored else probabilities_BLhw)
    return total_BLhw / len(views)


def enlarge(probabilities_Lhw: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.float32]:
    """One image's probabilities at another size, float32 (L, H, W)."""
    return resize_maps(torch.from_numpy(probabilities_Lhw.astype(np.float32)), size).numpy()
