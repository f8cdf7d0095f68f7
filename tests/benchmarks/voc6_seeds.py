"""Which evidence makes seeds that no classifier-free map reaches? VOC6 without saliency, at map resolution.

    python tests/benchmarks/voc6_features.py --data VOC6 --weights vgg16_features.pt --cache cache --sizes 321 321m
    python tests/benchmarks/voc6_seeds.py --data VOC6 --weights vgg16_features.pt --cache cache

The features of frozen VGG-16 that `voc6_features.py` kept are read from the cache. Whatever images are there are used;
rows that need sizes which are not there are left out. A head is trained for each seed. Every row chooses its settings
and its theta on the tune part (a quarter of the training ids; this reads their masks) and is measured on the report
part. The tables go to the screen, all numbers to a JSON file.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project need not be installed

import numpy as np
import torch
from machine import describe
from voc6_calibration import theta_rows
from voc6_data import Image, load_images
from voc6_maps import ImageMaps, Recipe, head_of, kept_maps, make_maps, validation_map
from voc6_measure import Choice, Setting, by_theta, choose
from voc6_refine import Affinities, confident_labels, dense_crf, learned_cells, walks
from voc6_rows import HeadMaps, classifier_free_rows, mixed, percentile, times_gaussian, widened

from ficklenet.crf import CrfParameters
from ficklenet.head import StochasticHead
from ficklenet.propagation import Likeness

CRF_AT_MAP_SIZE = [CrfParameters(10.0, 0.375, 4.0, colour) for colour in (13.0, 30.0)]
CRF_THETAS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5)
WALK_STEPS = (4, 8, 16, 32, 64)
VOTE_THETAS = (0.1, 0.2, 0.35, 0.5)
FUSED = {"mirror image": ("321", "321m"), "scales": ("241", "321", "401"), "241 and 321": ("241", "321")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="named in the record; the features were made with them")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "voc6_seeds.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    images = load_images(given.data, given.cache)
    of_part = {part: [image for image in images if image.part == part] for part in ("tune", "report", "val")}
    print(describe("torch", "numpy", "numba", "pydensecrf2"))
    print({part: f"{len(each)}, {sum(i.has_several_classes for i in each)} several" for part, each in of_part.items()})
    record: dict = {"machine": describe("torch"), "images": {part: len(each) for part, each in of_part.items()}}
    chosen: dict[str, list[Choice]] = defaultdict(list)
    for name, settings in classifier_free_rows().items():
        chosen[name].append(choose(settings, of_part["tune"], of_part["report"]))
    affinities = Affinities(given.cache, Likeness())
    for seed in given.seeds:
        for name, choice in rows_of_head(seed, given.cache, affinities, of_part, record).items():
            chosen[name].append(choice)
        record["rows"] = {name: [asdict(choice) for choice in choices] for name, choices in chosen.items()}
        given.out.write_text(json.dumps(record, indent=1))
    print("\n| evidence | mIoU | mIoU, several classes | fg precision | fg recall |\n|---|---|---|---|---|")
    for name, choices in chosen.items():
        print(row(name, choices))


def rows_of_head(
    seed: int, cache: Path, affinities: Affinities, of_part: dict[str, list[Image]], record: dict
) -> dict[str, Choice]:
    """Every row by one head, and what theta without masks loses (into the record)."""
    tune, report = of_part["tune"], of_part["report"]
    train = sorted([*tune, *report], key=lambda image: image.index)
    recipe = Recipe(seed)
    head = head_of(recipe, cache, train)
    if of_part["val"]:
        record.setdefault("validation mAP", []).append(validation_map(head, recipe, cache, of_part["val"]))

    # 1. The maps, by view
    maps = HeadMaps()
    for view in ("321", "321m", "241", "401"):
        done = cache / view / "done.npy"
        if done.exists() and np.load(done)[[image.index for image in train]].all():
            maps.views[view] = kept_maps(f"{recipe.name}_{view}", cache, train, maker(head, recipe, cache, view, 0.9))

    found: dict[str, Choice] = {}

    def measure(name: str, settings: Sequence[Setting]) -> Choice:
        found[name] = choose(settings, tune, report)
        print(seed, row(name, [found[name]]), found[name].setting, found[name].threshold, flush=True)
        return found[name]

    # 2. The maps themselves
    measure("deterministic", [by_theta("", maps.deterministic)])
    for count in (10, 50, 100, 200):
        measure(f"{count} samples", [by_theta("", lambda image, count=count: maps.samples(image, f"{count}"))])

    # 3. Cells learned from the seeds, twice, then the image's own affinities and the CRF
    for name, evidence_of in (("deterministic", maps.deterministic), ("200 samples", maps.samples)):
        theta = found[name].threshold
        for suffix in ("cells learned", "cells learned twice"):
            learned = learned_cells(evidence_of, theta, train, cache, seed)
            mixtures = {f"map^{share}": mixed(evidence_of, learned, share) for share in (0.0, 0.3, 0.5, 0.7)}
            choice = measure(f"{name}, {suffix}", [by_theta(label, mixture) for label, mixture in mixtures.items()])
            evidence_of, theta = mixtures[choice.setting], choice.threshold
        measure(f"{name}, {suffix}, walk", walks(evidence_of, affinities, WALK_STEPS))
        settings = [dense_crf(evidence_of, parameters, CRF_THETAS) for parameters in CRF_AT_MAP_SIZE]
        measure(f"{name}, {suffix}, CRF", settings)

    # 4. Single additions to the maps
    for name, views in FUSED.items():
        if all(view in maps.views for view in views):
            measure(f"200 samples, {name}", [by_theta("", partial(maps.fused, views=views))])
    for name, evidence_of in (("deterministic", maps.deterministic), ("200 samples", maps.samples)):
        for change, settings in widened(evidence_of).items():
            measure(f"{name}, {change}", settings)
        measure(f"{name}, walk", walks(evidence_of, affinities, WALK_STEPS))
        measure(f"{name} x Gaussian", [by_theta(f"{w}", times_gaussian(evidence_of, w)) for w in (0.5, 0.7, 0.85, 1.0)])
    measure(
        "deterministic, percentile", [by_theta(f"{q}", percentile(maps.deterministic, q)) for q in (70, 80, 90, 95)]
    )
    measure("200 samples, 90th percentile", [by_theta("", lambda image: maps.samples(image, "200 p90"))])
    measure("200 samples, mean alone", [by_theta("", maps.mean)])
    measure("votes of 200 samples", [by_theta(f"{t}", lambda image, t=t: maps.votes(image, t)) for t in VOTE_THETAS])
    measure("200 samples, CRF", [dense_crf(maps.samples, parameters, CRF_THETAS) for parameters in CRF_AT_MAP_SIZE])
    measure(
        "200 samples, confident labels",
        [confident_labels(maps.samples, CRF_AT_MAP_SIZE[0], CRF_THETAS, ratio) for ratio in (0.5, 1.0)],
    )
    record.setdefault("theta", []).append(theta_rows(maps, tune, report, found["200 samples"]))
    return found


def maker(
    head: StochasticHead, recipe: Recipe, cache: Path, view: str, drop_rate: float
) -> Callable[[Image], ImageMaps]:
    def make(image: Image) -> ImageMaps:
        return make_maps(
            head,
            recipe,
            cache,
            image,
            view,
            drop_rate=drop_rate,
            nums_of_samples=(10, 50, 100, 200),
            vote_thetas=VOTE_THETAS,
            with_percentile=True,
        )

    return make


def row(name: str, choices: Sequence[Choice]) -> str:
    """A line of the table: mean and, of several heads, the spread from least to most."""

    def cell(figure: str) -> str:
        values = [getattr(choice.report, figure) for choice in choices]
        spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
        return f"{np.mean(values):.3f}{spread}"

    return f"| {name} | " + " | ".join(cell(f) for f in ("miou", "miou_several", "precision", "recall")) + " |"


if __name__ == "__main__":
    main()
