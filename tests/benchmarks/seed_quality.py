"""Seed quality against masks: normalisation, background cue, number of samples N and drop rate p, in one table.

    python tests/benchmarks/seed_quality.py --run /data/voc --split train_aug --out results
    python tests/benchmarks/seed_quality.py --run /data/voc --split train_aug --out results --part tune --quick

The second measures only what decides between two classifiers (of more or fewer epochs, say), on the tune part alone.

Needs a prepared run with masks and a trained classifier. Every image runs through the backbone once; all variants
are made from the same features. Settings are chosen on the tune part (a quarter of the ids, by hash; this reads
its masks) and everything is reported on the rest. Map resolution; a pixel predicted 255 is a miss.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
from tqdm import tqdm

from ficklenet.crf import AT_MAP_SIZE, refine
from ficklenet.folding import Normalization
from ficklenet.localizer import deterministic_maps, localize
from ficklenet.masks import mask_key
from ficklenet.metrics import confusion_matrix, label_metrics
from ficklenet.resampling import resize_square
from ficklenet.seeds import aggregate, background_cue, densify, resize_labels
from ficklenet.transforms import normalize, resize_maps
from jobs.run.directory import Run, open_run
from jobs.run.selection import is_tuning_image
from jobs.steps.networks import load_classifier
from storage.images import read_image, read_mask, read_saliency
from storage.manifest import ManifestRow

IGNORE = 255
THETAS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6)
EVIDENCE = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)  # background where every class's maximum is below
SALIENCY = 0.06


@dataclass(frozen=True)
class Maker:
    """How maps are made: N samples at drop rate p, or the expectation (N = 0)."""

    num_samples: int
    drop_rate: float
    normalization: Normalization
    mask_seed: int = 0

    @property
    def name(self) -> str:
        scale = "max" if self.normalization.kind == "max" else f"p{self.normalization.percentile:g}"
        samples = "deterministic" if self.num_samples == 0 else f"N={self.num_samples}"
        return f"{samples} p={self.drop_rate:g} {scale}" + (f" masks {self.mask_seed}" if self.mask_seed else "")


@dataclass(frozen=True)
class Rule:
    """How maps become seeds."""

    theta: float
    background: str  # "saliency", or "evidence<0.1"
    priority: str


BY_MAXIMUM, BY_PERCENTILE = Normalization("max"), Normalization("percentile", 90.0)
NORMALIZATIONS = (BY_MAXIMUM, *(Normalization("percentile", q) for q in (60.0, 70.0, 80.0, 90.0, 95.0)))
COMPARED = [Maker(n, 0.9, scale) for scale in (BY_MAXIMUM, BY_PERCENTILE) for n in (0, 200)]
TUNED = [Maker(n, 0.9, scale) for n in (0, 200) for scale in NORMALIZATIONS]
MAKERS = [
    *TUNED,
    *(Maker(n, 0.9, scale) for scale in (BY_MAXIMUM, BY_PERCENTILE) for n in (10, 50, 100, 400)),
    *(Maker(200, p, scale) for scale in (BY_MAXIMUM, BY_PERCENTILE) for p in (0.0, 0.3, 0.5, 0.7)),
    *(Maker(0, p, scale) for scale in (BY_MAXIMUM, BY_PERCENTILE) for p in (0.0, 0.5)),
    *(Maker(200, 0.9, BY_PERCENTILE, mask_seed) for mask_seed in (1, 2)),
]
RULES = [
    Rule(theta, background, priority)
    for theta in THETAS
    for background in ("saliency", *(f"evidence<{value}" for value in EVIDENCE))
    for priority in ("background", "foreground")
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--split", required=True)
    parser.add_argument("--every", type=int, default=1, help="only every so many-th image of the split")
    parser.add_argument("--part", choices=["tune", "report", "all"], default="all")
    parser.add_argument(
        "--quick", action="store_true", help="only N = 200 and the deterministic map, nothing densified"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", required=True, help="folder for seed_quality.json and seed_quality.png")
    given = parser.parse_args()
    run = open_run(given.run)
    parts = ("tune", "report") if given.part == "all" else (given.part,)
    indices = [
        i
        for i, row in enumerate(run.manifest().iter_rows())
        if row.split == given.split and not row.problem and part_of(row.image_id) in parts
    ]
    counts: dict[tuple[str, str, Rule], np.ndarray] = defaultdict(lambda: np.zeros((1, 1), np.int64))
    with ProcessPoolExecutor(given.workers) as pool:
        indices = indices[:: given.every]
        chunks = np.array_split(indices, max(1, len(indices) // 4))
        work = partial(measure, given.run, COMPARED if given.quick else MAKERS, () if given.quick else COMPARED)
        for share in tqdm(pool.map(work, chunks), total=len(chunks), unit="4 images"):
            for key, matrix in share.items():
                counts[key] = counts[key] + matrix
    report(counts, Path(given.out), given)


_LOADED: dict[str, tuple[Run, torch.nn.Module]] = {}


def part_of(image_id: str) -> str:
    return "tune" if is_tuning_image(image_id) else "report"


def measure(
    run_uri: str, makers: Sequence[Maker], densified_makers: Sequence[Maker], indices: np.ndarray
) -> dict[tuple[str, str, Rule], np.ndarray]:
    """Confusion matrices by (part, maker, rule) of some images."""
    if run_uri not in _LOADED:
        torch.set_num_threads(1)
        run = open_run(run_uri)
        _LOADED[run_uri] = run, load_classifier(run).to(memory_format=torch.channels_last)
    run, classifier = _LOADED[run_uri]
    counts: dict[tuple[str, str, Rule], np.ndarray] = {}
    for index in indices:
        row = run.manifest().rows(int(index), int(index) + 1)[0]
        part = part_of(row.image_id)
        for key, matrix in measure_image(run, classifier, row, makers, densified_makers).items():
            counts[part, *key] = counts.get((part, *key), 0) + matrix
    return counts


@torch.inference_mode()
def measure_image(
    run: Run,
    classifier: torch.nn.Module,
    row: ManifestRow,
    makers: Sequence[Maker],
    densified_makers: Sequence[Maker],
) -> dict[tuple[str, Rule], np.ndarray]:
    manifest = run.manifest()
    image = read_image(row.uri)
    pixels = resize_square(image, classifier.spec.input_size)
    small_image = resize_square(image, classifier.spec.grid[0]).transpose(1, 2, 0)
    features = classifier.backbone(normalize(torch.from_numpy(pixels)[None]).to(memory_format=torch.channels_last))
    grid = classifier.spec.grid
    truth = resize_labels(read_mask(row.mask_uri, manifest.class_values), grid)
    saliency = (
        resize_maps(torch.from_numpy(read_saliency(row.saliency_uri)), grid).numpy() if row.saliency_uri else None
    )
    classes_1S = torch.tensor([row.labels])
    counts = {}
    for maker in makers:
        if maker.num_samples == 0:
            max_SHW = mean_SHW = deterministic_maps(
                features.contiguous(),
                classifier.head,
                classes_1S,
                drop_rate=maker.drop_rate,
                normalization=maker.normalization,
            )[0].numpy()
        else:
            found = localize(
                features.contiguous(),
                classifier.head,
                classes_1S,
                [mask_key(run.config.seed + maker.mask_seed, row.image_id)],
                num_samples=maker.num_samples,
                drop_rate=maker.drop_rate,
                normalization=maker.normalization,
            )
            max_SHW, mean_SHW = found.max_BSHW[0].numpy(), found.mean_BSHW[0].numpy()
        if maker in densified_makers:
            for rule, labels in densified(max_SHW, mean_SHW, saliency, np.asarray(row.labels), small_image):
                counts[maker.name, rule] = confusion_matrix(truth, labels, manifest.num_classes, IGNORE)
        for rule in RULES:
            if rule.background == "saliency" and saliency is None:
                continue
            threshold = 0.0 if rule.background == "saliency" else float(rule.background.split("<")[1])
            background = background_cue(
                max_SHW,
                saliency if rule.background == "saliency" else None,
                saliency_threshold=SALIENCY,
                evidence_threshold=threshold,
            )
            seeds = aggregate(
                max_SHW,
                mean_SHW,
                np.asarray(row.labels),
                background,
                theta=rule.theta,
                priority=rule.priority,  # type: ignore[arg-type]
                ignore_value=IGNORE,
            )
            counts[maker.name, rule] = confusion_matrix(truth, seeds, manifest.num_classes, IGNORE)
    return counts


def densified(
    max_SHW: np.ndarray, mean_SHW: np.ndarray, saliency: np.ndarray | None, classes: np.ndarray, image: np.ndarray
) -> Iterator[tuple[Rule, np.ndarray]]:
    """Labels of every cell by three foreground scores, both backgrounds, without and with the CRF at map size."""
    share = mean_SHW / np.maximum(mean_SHW.max(axis=0), 1e-12)
    foregrounds = {"max": max_SHW, "max x share of mean": max_SHW * share, "mean": mean_SHW}
    backgrounds = {f"(1 - max)^{power:g}": (1 - max_SHW.max(axis=0)) ** power for power in (0.5, 1.0, 2.0)}
    if saliency is not None:
        backgrounds["saliency"] = 1 - saliency
    for background, background_HW in backgrounds.items():
        for score, foreground_SHW in foregrounds.items():
            scores = np.concatenate([background_HW[None], foreground_SHW]).astype(np.float32)
            yield Rule(0.0, background, f"densified {score}"), densify(scores, classes)
            probabilities = scores / np.maximum(scores.sum(axis=0), 1e-12)
            refined = refine(probabilities, image, AT_MAP_SIZE)
            yield Rule(0.0, background, f"densified {score} + CRF"), densify(refined, classes)


def report(counts: dict[tuple[str, str, Rule], np.ndarray], out: Path, given: argparse.Namespace) -> None:
    """Writes all figures, prints the best rule of each maker (chosen on tune) as measured on report."""
    out.mkdir(parents=True, exist_ok=True)
    figures = [
        {"part": part, "maps": maker, **asdict(rule), **asdict(label_metrics(matrix))}
        for (part, maker, rule), matrix in counts.items()
    ]
    (out / "seed_quality.json").write_text(json.dumps({"split": given.split, "figures": figures}, indent=0))
    if given.part != "all":
        print(f"best on the {given.part} part (this reads masks); map resolution")
        for source in ("saliency", "evidence"):
            for maker in COMPARED:
                rows = [f for f in seeds_of(figures, maker) if f["background"].startswith(source)]
                print(_row(max(rows, key=lambda figure: figure["mean_iou"])))
        return
    print("chosen on tune (this reads masks), measured on report; map resolution")
    print("| maps | background | theta | priority | fg P | fg R | bg P | bg R | coverage | mIoU |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for source in ("saliency", "evidence"):
        for maker in MAKERS:
            rows = [f for f in seeds_of(figures, maker) if f["background"].startswith(source)]
            if rows:
                print(_row(_same_rule(rows, best_on_tune(rows))))
    print("\nequally tuned: normalisation, theta, background and priority chosen on tune for each; report")
    for source in ("saliency", "evidence"):
        for num_samples in (0, 200):
            makers = [maker for maker in TUNED if maker.num_samples == num_samples]
            rows = [f for m in makers for f in seeds_of(figures, m) if f["background"].startswith(source)]
            if rows:
                best = best_on_tune(rows)
                print(_row(_same_rule([f for f in rows if f["maps"] == best["maps"]], best)))
    print("\ntheta 0.35, background by saliency, background wins; report")
    fixed = {"theta": 0.35, "background": "saliency", "priority": "background", "part": "report"}
    print_rows([f for f in figures if fixed.items() <= f.items()])
    print("\ndensified; tune (to choose), then report")
    for part in ("tune", "report"):
        print_rows([f for f in figures if f["part"] == part and f["priority"].startswith("densified")])
    plot(figures, out / "seed_quality.png")


def seeds_of(figures: list[dict], maker: Maker) -> list[dict]:
    return [f for f in figures if f["maps"] == maker.name and f["theta"] > 0]


def best_on_tune(figures: list[dict]) -> dict:
    return max((f for f in figures if f["part"] == "tune"), key=lambda figure: figure["mean_iou"])


def print_rows(figures: list[dict]) -> None:
    for figure in sorted(figures, key=lambda f: (f["background"], f["priority"], f["maps"])):
        print(_row(figure))


def _same_rule(rows: list[dict], chosen: dict) -> dict:
    keys = ("theta", "background", "priority")
    return next(f for f in rows if f["part"] == "report" and all(f[key] == chosen[key] for key in keys))


def _row(f: dict) -> str:
    figures = ("foreground_precision", "foreground_recall", "background_precision", "background_recall")
    values = " | ".join(f"{f[name]:.3f}" for name in (*figures, "coverage", "mean_iou"))
    return f"| {f['maps']} | {f['background']} | {f['theta']} | {f['priority']} | {values} |"


def plot(figures: list[dict], file: Path) -> None:
    """mIoU of the best rule (chosen on tune) against N at p = 0.9, and against p at N = 200."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for scale in (BY_MAXIMUM, BY_PERCENTILE):
        for axis, makers, key in (
            (axes[0], [Maker(n, 0.9, scale) for n in (0, 10, 50, 100, 200, 400)], "num_samples"),
            (axes[1], [Maker(200, p, scale) for p in (0.0, 0.3, 0.5, 0.7, 0.9)], "drop_rate"),
        ):
            heights = []
            for maker in makers:
                rows = seeds_of(figures, maker)
                heights.append(_same_rule(rows, best_on_tune(rows))["mean_iou"])
            axis.plot([str(getattr(maker, key)) for maker in makers], heights, "o-", label=scale.kind)
    axes[0].set(xlabel="samples N (0: deterministic), p = 0.9", ylabel="seed mIoU, report part, map resolution")
    axes[1].set(xlabel="drop rate p in inference, N = 200")
    axes[0].legend(title="normalisation")
    figure.tight_layout()
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
