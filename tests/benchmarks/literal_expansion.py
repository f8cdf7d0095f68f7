"""N stochastic maps of one image three ways, on a CPU: the identity, the paper's expansion, and a Grad-CAM package.

    python tests/benchmarks/literal_expansion.py                   # VGG-16 at 321 x 321, 200 samples, one thread
    pip install -e '.[benchmarks]'                                 # for the row of the grad-cam package

From one image to its N maps of one class, backbone included:

    identity   the backbone once, `ficklenet.localizer.localize` (compiled, and in plain torch)
    literal    the backbone once, and the map is expanded once; each sample draws a mask of the expanded map, convolves
               with stride and differentiates (the cheapest literal form)
    package    each sample is one call of `pytorch_grad_cam.HiResCAM` on backbone and literal head: the whole model
               forwards and backwards, as a user would do it today

The backbone runs as in `generate_maps`, in channels_last. The two slow ways run 3 of the 200 samples
(--slow-samples); their time is multiplied for the rest, as every sample costs the same. Each way runs in a process of
its own, whose peak of resident memory beyond the built model is reported.
"""

import argparse
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from machine import describe
from torch import Tensor, nn

from ficklenet.backbones import LayerChain, build_backbone
from ficklenet.expansion import expand, expanded_logits, expanded_map
from ficklenet.folding import Normalization
from ficklenet.head import StochasticHead
from ficklenet.localizer import Sampler, localize, samplers_for
from ficklenet.masks import mask_key

KERNEL_SIZE = 9
DROP_RATE = 0.9
KEY = mask_key(0, "benchmark")
WAYS = {
    "compiled": "identity, compiled",
    "dense": "identity, plain torch",
    "literal": "literal expansion + autograd",
    "package": "grad-cam package, HiResCAM",
}


def main() -> None:
    options = parse_options()
    if options.way:
        print(json.dumps(measure(options)))
        return
    print(describe("torch", "numba", "grad-cam"))
    print(f"threads: {options.threads}; {options.samples} samples of one class, input {options.size} x {options.size};")
    print(f"the slow ways run {options.slow_samples} of {options.samples} samples; the rest is multiplied\n")
    print("way | backbone s | a sample ms | image s | against the first | peak MiB")
    print(" | ".join(["---"] * 6))
    first = None
    for way, name in WAYS.items():
        if way == "compiled" and "compiled" not in samplers_for("cpu"):
            print(f"{name} | numba is not installed")
        elif way == "package" and importlib.util.find_spec("pytorch_grad_cam") is None:
            print(f"{name} | not installed: pip install -e '.[benchmarks]'")
        else:
            found = in_own_process(way)
            first = first or found["image"]
            backbone = "in each sample" if way == "package" else f"{found['backbone']:.2f}"
            times = f"{backbone} | {1e3 * found['sample']:.2f} | {found['image']:.2f}"
            print(f"{name} | {times} | {found['image'] / first:,.1f} x | {found['peak']:,.0f}", flush=True)


def in_own_process(way: str) -> dict[str, float]:
    """Seconds and MiB of one way; options are handed on."""
    command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Backbone, one sample and the whole image in seconds; peak of memory in MiB. In this process."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    backbone = build_backbone("vgg16")
    head = StochasticHead(backbone.out_channels, 1, KERNEL_SIZE)
    backbone = backbone.to(memory_format=torch.channels_last)
    image = torch.randn(1, 3, options.size, options.size).contiguous(memory_format=torch.channels_last)
    before = resident_mebibytes()
    backbone_seconds = 0.0
    if options.way == "package":  # the backbone is part of every sample
        run_samples = package_samples(backbone, head, image, options.slow_samples)
        sample_seconds = seconds(run_samples, 1) / options.slow_samples
    else:
        with torch.no_grad():
            backbone_seconds = seconds(lambda: backbone(image), options.repeats)
            features = backbone(image).contiguous()
        if options.way == "literal":
            expanded = expand(features, KERNEL_SIZE)
            run_samples = partial(literal_samples, expanded, head, options.slow_samples)
            sample_seconds = seconds(run_samples, 1) / options.slow_samples
        else:
            run_samples = partial(identity_samples, features, head, options.samples, options.way)
            sample_seconds = seconds(run_samples, options.repeats) / options.samples
    return {
        "backbone": backbone_seconds,
        "sample": sample_seconds,
        "image": backbone_seconds + options.samples * sample_seconds,
        "peak": peak_mebibytes() - before,
    }


def identity_samples(features: Tensor, head: StochasticHead, num_samples: int, sampler: Sampler) -> None:
    localize(
        features,
        head,
        torch.tensor([[0]]),
        [KEY],
        num_samples=num_samples,
        drop_rate=DROP_RATE,
        normalization=Normalization("max"),
        sampler=sampler,
    )


def literal_samples(expanded: Tensor, head: StochasticHead, num_samples: int) -> None:
    """The paper's way from the expanded map, a sample at a time, folded to the maximum."""
    maximum = torch.zeros(())
    for _ in range(num_samples):
        evidence = expanded_map(expanded, head.weight, head.bias, random_mask(expanded))
        maximum = torch.maximum(maximum, Normalization("max").apply(evidence.relu()))


def package_samples(
    backbone: LayerChain, head: StochasticHead, image: Tensor, num_samples: int
) -> Callable[[], object]:
    """The package's way, ready to be timed."""
    from pytorch_grad_cam import HiResCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model = LiteralClassifier(backbone, head).eval()

    def run() -> None:
        with HiResCAM(model=model, target_layers=[backbone.features[-1]]) as cam:
            for _ in range(num_samples):
                cam(input_tensor=image, targets=[ClassifierOutputTarget(0)])

    return run


class LiteralClassifier(nn.Module):
    """Backbone and literal head as one model, with other masks in each pass."""

    def __init__(self, backbone: LayerChain, head: StochasticHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images_BCHW: Tensor) -> Tensor:
        expanded = expand(self.backbone(images_BCHW), KERNEL_SIZE)
        return expanded_logits(expanded, self.head.weight, self.head.bias, random_mask(expanded))


def random_mask(expanded: Tensor) -> Tensor:
    """A mask of the expanded map's cells by torch's own generator, every window's centre kept."""
    mask = (torch.rand(1, 1, *expanded.shape[2:]) >= DROP_RATE).to(expanded.dtype)
    mask[:, :, KERNEL_SIZE // 2 :: KERNEL_SIZE, KERNEL_SIZE // 2 :: KERNEL_SIZE] = 1
    return mask


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Median seconds after a warm-up; a single call is long enough without one."""
    taken = []
    for _ in range(repeats + (repeats > 1)):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[repeats > 1 :])


def resident_mebibytes() -> float:
    """Memory resident now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def peak_mebibytes() -> float:
    """Memory resident at the process's peak."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="N stochastic maps of one image: the identity against literal expansion and a package, on a CPU.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--samples", type=int, default=200, help="N")
    parser.add_argument("--slow-samples", type=int, default=3, help="samples that the slow ways really run")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of the backbone and of the identity")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    parser.add_argument("--size", type=int, default=321, help="side of the square input")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)  # what a process of its own measures
    return parser.parse_args()


if __name__ == "__main__":
    main()
