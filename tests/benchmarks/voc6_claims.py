"""The paper's claims on VOC6: more samples, a higher drop rate, and sampling itself make better seeds; a table, a plot.

    python tests/benchmarks/voc6_claims.py timm/tf_efficientnet_lite0:16=WEIGHTS --data VOC6 --cache cache --out results

FickleNet, sections 3.3 and 4.4 and figure 7: the number of samples N, the drop rate p, and stochastic against
deterministic maps. The backbone is frozen and its features are kept, as in `voc6_backbones.py`. For each p and each
seed, one head is trained with p, and its maps are made with p. The deterministic map is the expectation over the masks;
it is also shown blurred, because blurring widens maps as sampling does. Theta, and the width of the blur, are chosen on
the tune part (this reads its masks); all figures are of the report part, at 41 x 41 cells.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project need not be installed

import matplotlib
import numpy as np
import torch
from machine import describe
from voc6_backbones import VIEW, deterministic, extract, on_the_grid
from voc6_data import Image, load_images
from voc6_features import read_ids
from voc6_maps import ImageMaps, Recipe, head_of, kept_maps, make_maps, validation_map
from voc6_measure import Evidence, Setting, by_theta, choose
from voc6_rows import widened

from ficklenet.backbones import build_backbone
from ficklenet.geometry import GridGeometry
from jobs.training.backbone_weights import load_weights

DROP_RATES = (0.3, 0.5, 0.7, 0.9)
NUMS_OF_SAMPLES = (1, 10, 50, 100, 200, 400)  # at the highest p; the others have 200
PAPER_P, PAPER_N = 0.9, 200

Row = tuple[float, str]  # p, and "deterministic", "blurred" or a number of samples
Figures = dict[Row, tuple[float, float]]  # mIoU, and that of the images with several classes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone", help="NAME or NAME:STRIDE, then =WEIGHTS where they are in a file")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="the folder of voc6_backbones.py")
    parser.add_argument("--every", type=int, default=1, help="only every so many-th training image")
    parser.add_argument("--size", type=int, default=321)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True, help="folder for voc6_claims.json and voc6_claims.png")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(describe("torch", "timm"), flush=True)

    # 1. Features, once for all heads
    name, _, weights = given.backbone.partition("=")
    architecture, _, stride = name.partition(":")
    network = build_backbone(architecture, int(stride or 8))
    load_weights(network, architecture, weights or "imagenet", "weights")
    cache = given.cache / name.replace("/", "_").replace(":", "_")
    wanted = [*read_ids(given.data, "train_aug")[:: given.every], *read_ids(given.data, "val")]
    extract(network, given.data, cache, network.geometry.nearest_input_size(given.size), wanted)
    images = [image for image in load_images(given.data, cache, VIEW) if image.image_id in set(wanted)]

    # 2. The figures of each head
    found = []
    for seed in given.seeds:
        figures: Figures = {}
        for drop_rate in DROP_RATES:
            recipe = Recipe(seed, drop_rate, kernel_size=network.geometry.default_kernel_size)
            figures |= measure(recipe, network.geometry, cache, images)
        found.append(figures)

    # 3. A table, a file and a plot
    given.out.mkdir(parents=True, exist_ok=True)
    as_text = [{f"p {p:g} {what}": values for (p, what), values in figures.items()} for figures in found]
    (given.out / "voc6_claims.json").write_text(json.dumps({"backbone": name, "seeds": as_text}, indent=1))
    print("| p | maps | mIoU, mean and each seed | several classes, mean |\n|---|---|---|---|")
    for row in found[0]:
        miou, several = (np.array([figures[row][column] for figures in found]) for column in (0, 1))
        each = " / ".join(f"{value:.3f}" for value in miou)
        print(f"| {row[0]:g} | {row[1]} | {miou.mean():.3f} ({each}) | {several.mean():.3f} |")
    draw(found, given.out / "voc6_claims.png")


def measure(recipe: Recipe, geometry: GridGeometry, cache: Path, images: Sequence[Image]) -> Figures:
    """One head: its deterministic map, blurred or not, and its samples."""
    train, val, tune, report = (
        [image for image in images if image.part in parts]
        for parts in (("tune", "report"), ("val",), ("tune",), ("report",))
    )
    head = head_of(recipe, cache, train)
    numbers = NUMS_OF_SAMPLES if recipe.drop_rate == PAPER_P else (PAPER_N,)
    make = partial(make_maps, head, recipe, cache, size=VIEW, drop_rate=recipe.drop_rate, nums_of_samples=numbers)
    maps = kept_maps(f"{recipe.name}_claims", cache, train, make)
    print(f"{recipe.name}: validation mAP {validation_map(head, recipe, cache, val):.3f}", flush=True)
    plain = partial(deterministic, maps, geometry)
    rows: dict[str, list[Setting]] = {
        "deterministic": [by_theta("", plain)],
        "blurred": widened(plain)["blurred"],
        **{str(number): [by_theta("", partial(samples, maps, geometry, str(number)))] for number in numbers},
    }
    figures = {(recipe.drop_rate, what): choose(settings, tune, report).report for what, settings in rows.items()}
    return {row: (values.miou, values.miou_several) for row, values in figures.items()}


def samples(maps: dict[int, ImageMaps], geometry: GridGeometry, number: str, image: Image) -> Evidence:
    found = maps[image.index]
    return Evidence(*(on_the_grid(fold[number].astype(np.float32), geometry) for fold in (found.maximum, found.mean)))


def draw(found: Sequence[Figures], file: Path) -> None:
    """Mean over the heads with the smallest and largest value: against N, and against p."""
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, (by_number, by_rate) = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")

    def line(axis: plt.Axes, places: Sequence[float], rows: Sequence[Row], label: str, style: str) -> None:
        values = np.array([[figures[row][0] for row in rows] for figures in found])
        axis.plot(places, values.mean(0), style, label=label)
        axis.fill_between(places, values.min(0), values.max(0), alpha=0.2, color=style[:2])

    line(by_number, NUMS_OF_SAMPLES, [(PAPER_P, str(number)) for number in NUMS_OF_SAMPLES], "N samples", "C0o-")
    for what, style in (("deterministic", "C1--"), ("blurred", "C2:")):
        line(by_number, NUMS_OF_SAMPLES, [(PAPER_P, what)] * len(NUMS_OF_SAMPLES), what, style)
        line(by_rate, DROP_RATES, [(rate, what) for rate in DROP_RATES], what, style)
    line(by_rate, DROP_RATES, [(rate, str(PAPER_N)) for rate in DROP_RATES], f"{PAPER_N} samples", "C0o-")
    by_number.set(xscale="log", xlabel=f"samples N, p = {PAPER_P}", ylabel="seed mIoU, report part")
    by_number.set_xticks(NUMS_OF_SAMPLES, [str(number) for number in NUMS_OF_SAMPLES])
    by_rate.set(xlabel="drop rate p, in training and in inference")
    for axis in (by_number, by_rate):
        axis.legend()
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
