"""What region growing adds with each energy of the training's CRF: coverage, precision and losses, against the masks.

    python tests/benchmarks/grown_seeds.py --run /data/voc_log --run /data/voc_linear

Each run has a segmentation network that was trained on seeds, and masks of its training images, which are only read to
measure. Its own segmenter.crf_energy refines its predictions, and the seeds grow as in a training step (Huang et al.,
CVPR 2018, section 3.3). Precision is the share of labelled cells, of background or of classes, whose label is true;
coverage is the share of cells with a label. The first row are the seeds before growing.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project need not be installed

import numpy as np
import torch
from machine import describe

from ficklenet.growing import grow_seeds
from ficklenet.segmentation_losses import boundary_loss, label_probabilities, seed_loss
from ficklenet.segmentation_training import crf_parameters
from ficklenet.training_crf import refine_batch
from ficklenet.transforms import normalize
from jobs.run.directory import open_run
from jobs.steps.networks import load_segmenter
from jobs.training.image_list import image_list
from jobs.training.segmentation_data import SegmentationImages

HEADING = (
    "| run | energy | images | coverage | precision | of classes | of background | seed loss | boundary loss |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="append", required=True, help="may be repeated")
    parser.add_argument("--every", type=int, default=4, help="only every so many-th training image")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(describe("torch"), HEADING, sep="\n", flush=True)
    for uri in given.run:
        measure(uri, given.every)


@torch.inference_mode()
def measure(uri: str, every: int) -> None:
    """Prints a run's two rows: its seeds, and what they grow to."""
    run = open_run(uri)
    manifest, config = run.manifest(), run.config
    images = image_list(manifest, config.data.train_splits, config.data.val_splits, None).read()[::every]
    dataset, segmenter = SegmentationImages(run, images, manifest), load_segmenter(run)
    parameters = crf_parameters(segmenter.spec.geometry, config.segmenter.crf_energy)
    seeds, grown, truths, losses = [], [], [], []
    for entry in images:
        example = dataset.example(entry)
        if example.problem:
            continue
        pixels, seeds_1hw = torch.from_numpy(example.pixels)[None], torch.from_numpy(example.seeds)[None]
        probabilities = label_probabilities(segmenter(normalize(pixels).contiguous(memory_format=torch.channels_last)))
        refined = refine_batch(probabilities, segmenter.spec.geometry.at_cells(pixels), parameters)
        grown_1hw = grow_seeds(seeds_1hw, refined, torch.from_numpy(example.present)[None])
        losses.append([float(seed_loss(probabilities, grown_1hw)), float(boundary_loss(probabilities, refined))])
        seeds.append(example.seeds)
        grown.append(grown_1hw[0].numpy())
        truths.append(example.truth)
    of_seed, of_boundary = np.mean(losses, axis=0)
    facts = f"| {Path(uri).name} | {config.segmenter.crf_energy} | {len(truths)}"
    print(f"{facts} | {quality(seeds, truths, manifest.num_classes)} | | |")
    print(f"{facts} | {quality(grown, truths, manifest.num_classes)} | {of_seed:.3f} | {of_boundary:.3f} |", flush=True)


def quality(labels: Sequence[np.ndarray], truths: Sequence[np.ndarray], num_classes: int) -> str:
    """Coverage, and the precision of all labels, of classes and of background, pooled over images."""
    label, truth = (np.concatenate([each.ravel() for each in maps]) for maps in (labels, truths))
    is_measured = truth <= num_classes
    has_label, is_right, is_class = (label <= num_classes) & is_measured, label == truth, label > 0
    kinds = has_label, has_label & is_class, has_label & ~is_class
    shares = [has_label.sum() / is_measured.sum(), *(is_right[kind].mean() for kind in kinds)]
    return " | ".join(f"{share:.3f}" for share in shares)


if __name__ == "__main__":
    main()
