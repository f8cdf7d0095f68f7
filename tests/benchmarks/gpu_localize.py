"""What localisation costs beside the backbone, on a GPU: one table of medians, all sides in one process.

    python tests/benchmarks/gpu_localize.py                        # VGG-16 at 321 x 321, bfloat16, 200 samples
    python tests/benchmarks/gpu_localize.py --dense                # with the plain torch path beside it
    python tests/benchmarks/gpu_localize.py --check                # compare all GPU kernels with plain torch

Needs torch with CUDA, torchvision and numpy; the rest of the project may be absent. The backbone runs as in
`generate_maps`: channels_last, mixed precision, batches of one fixed size. Localisation is everything after the
features of a batch: their conversion to float32, affinity, masks, sums, normalisation, fold and score. Times are per
image, between two synchronisations of the device. "both" is the backbone and then the localisation without a wait
between them, as in the job: while the GPU runs the backbone, the CPU sends it the kernels of the localisation. "added"
is what both take longer than the backbone, as a share of the backbone's time.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project need not be installed

import torch
from machine import describe
from torch import Tensor, nn

from ficklenet.backbones import build_backbone, load_backbone_weights
from ficklenet.crf import AT_MAP_SIZE
from ficklenet.drawing import draw_scene
from ficklenet.folding import Normalization
from ficklenet.head import StochasticHead
from ficklenet.localizer import LocalizationMaps, Sampler, localize, samplers_for
from ficklenet.masks import INFERENCE_STREAM, TRAINING_STREAM, dropout_masks, mask_key
from ficklenet.mean_field import refine_exactly
from ficklenet.resampling import resize_square
from ficklenet.transforms import resize_maps

NUM_CLASSES = 20
KERNEL_SIZE = 9
LIMITS = {"maps": 1e-5, "labels after the CRF": 1e-4}  # maps are in [0, 1]: two orders of float32 sums


def main() -> None:
    options = parse_options()
    if not torch.cuda.is_available():
        sys.exit("gpu_localize: this torch sees no GPU. Run it on a machine with one, or run cpu_localize.py.")
    if options.check:
        check(options)
        return
    print(f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}; {describe('torch', 'triton')}")
    print(
        f"{options.samples} samples, input {options.size} x {options.size}, batches of {options.batch}, "
        f"{options.precision}{', compiled' if options.compile else ''}, median of {options.repeats} runs\n"
    )
    header = (
        "classes",
        "p",
        "normalisation",
        "sampler",
        "backbone ms",
        "localisation alone ms",
        "both ms",
        "added",
        "peak MiB",
    )
    print(" | ".join(header))
    print(" | ".join("---" for _ in header))
    measure(options)


@torch.inference_mode()
def measure(options: argparse.Namespace) -> None:
    """Prints the rows. The backbone is timed anew beside every row."""
    backbone, head, images = build(options)
    run_backbone = partial(features_of, backbone, images, getattr(torch, options.precision))
    features = run_backbone()
    best = samplers_for("cuda")[0]
    samplers: list[Sampler] = [best, "dense"] if options.dense and best != "dense" else [best]
    for num_classes in options.classes:
        for drop_rate in options.drop_rates:
            for normalization in (Normalization("max"), Normalization("percentile", 90.0)):
                for sampler in samplers:
                    run_localisation = partial(
                        localisation,
                        features=features,
                        head=head,
                        num_classes=num_classes,
                        drop_rate=drop_rate,
                        normalization=normalization,
                        num_samples=options.samples,
                        sampler=sampler,
                    )

                    def run_both(localise: Callable[..., object] = run_localisation) -> None:
                        localise(features=run_backbone())

                    times = side_by_side([run_backbone, run_localisation, run_both], options.repeats)
                    peak = peak_mebibytes(run_localisation)
                    per_image = (f"{1e3 * value / options.batch:.4f}" for value in times)
                    print(num_classes, drop_rate, normalization.kind, sampler, sep=" | ", end=" | ")
                    print(*per_image, f"{times[2] / times[0] - 1:.1%}", f"{peak:.0f}", sep=" | ", flush=True)


def build(options: argparse.Namespace) -> tuple[nn.Module, StochasticHead, Tensor]:
    """Backbone, head and one batch, on the GPU."""
    torch.manual_seed(0)
    backbone = build_backbone("vgg16")
    if options.weights:
        load_backbone_weights(backbone, torch.load(options.weights, weights_only=True))
    head = StochasticHead(backbone.out_channels, NUM_CLASSES, KERNEL_SIZE).cuda()
    layers: nn.Module = backbone.cuda().to(memory_format=torch.channels_last)
    images = torch.randn(options.batch, 3, options.size, options.size, device="cuda")
    if options.compile:
        layers = torch.compile(layers)  # type: ignore[assignment]
    return layers, head, images.contiguous(memory_format=torch.channels_last)


def features_of(backbone: nn.Module, images: Tensor, precision: torch.dtype) -> Tensor:
    with torch.autocast("cuda", precision, enabled=precision != torch.float32):
        return backbone(images)


def localisation(
    features: Tensor,
    head: StochasticHead,
    num_classes: int,
    drop_rate: float,
    normalization: Normalization,
    num_samples: int,
    sampler: Sampler,
) -> LocalizationMaps:
    """One batch's localisation by one sampler."""
    return localize(
        features.float().contiguous(),
        head,
        torch.arange(num_classes).expand(len(features), -1),
        [mask_key(0, str(number)) for number in range(len(features))],
        num_samples=num_samples,
        drop_rate=drop_rate,
        normalization=normalization,
        sampler=sampler,
    )


