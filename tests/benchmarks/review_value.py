"""What the review list is worth: how many of the images that it puts first have a bad mask, against chance.

    python tests/benchmarks/review_value.py --run /data/voc
    python tests/benchmarks/review_value.py --run /data/voc --labels seeds --first 0.1 --below 0.4

Needs a run with maps, labels and true masks. A mask is bad where its IoU with the truth, averaged over the image's
foreground classes (those in the mask or in the truth), is below 0.5; pixels whose truth is 255 are left out. Beside the
list's order stand others that need no truth either. "By chance" is the share of bad masks among all images; the
interval is that of 1,000 random orders (2.5 % to 97.5 %).
"""

import argparse
from collections.abc import Sequence

import numpy as np
from scipy.stats import spearmanr

from jobs.maps.stored_geometry import stored_geometry
from jobs.reporting.gallery import mapped_images, read_truth
from jobs.reporting.review import Doubt, review_list
from jobs.run.directory import Run, open_run
from storage.label_values import ignore_value

ORDERS = {
    "the review list": lambda doubt: (-(doubt.mismatch or 0), -doubt.disagreement, doubt.score),
    "most disagreement first": lambda doubt: (-doubt.disagreement, doubt.score),
    "lowest score first": lambda doubt: doubt.score,
    "highest score first": lambda doubt: -doubt.score,
    "least disagreement first": lambda doubt: doubt.disagreement,
}


def mask_iou(labels: np.ndarray, truth: np.ndarray, ignore: int) -> float | None:
    """IoU of labels (H, W) with the truth, averaged over the foreground classes of both; None where there is none."""
    is_known = truth != ignore
    labels, truth = labels[is_known], truth[is_known]
    classes = set(np.unique(labels)) | set(np.unique(truth))
    found = [
        float(((labels == each) & (truth == each)).sum() / ((labels == each) | (truth == each)).sum())
        for each in classes - {0, ignore}
    ]
    return float(np.mean(found)) if found else None


def ious_of(run: Run, doubts: Sequence[Doubt], step: str) -> dict[str, float]:
    """The IoU of each image's labels, by id; images without a mask are left out."""
    manifest, ignore = run.manifest(), ignore_value(run.manifest().num_classes)
    wanted = {doubt.image_id for doubt in doubts}
    seeds = run.seeds() if step == "seeds" else None
    found = {}
    for row, entry in enumerate(manifest.iter_rows()):
        truth = read_truth(run, manifest, entry) if entry.image_id in wanted else None
        if not isinstance(truth, np.ndarray):
            continue
        if seeds:
            labels = stored_geometry(seeds).resize_labels(seeds.read(row), truth.shape)
        else:
            try:
                labels = run.labels(step).read(entry.image_id)
            except FileNotFoundError:  # predictions have only some splits
                continue
        iou = mask_iou(labels, truth, ignore)
        if iou is not None:
            found[entry.image_id] = iou
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--labels", choices=("predictions", "pseudo_labels", "seeds"), default="pseudo_labels")
    parser.add_argument("--first", type=float, default=0.2, help="share of the images that are looked at")
    parser.add_argument("--below", type=float, default=0.5, help="a mask with a lower IoU is bad")
    given = parser.parse_args()
    run = open_run(given.run)
    manifest = run.manifest()
    mapped = mapped_images(manifest, list(run.step("maps").receipts().values()), without_labels=True)
    doubts = review_list(run, manifest, mapped, run.config.seeds.theta)
    ious = ious_of(run, doubts, given.labels)
    doubts = [doubt for doubt in doubts if doubt.image_id in ious]
    is_bad = np.array([ious[doubt.image_id] < given.below for doubt in doubts])
    number = max(1, round(given.first * len(doubts)))
    chance = is_bad.mean()
    generator = np.random.default_rng(0)
    random = [generator.permutation(is_bad)[:number].mean() for _ in range(1000)]
    low, high = np.quantile(random, [0.025, 0.975])
    print(f"{len(doubts)} images with a mask; {given.labels}: mean IoU {np.mean(list(ious.values())):.3f}")
    print(f"bad (IoU < {given.below:g}): {is_bad.sum()}; looked at: the first {number}")
    print(f"{'by chance':28} {chance:.3f}  ({low:.3f} to {high:.3f})")
    for name, key in ORDERS.items():
        first = sorted(range(len(doubts)), key=lambda place: key(doubts[place]))[:number]
        share = is_bad[first].mean()
        found = f"{is_bad[first].sum()} of {is_bad.sum()} found"
        places = np.argsort(sorted(range(len(doubts)), key=lambda place: key(doubts[place])))
        rho = spearmanr(-places, [1 - ious[doubt.image_id] for doubt in doubts]).statistic
        print(f"{name:28} {share:.3f}  {share / chance:.2f} times chance; {found}; rank correlation {rho:+.3f}")


if __name__ == "__main__":
    main()
