"""What the CRF and the growing cost in a training step of the segmentation network, on the device at hand.

    python tests/benchmarks/segmentation_step.py                                  # VGG-16 at 321 x 321, batch 20
    python tests/benchmarks/segmentation_step.py --batch 2 --repeats 3            # on a CPU

Needs torch, torchvision and numpy; the lattice's rows also pydensecrf. A step is prediction, CRF, growing, losses,
gradients and the optimiser's step on drawn scenes. "exact" is the mean field on the device, "lattice" pydensecrf on one
CPU, image after image, the copies to the host and back included. Medians; wall-clock time between two synchronisations
of a GPU, on a CPU the processor's time, which other work on the machine disturbs less.
"""

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project need not be installed

import numpy as np
import torch
from machine import describe

from ficklenet.drawing import DRAWN_CLASS_NAMES, draw_scene
from ficklenet.growing import grow_seeds
from ficklenet.resampling import resize_square
from ficklenet.seeds import resize_labels
from ficklenet.segmentation_losses import label_probabilities
from ficklenet.segmentation_training import LossWeights, SegmentationBatch, make_optimizer, segmentation_loss
from ficklenet.segmenter import Segmenter, SegmenterSpec
from ficklenet.training_crf import CrfMethod, refine_batch
from ficklenet.transforms import normalize

NUM_CLASSES = 20
SEEDED = 0.3  # share of the cells


def main() -> None:
    options = parse_options()
    device = torch.device(options.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{name}; {describe('torch', 'pydensecrf2')}")
    print(
        f"{options.backbone} at {options.size} x {options.size}, batch {options.batch}, {NUM_CLASSES} classes, "
        f"{options.precision}, median of {options.repeats} runs; milliseconds a batch\n"
    )
    batch = drawn_batch(options.batch, options.size).to(device)
    torch.manual_seed(0)
    spec = SegmenterSpec(options.backbone, tuple(map(str, range(NUM_CLASSES))), input_size=options.size)
    model = Segmenter(spec).to(device).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, learning_rate=1e-6)
    cells = batch.images[:, :, ::8, ::8]
    with torch.no_grad():
        probabilities = label_probabilities(model(normalize(batch.images)))

    print("CRF | step | CRF alone | growing alone | share of the step")
    print("--- | --- | --- | --- | ---")
    methods: list[CrfMethod] = ["exact", "lattice"] if importlib.util.find_spec("pydensecrf") else ["exact"]
    for method in methods:
        refined = refine_batch(probabilities, cells, method=method)
        step, crf, growing = side_by_side(
            [
                partial(run_step, model, optimizer, batch, method, getattr(torch, options.precision)),
                partial(refine_batch, probabilities, cells, method=method),
                partial(grow_seeds, batch.seeds, refined, batch.present),
            ],
            options.repeats,
            device,
        )
        print(
            method,
            *(f"{1e3 * value:.1f}" for value in (step, crf, growing)),
            f"{(crf + growing) / step:.1%}",
            sep=" | ",
        )


def run_step(
    model: Segmenter,
    optimizer: torch.optim.Optimizer,
    batch: SegmentationBatch,
    method: CrfMethod,
    precision: torch.dtype,
) -> None:
    loss = segmentation_loss(model, batch, LossWeights(), precision=precision, crf_method=method)["loss"]
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def drawn_batch(num_images: int, size: int) -> SegmentationBatch:
    """Drawn scenes, some of whose true cells are seeds."""
    scenes = [draw_scene(index, size=(size, size)) for index in range(num_images)]
    grid = (size - 1) // 8 + 1
    truth = torch.from_numpy(np.stack([resize_labels(scene.mask, (grid, grid)) for scene in scenes])).long()
    present = torch.zeros(num_images, NUM_CLASSES + 1, dtype=torch.bool)
    present[:, : len(DRAWN_CLASS_NAMES) + 1] = True
    return SegmentationBatch(
        images=torch.from_numpy(np.stack([resize_square(scene.image, size) for scene in scenes])),
        seeds=truth.where(torch.rand(truth.shape, generator=torch.Generator().manual_seed(0)) < SEEDED, 255),
        present=present,
        truth=torch.full_like(truth, 255),
        weights=torch.ones(num_images),
    )


def side_by_side(calls: list[Callable[[], object]], repeats: int, device: torch.device) -> list[float]:
    """Median seconds of each call, taken in turns after a warm-up."""
    on_gpu = device.type == "cuda"
    wait, clock = (torch.cuda.synchronize, time.perf_counter) if on_gpu else (lambda: None, time.process_time)
    times: list[list[float]] = [[] for _ in calls]
    for repeat in range(repeats + 1):
        for call, taken in zip(calls, times, strict=True):
            wait()
            start = clock()
            call()
            wait()
            if repeat:
                taken.append(clock() - start)
    return [statistics.median(taken) for taken in times]


def parse_options() -> argparse.Namespace:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description="The CRF's and the growing's share of a training step.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--backbone", default="vgg16")
    parser.add_argument("--size", type=int, default=321, help="side of the square input, 8 g + 1")
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if on_gpu else "cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16" if on_gpu else "float32")
    parser.add_argument("--repeats", type=int, default=10, help="timed runs of each side")
    return parser.parse_args()


if __name__ == "__main__":
    main()