def side_by_side(calls: list[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each call, taken in turns after two warm-ups."""
    times: list[list[float]] = [[] for _ in calls]
    for repeat in range(repeats + 2):
        for call, taken in zip(calls, times, strict=True):
            torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            torch.cuda.synchronize()
            if repeat >= 2:
                taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def peak_mebibytes(call: Callable[[], object]) -> float:
    """Device memory that a call takes at its peak beyond what was there before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


@torch.inference_mode()
def check(options: argparse.Namespace) -> None:
    """Compares the paths and ends with status 1 where they differ."""
    device = torch.device("cuda")
    differences = [("plain torch masks, GPU and CPU", mask_difference(device))]
    if "triton" in samplers_for(device):
        differences.append(("Triton's masks and plain torch masks", triton_mask_difference(device)))
        for normalization in (Normalization("max"), Normalization("percentile", 90.0)):
            differences.append(
                (f"maps, {normalization.kind}, Triton and dense", map_difference(options, normalization))
            )
        differences.append(("masks of a training step, Triton and plain torch", training_mask_difference(device)))
        differences.append(("grown seeds, Triton and plain torch", growing_difference(device)))
    else:
        print("Triton is absent or cannot run here; the plain path is used.")
    differences.append(("labels after the CRF, kernel in float16 and in float32", crf_difference(device)))
    limits = [LIMITS.get(name.split(",")[0], 0.0) for name, _ in differences]
    for (name, difference), limit in zip(differences, limits, strict=True):
        print(f"{name}: largest difference {difference:.3g} (at most {limit:g})")
    if any(not difference <= limit for (_, difference), limit in zip(differences, limits, strict=True)):
        sys.exit("gpu_localize: the paths differ.")


def paper_masks(device: torch.device, key: int, samples: range, drop_rate: float) -> Tensor:
    """Masks at paper size, bool (N, D, V), on the CPU."""
    masks = dropout_masks(
        [key],
        samples,
        kernel_size=KERNEL_SIZE,
        grid=(41, 41),
        drop_rate=drop_rate,
        stream=INFERENCE_STREAM,
        device=device,
    )
    return masks[0].cpu()


def mask_difference(device: torch.device) -> float:
    """Share of mask bits that differ between plain torch on the GPU and on the CPU."""
    key, samples = mask_key(0, "check"), range(198, 202)
    on_gpu, on_cpu = (paper_masks(place, key, samples, 0.9) for place in (device, torch.device("cpu")))
    return (on_gpu != on_cpu).float().mean().item()


def triton_mask_difference(device: torch.device) -> float:
    """The same between Triton and plain torch, over drop rates, sample numbers and keys of both signs."""
    from ficklenet import triton_sampler

    num_offsets = KERNEL_SIZE**2
    # 1 at one offset and 0 elsewhere makes that offset's mask visible in the map: a row for each offset.
    affinity = torch.eye(num_offsets, device=device)[:, :, None].repeat(1, 1, 41 * 41)
    rows = torch.zeros(num_offsets, dtype=torch.int64)
    worst = 0.0
    for key in (1, 2**63 + 7, mask_key(0, "check")):
        for drop_rate in (0.0, 0.5, 0.9, 1.0):
            for samples in (range(5), range(2**31 - 2, 2**31 + 3)):
                maps = triton_sampler.sample_maps(
                    affinity, rows, [key], samples, grid=(41, 41), drop_rate=drop_rate
                ).cpu()
                masks = paper_masks(torch.device("cpu"), key, samples, drop_rate).permute(1, 0, 2)
                worst = max(worst, (maps != masks.float()).float().mean().item())
    return worst


def training_mask_difference(device: torch.device) -> float:
    """Share of the bits that differ, rows of zeros included."""
    from ficklenet.triton_masks import training_masks

    settings = {"kernel_size": KERNEL_SIZE, "grid": (41, 41), "drop_rate": 0.9}
    keys = [1, 2**63 + 7, mask_key(0, "check")]
    on_gpu = training_masks(keys, 7, **settings, device=device).cpu()
    on_cpu = dropout_masks(keys, [7], **settings, stream=TRAINING_STREAM)[:, 0].byte()
    padding = on_cpu.new_zeros(len(keys), on_gpu.shape[1] - on_cpu.shape[1], on_cpu.shape[2])
    return (on_gpu != torch.cat([on_cpu, padding], dim=1)).float().mean().item()


def growing_difference(device: torch.device) -> float:
    """Share of the cells that differ, in noise of different densities."""
    from ficklenet import growing, triton_growing

    generator = torch.Generator().manual_seed(0)
    density = torch.linspace(0.2, 0.8, 20)[:, None, None]
    labels = (torch.rand(20, 41, 41, generator=generator) < density).long()
    sources = torch.rand(20, 41, 41, generator=generator) < 0.01
    found = triton_growing.connected(labels.to(device), sources.to(device)).cpu()
    return (found != growing.connected(labels, sources)).float().mean().item()


def crf_difference(device: torch.device) -> float:
    """Share of the cells whose most probable label differs, on drawn images with doubtful probabilities."""
    scenes = [draw_scene(number) for number in range(20)]
    images = torch.stack([torch.from_numpy(resize_square(scene.image, 41)) for scene in scenes]).to(device)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(20, 21, 6, 6, generator=generator).mul(6).softmax(1).to(device)
    probabilities = resize_maps(coarse, (41, 41))
    found, wanted = (
        refine_exactly(probabilities, images, AT_MAP_SIZE, kernel_type=kernel_type).argmax(1)
        for kernel_type in (torch.float16, torch.float32)
    )
    return (found != wanted).float().mean().item()


def map_difference(options: argparse.Namespace, normalization: Normalization) -> float:
    """Largest difference of maps and scores by Triton and by plain torch, empty slots included."""
    generator = torch.Generator("cuda").manual_seed(0)
    features = torch.rand(4, 512, 41, 41, device="cuda", generator=generator)
    head = StochasticHead(512, NUM_CLASSES, KERNEL_SIZE).cuda()
    classes = torch.tensor([[0, 1, 2, 3, 4, 5], [7, -1, -1, -1, -1, -1], [-1] * 6, [3, 19, -1, -1, -1, -1]])
    keys = [mask_key(0, str(number)) for number in range(4)]
    found, wanted = (
        localize(
            features,
            head,
            classes,
            keys,
            num_samples=options.samples,
            drop_rate=0.9,
            normalization=normalization,
            sampler=sampler,
        )
        for sampler in ("triton", "dense")
    )
    pairs = ((found.max_BSHW, wanted.max_BSHW), (found.mean_BSHW, wanted.mean_BSHW), (found.score_BS, wanted.score_BS))
    if any(not torch.equal(one.isnan(), other.isnan()) for one, other in pairs):
        return float("inf")
    return max((one - other).nan_to_num().abs().max().item() for one, other in pairs)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Localisation's cost beside the backbone, per image, on a GPU.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--samples", type=int, default=200, help="stochastic maps per image and class")
    parser.add_argument("--classes", type=int, nargs="+", default=[1, 3, 10], help="wanted classes of every image")
    parser.add_argument("--drop-rates", type=float, nargs="+", default=[0.5, 0.7, 0.9], help="p")
    parser.add_argument("--size", type=int, default=321, help="side of the square input")
    parser.add_argument("--batch", type=int, default=32, help="images in a batch, always full")
    parser.add_argument("--precision", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--compile", action="store_true", help="torch.compile the backbone")
    parser.add_argument("--repeats", type=int, default=20, help="timed runs of each side")
    parser.add_argument("--weights", type=Path, help="state dict of VGG-16's features (optional)")
    parser.add_argument("--dense", action="store_true", help="also time the plain torch path")
    parser.add_argument("--check", action="store_true", help="compare the paths instead of timing them")
    return parser.parse_args()


if __name__ == "__main__":
    main()
