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
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project need not be installed

import numpy as np
import torch
from machine import describe
from voc6_calibration import theta_rows
from voc6_data import Image, load_images
from voc6_maps import Recipe, head_of, kept_maps, make_maps, validation_map
from voc6_measure import Choice, Setting, by_theta, choose
from voc6_refine import confident_labels, dense_crf, learned_cells, walks
from voc6_rows import HeadMaps, classifier_free_rows, mixed, percentile, times_gaussian, widened

from ficklenet.crf import CrfParameters
from ficklenet.propagation import Likeness

CRF_AT_MAP_SIZE = [CrfParameters(10.0, 0.375, weight, colour) for weight in (4.0, 10.0) for colour in (13.0, 30.0)]
CRF_THETAS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5)
WALK_STEPS = (2, 4, 8, 16)
VOTE_THETAS = (0.1, 0.2, 0.35, 0.5)
DROP_RATES = (0.7, 0.5, 0.3, 0.0)


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
    for seed in given.seeds:
        for name, choice in rows_of_head(seed, given.cache, of_part, record).items():
            chosen[name].append(choice)
            print(seed, row(name, [choice]), flush=True)
        record["rows"] = {name: [asdict(choice) for choice in choices] for name, choices in chosen.items()}
        given.out.write_text(json.dumps(record, indent=1))
    print("\n| evidence | mIoU | mIoU, several classes | fg precision | fg recall |\n|---|---|---|---|---|")
    for name, choices in chosen.items():
        print(row(name, choices))


def rows_of_head(seed: int, cache: Path, of_part: dict[str, list[Image]], record: dict) -> dict[str, Choice]:
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

    # 2. Single kinds of evidence
    rows: dict[str, list[Setting]] = {"deterministic": [by_theta("", maps.deterministic)]}
    rows |= {f"deterministic, {name}": settings for name, settings in widened(maps.deterministic).items()}
    for count in (10, 50, 100, 200):
        rows[f"{count} samples"] = [by_theta("", lambda image, count=count: maps.samples(image, f"{count}"))]
    rows |= {f"200 samples, {name}": settings for name, settings in widened(maps.samples).items()}
    rows["200 samples, 90th percentile"] = [by_theta("", lambda image: maps.samples(image, "200 p90"))]
    rows["deterministic, percentile"] = [by_theta(f"{q}", percentile(maps.deterministic, q)) for q in (70, 80, 90, 95)]
    rows["200 samples, mean alone"] = [by_theta("", maps.mean)]
    rows["votes of 200 samples"] = [by_theta(f"{t}", lambda image, t=t: maps.votes(image, t)) for t in VOTE_THETAS]
    rows["200 samples x Gaussian"] = [by_theta(f"{w}", times_gaussian(maps.samples, w)) for w in (0.5, 0.7, 0.85, 1.0)]

    # 3. Refinements
    for name, evidence_of in (("deterministic", maps.deterministic), ("200 samples", maps.samples)):
        rows[f"{name}, walk"] = [
            setting
            for likeness in (Likeness(), Likeness(colour_deviation=None))
            for setting in walks(evidence_of, cache, likeness, WALK_STEPS)
        ]
        rows[f"{name}, CRF"] = [dense_crf(evidence_of, parameters, CRF_THETAS) for parameters in CRF_AT_MAP_SIZE]
        rows[f"{name}, confident labels"] = [
            confident_labels(evidence_of, CRF_AT_MAP_SIZE[0], CRF_THETAS, ratio) for ratio in (0.5, 1.0)
        ]
    found = {name: choose(settings, tune, report) for name, settings in rows.items()}

    # 4. Cells learned from the seeds
    for name, evidence_of in (("deterministic", maps.deterministic), ("200 samples", maps.samples)):
        learned = learned_cells(evidence_of, found[name].threshold, train, cache, seed)
        settings = [by_theta(f"map^{a}", mixed(evidence_of, learned, a)) for a in (0.0, 0.3, 0.5, 0.7)]
        found[f"{name}, cells learned"] = choose(settings, tune, report)
    record.setdefault("theta", []).append(theta_rows(maps, tune, report, found["200 samples"]))
    return found


def maker(head, recipe: Recipe, cache: Path, view: str, drop_rate: float):
    def make(image: Image):
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
            with_absent_classes=view == "321",
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
