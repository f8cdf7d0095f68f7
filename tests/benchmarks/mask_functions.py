"""Whether two versions of the mask function give maps of the same distribution, on the same images.

    python tests/benchmarks/mask_functions.py --data VOC6 --cache cache --against ../checkout-with-the-other-masks

The cache has the features of `voc6_features.py`; a head is trained on them if there is none yet. Each checkout computes
the maps of the same features with several run seeds, in a process of its own. "mean over everything" is the average of
all maps of a run seed; it is given with its standard error over the run seeds. "z of the cells" compares each cell's
mean over the run seeds, in units of the standard error of the difference: its root mean square is about 1 if the
distributions are the same. The last rows compare this checkout with itself under other run seeds, so they show what
chance alone does.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).resolve().parents[2]))  # a checkout in PYTHONPATH comes first

import numpy as np
import torch
from machine import describe
from numpy.typing import NDArray

THIS_CHECKOUT = Path(__file__).resolve().parents[2]


class Maps(NamedTuple):
    """Maximum and mean maps of some run seeds, float32 (seed, slot of an image, y, x)."""

    maximum: NDArray[np.float32]
    mean: NDArray[np.float32]


def main() -> None:
    options = parse_options()
    if options.child:
        write_maps(Path(options.child), range(options.first_seed, options.first_seed + options.seeds), options.samples)
        return
    print(describe("torch", "numba"))
    seeds = options.seeds
    with tempfile.TemporaryDirectory() as folder:
        write_features(options.data, options.cache, options.images, Path(folder))
        other = run_child(options.against.resolve(), folder, range(seeds), options.samples)
        this = run_child(THIS_CHECKOUT, folder, range(seeds), options.samples)
        again = run_child(THIS_CHECKOUT, folder, range(seeds, 2 * seeds), options.samples)
    num_maps = this.mean.shape[1]
    print(f"{options.images} images, {num_maps} maps, {options.samples} samples, {seeds} run seeds\n")
    print(
        "compared | map | mean over everything | difference / its error | z of the cells, rms | cells with abs(z) > 2"
    )
    print(" | ".join(["---"] * 6))
    for title, one, two in (("other masks, these masks", other, this), ("these masks, other seeds", this, again)):
        for name in Maps._fields:
            print(title, name, *compared(getattr(one, name), getattr(two, name)), sep=" | ")


def compared(one: NDArray[np.float32], two: NDArray[np.float32]) -> list[str]:
    """The cells of a row of the table."""
    totals = [maps.astype(np.float64).mean((1, 2, 3)) for maps in (one, two)]
    errors = [total.std(ddof=1) / len(total) ** 0.5 for total in totals]
    difference = (totals[0].mean() - totals[1].mean()) / np.hypot(*errors)
    variance = one.var(0, ddof=1) / len(one) + two.var(0, ddof=1) / len(two)
    varies = variance > 0
    z = (one.mean(0) - two.mean(0))[varies] / np.sqrt(variance[varies])
    means = ", ".join(f"{total.mean():.6f} +- {error:.6f}" for total, error in zip(totals, errors, strict=True))
    return [means, f"{difference:+.2f}", f"{np.sqrt((z**2).mean()):.3f}", f"{(np.abs(z) > 2).mean():.1%}"]


def write_features(data: Path, cache: Path, num_images: int, folder: Path) -> None:
    """The features of the first training images, their classes, and the head with random seed 0."""
    from voc6_data import load_images
    from voc6_maps import Recipe, head_of, image_features

    recipe = Recipe(0)
    images = sorted((image for image in load_images(data, cache) if image.part != "val"), key=lambda image: image.index)
    chosen = images[:num_images]
    given = {
        "features": [image_features(cache, "321", recipe.stages, image.index)[None] for image in chosen],
        "classes": [torch.from_numpy(image.labels)[None] for image in chosen],
        "ids": [image.image_id for image in chosen],
        "weight": head_of(recipe, cache, images).weight.detach(),
        "drop_rate": recipe.drop_rate,
    }
    torch.save(given, folder / "features.pt")


def run_child(checkout: Path, folder: str, seeds: range, num_samples: int) -> Maps:
    """The maps of a checkout with some run seeds."""
    command = [
        sys.executable,
        __file__,
        "--child",
        folder,
        "--first-seed",
        str(seeds.start),
        "--seeds",
        str(len(seeds)),
    ]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    subprocess.run([*command, "--samples", str(num_samples)], env=environment, check=True)
    with np.load(Path(folder) / "maps.npz") as found:
        return Maps(found["maximum"], found["mean"])


@torch.inference_mode()
def write_maps(folder: Path, seeds: range, num_samples: int) -> None:
    """Computes the maps with the packages of PYTHONPATH."""
    from ficklenet.folding import Normalization
    from ficklenet.head import StochasticHead
    from ficklenet.localizer import localize
    from ficklenet.masks import mask_key

    data = torch.load(folder / "features.pt", weights_only=True)
    num_classes, channels, kernel_size, _ = data["weight"].shape
    head = StochasticHead(channels, num_classes, kernel_size)
    head.weight.data = data["weight"]
    maximum, mean = [], []
    for seed in seeds:
        found = [
            localize(
                features,
                head,
                classes,
                [mask_key(seed, image_id)],
                num_samples=num_samples,
                drop_rate=data["drop_rate"],
                normalization=Normalization("max"),
            )
            for features, classes, image_id in zip(data["features"], data["classes"], data["ids"], strict=True)
        ]
        maximum.append(torch.cat([maps.max_BSHW[0] for maps in found]).numpy())
        mean.append(torch.cat([maps.mean_BSHW[0] for maps in found]).numpy())
    np.savez(folder / "maps.npz", maximum=np.stack(maximum), mean=np.stack(mean))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="VOC6 in devkit layout")
    parser.add_argument("--cache", type=Path, help="folder of voc6_features.py")
    parser.add_argument("--against", type=Path, help="another checkout of the project")
    parser.add_argument("--images", type=int, default=16, help="the first training images")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=16, help="number of run seeds")
    parser.add_argument("--first-seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
