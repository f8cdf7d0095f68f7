"""What the stochastic head costs in a training step, beside the bare backbone and beside the paper's expansion.

    python tests/benchmarks/training_step.py                    # VGG-16 at 321 x 321, a GPU if there is one
    python tests/benchmarks/training_step.py --device cpu       # processor seconds of one thread

Each side is a whole step (forwards, backwards, Adam) on the same batch, in a process of its own whose peak of memory
beyond the built model is reported:

    backbone        the features, and a gradient for each of them
    head            from given features to the loss and back: masks, head, loss, Adam on the head's weights
    step            `ficklenet.classifier_training.training_step`: the two together
    literal head    as `head`, by `ficklenet.expansion`: the expanded map, masked, under a strided convolution
    literal step    backbone and literal head together
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project need not be installed

import torch
from machine import describe
from torch import Tensor, nn

from ficklenet.classifier import ClassifierSpec, FickleNet
from ficklenet.classifier_losses import multilabel_loss
from ficklenet.classifier_training import training_step
from ficklenet.expansion import literal_logits
from ficklenet.masks import mask_key
from ficklenet.training_masks import training_masks
from ficklenet.transforms import normalize

NUM_CLASSES = 20
SIDES = ("backbone", "head", "step", "literal head", "literal step")


def main() -> None:
    options = parse_options()
    if options.side:
        print(json.dumps(measure(options)))
        return
    place = torch.cuda.get_device_name() if options.device == "cuda" else f"{options.threads} thread, processor time"
    print(f"{place}; {describe('torch')}")
    print(
        f"VGG-16, input {options.size} x {options.size}, batches of {options.batch}, {options.precision}, "
        f"median of {options.repeats} steps\n"
    )
    print("side | ms per image | of the backbone's step | peak MiB beyond the model | beyond the backbone's")
    print(" | ".join(["---"] * 5))
    base: dict[str, float] = {}
    for side in SIDES:
        found = in_own_process(options, side)
        base = base or found
        print(
            f"{side} | {1e3 * found['seconds'] / options.batch:,.1f} | {found['seconds'] / base['seconds']:.1%} | "
            f"{found['peak']:,.0f} | {found['peak'] - base['peak']:+,.0f}",
            flush=True,
        )


def in_own_process(options: argparse.Namespace, side: str) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--device", options.device, "--side", side]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step and peak of memory in MiB. In this process."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    spec = ClassifierSpec("vgg16", tuple(map(str, range(NUM_CLASSES))), input_size=options.size)
    model = FickleNet(spec).to(device).to(memory_format=torch.channels_last)
    images = torch.randint(0, 256, (options.batch, 3, options.size, options.size), dtype=torch.uint8).to(device)
    targets = torch.randint(0, 2, (options.batch, NUM_CLASSES)).to(device)
    before = memory_now(device)
    step = make_step(options, model, images, targets)
    taken = []
    for _ in range(options.repeats + 1):  # the first is a warm-up
        start = clock(device)
        step()
        taken.append(clock(device) - start)
    return {"seconds": statistics.median(taken[1:]), "peak": memory_peak(device) - before}


def make_step(options: argparse.Namespace, model: FickleNet, images: Tensor, targets: Tensor) -> Callable[[], object]:
    """The step of a side."""
    device, precision = images.device, getattr(torch, options.precision)
    keys, weights = [mask_key(0, str(number)) for number in range(len(images))], torch.ones(len(images), device=device)
    trained: nn.Module = {"backbone": model.backbone, "head": model.head, "literal head": model.head}.get(
        options.side, model
    )
    optimizer = torch.optim.Adam(trained.parameters(), lr=1e-6)
    if options.side == "step":
        settings = {"total_weight": float(len(images)), "precision": precision}  # as in the job: no wait for the device
        return lambda: training_step(model, optimizer, images, targets, keys, 0, weights, **settings)
    fixed = torch.rand(len(images), model.backbone.out_channels, *model.spec.grid, device=device)
    fixed = fixed.to(precision).contiguous(memory_format=torch.channels_last)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            if options.side.endswith("head"):
                features = fixed.detach().requires_grad_()
            else:
                features = model.backbone(normalize(images).contiguous(memory_format=torch.channels_last))
            if options.side == "backbone":
                loss = features.float().mean()
            else:
                logits = logits_of(model, features, keys, is_literal=options.side.startswith("literal"))
                loss = multilabel_loss(logits, targets, weights)
        loss.backward()
        optimizer.step()

    return run


def logits_of(model: FickleNet, features: Tensor, keys: list[int], *, is_literal: bool) -> Tensor:
    spec, head = model.spec, model.head
    masks = training_masks(
        keys,
        0,
        kernel_size=spec.kernel_size,
        grid=spec.grid,
        drop_rate=spec.drop_rate,
        device=features.device,
    )
    if is_literal:
        return literal_logits(features, head.weight, head.bias, masks[:, : spec.kernel_size**2])
    return head(features, masks)


def clock(device: torch.device) -> float:
    """Seconds: of the wall once a GPU is done, else of the processor, which other work does not lengthen."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def memory_now(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.memory_allocated() / 2**20
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def memory_peak(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="The head's share of a training step, beside backbone and literal expansion.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=["cpu", "cuda"], default=device)
    parser.add_argument("--precision", choices=["bfloat16", "float32"], help="default: float32 on CPU, else bfloat16")
    parser.add_argument("--size", type=int, default=321, help="side of the square input")
    parser.add_argument("--batch", type=int, default=2, help="images in a batch")
    parser.add_argument("--repeats", type=int, default=3, help="timed steps of each side")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # what a process of its own measures
    options = parser.parse_args()
    options.precision = options.precision or ("float32" if options.device == "cpu" else "bfloat16")
    return options


if __name__ == "__main__":
    main()
