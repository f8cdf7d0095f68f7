"""What localisation costs beside the backbone, on a CPU: a table of processor times, all sides in one process.

    python tests/benchmarks/cpu_localize.py                  # VGG-16 at 321 x 321, 200 samples
    python tests/benchmarks/cpu_localize.py --weights vgg16_features.pt --repeats 9

The weights hardly change the times; without them the backbone is random. The backbone runs as in `generate_maps`, in
channels_last. Localisation is everything after the features of one image: affinity, masks, sums, normalisation, fold,
score and, with --votes, the votes. "dense" is the same in plain torch. One thread, as in an actor of the job; the least
processor time of several runs, which other work on the machine disturbs least.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from machine import describe
from torch import Tensor

from ficklenet.backbones import build_backbone, load_backbone_weights
from ficklenet.folding import Normalization
from ficklenet.head import StochasticHead
from ficklenet.localizer import Sampler, localize
from ficklenet.masks import mask_key

NUM_CLASSES = 20
KERNEL_SIZE = 9


def main() -> None:
    options = parse_options()
    print(describe("torch", "numba"))
    print(f"{options.samples} samples, input {options.size} x {options.size}, least of {options.repeats} runs\n")
    header = ("classes", "p", "normalisation", "sampler", "backbone ms", "localisation ms", "ratio")
    print(" | ".join(header))
    print(" | ".join("---" for _ in header))
    torch.set_num_threads(1)
    measure(options)


@torch.inference_mode()
def measure(options: argparse.Namespace) -> None:
    """Prints the rows. The backbone is timed beside every row, as the machine's speed varies."""
    torch.manual_seed(0)
    backbone = build_backbone("vgg16")
    if options.weights:
        load_backbone_weights(backbone, torch.load(options.weights, weights_only=True))
    head = StochasticHead(backbone.out_channels, NUM_CLASSES, KERNEL_SIZE)
    backbone = backbone.to(memory_format=torch.channels_last)
    image = torch.randn(1, 3, options.size, options.size).contiguous(memory_format=torch.channels_last)
    features = backbone(image).contiguous()
    samplers: tuple[Sampler, ...] = ("compiled", "dense") if options.dense else ("compiled",)
    for num_classes in options.classes:
        for drop_rate in options.drop_rates:
            for normalization in (Normalization("max"), Normalization("percentile", 90.0)):
                for sampler in samplers:
                    times = side_by_side(
                        [
                            partial(backbone, image),
                            localisation(features, head, num_classes, drop_rate, normalization, sampler, options),
                        ],
                        options.repeats,
                    )
                    cells = (num_classes, drop_rate, normalization.kind, sampler)
                    print(*cells, *(f"{1e3 * value:.1f}" for value in times), f"{times[1] / times[0]:.1%}", sep=" | ")
                    sys.stdout.flush()


def localisation(
    features: Tensor,
    head: StochasticHead,
    num_classes: int,
    drop_rate: float,
    normalization: Normalization,
    sampler: Sampler,
    options: argparse.Namespace,
) -> Callable[[], object]:
    """One image's localisation by one sampler, ready to be timed."""
    return partial(
        localize,
        features,
        head,
        torch.arange(num_classes)[None],
        [mask_key(0, "benchmark")],
        num_samples=options.samples,
        drop_rate=drop_rate,
        normalization=normalization,
        sampler=sampler,
        vote_threshold=options.votes,
    )


def side_by_side(calls: list[Callable[[], object]], repeats: int) -> list[float]:
    """The least processor time of each call in seconds, taken in turns after one warm-up."""
    times: list[list[float]] = [[] for _ in calls]
    for repeat in range(repeats + 1):
        for call, taken in zip(calls, times, strict=True):
            start = time.process_time()
            call()
            if repeat:
                taken.append(time.process_time() - start)
    return [min(taken) for taken in times]


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Localisation's cost beside the backbone, one image, on a CPU.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--samples", type=int, default=200, help="stochastic maps per image and class")
    parser.add_argument("--classes", type=int, nargs="+", default=[1, 3, 10], help="wanted classes of the image")
    parser.add_argument("--drop-rates", type=float, nargs="+", default=[0.5, 0.7, 0.9], help="p")
    parser.add_argument("--size", type=int, default=321, help="side of the square input")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each side")
    parser.add_argument("--weights", type=Path, help="state dict of VGG-16's features (optional)")
    parser.add_argument("--votes", type=float, metavar="THETA", help="also count the samples above this threshold")
    parser.add_argument("--dense", action="store_true", help="also time the plain torch path (slow)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
