"""The metrics of a run: as records in <run>/evaluation/metrics.json, and as tables."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cluster.words import plural
from ficklenet.metrics import ConfusionMatrix, label_metrics
from jobs.run.directory import Run
from jobs.steps.evaluation_state import read_metrics
from storage.records import seal

IDENTITY = ("labels", "splits", "part", "resolution", "settings")  # newer metrics replace those equal in these

SUMMARY = {
    "mean_iou": "mIoU",
    "mean_iou_several": "of several",
    "foreground_precision": "fg precision",
    "foreground_recall": "fg recall",
    "background_precision": "bg precision",
    "background_recall": "bg recall",
    "coverage": "coverage",
}
MEANINGS = {
    "mean_iou": "the mean of the IoU over the background and the classes. IoU: of the pixels labelled so or truly so, "
    "the share that is both. A label that no pixel has either way is left out.",
    "mean_iou_several": "mIoU over only those images whose mask has several classes: whether each class is found where "
    "it is, and not only how much is covered.",
    "foreground_precision": "of the pixels labelled with a class, the share that truly has it.",
    "foreground_recall": "of the pixels that truly have a class, the share labelled with it.",
    "background_precision": "of the pixels labelled background, the share that truly is.",
    "background_recall": "of the pixels that truly are background, the share labelled so.",
    "coverage": "the share of the pixels that is labelled at all, as a class or as background.",
}


@dataclass(frozen=True)
class MeasuredLabels:
    """One kind of label maps, measured over some images.

    Attributes:
        labels: what was measured, "seeds" for example.
        splits, part: over which images; see `jobs.run.selection`.
        resolution: "map" or "image": the frame in which labels met the truth.
        size: that of the frame, "17 x 17"; "of each image" at image resolution.
        settings: by which the labels were made.
        classifier: sha256 of the classifier whose maps they were made of; None where the run has no maps.
        segmenter: sha256 of the segmentation network that predicted them, None of other labels.
        num_images: measured.
        left_out: images of the selection that could not be measured, by reason.
        num_foreign: measured ones whose mask has no pixel of any of the image's classes.
        skipped: measured ones that the step which made the labels skipped, so that all is missed, by its reason.
        num_several: measured ones whose mask has several classes; `matrix_several` is theirs, None if there are none.
        chosen: the parameters of a baseline, in words.
    """

    labels: str
    splits: tuple[str, ...]
    part: str
    resolution: str
    size: str
    settings: Mapping[str, Any]
    classifier: str | None
    segmenter: str | None
    num_images: int
    left_out: Mapping[str, int]
    num_foreign: int
    skipped: Mapping[str, int]
    matrix: ConfusionMatrix
    num_several: int = 0
    matrix_several: ConfusionMatrix | None = None
    chosen: str = ""

    @property
    def name(self) -> str:
        """What was measured, with a baseline's parameters."""
        return f"{self.labels} ({self.chosen})" if self.chosen else self.labels

    @property
    def figures(self) -> dict[str, float]:
        """What `SUMMARY` names; NaN where no pixel counts."""
        found = asdict(label_metrics(self.matrix))
        several = math.nan if self.matrix_several is None else label_metrics(self.matrix_several).mean_iou
        return {name: value for name, value in found.items() if name != "iou"} | {"mean_iou_several": several}

    def record(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Plain data for JSON; a value that no pixel counts for is null."""
        found = {name: _or_null(value) for name, value in self.figures.items()}
        names = ["background", *class_names]
        iou = {name: _or_null(v) for name, v in zip(names, label_metrics(self.matrix).iou, strict=True)}
        about = {name: value for name, value in vars(self).items() if name not in ("matrix", "matrix_several")}
        return {**about, **found, "iou": iou, "confusion_matrix": self.matrix.tolist()}


def store_metrics(run: Run, measured: Sequence[MeasuredLabels], class_names: Sequence[str]) -> None:
    """Adds new metrics to those the run has; they replace earlier ones of the same labels, images and settings."""
    place = run.location / "evaluation" / "metrics.json"
    records = [json.loads(json.dumps(each.record(class_names))) for each in measured]
    replaced = [_identity(record) for record in records]
    kept = [record for record in read_metrics(run) if _identity(record) not in replaced]
    place.write_bytes(seal({"metrics": kept + records}, indent=1))


def skipped_in_words(measured: Iterable[tuple[str, Mapping[str, int]]]) -> list[str]:
    """'1 image skipped by an earlier step (empty file): all missed', and by which labels where not by all.

    Args:
        measured: kinds of labels, and the number of measured images that have none, by reason.
    """
    without: dict[tuple[str, int], dict[str, None]] = {}
    kinds: dict[str, None] = {}
    for labels, reasons in measured:
        kinds[labels] = None
        for reason, count in reasons.items():
            without.setdefault((reason, count), {})[labels] = None
    return [
        f"{plural(count, 'image')} skipped by an earlier step ({reason}): all missed"
        + (f" by {', '.join(labels)}" if len(labels) < len(kinds) else "")
        for (reason, count), labels in without.items()
    ]


def summary_table(measured: Sequence[MeasuredLabels]) -> str:
    """One line per kind of labels, and one that explains the columns."""
    rows = [["", *SUMMARY.values()]]
    for each in measured:
        rows.append([each.name, *(_text(each.figures[name]) for name in SUMMARY)])
    num_several = measured[0].num_several
    note = (
        f"of several: mIoU of the {plural(num_several, 'image')} with several classes; fg: pixels of classes, bg: of "
        "the background; coverage: the share labelled at all"
    )
    return f"{aligned(rows)}\n  ({note}; -: no such pixels, mIoU is over the rest)"


def class_table(measured: Sequence[MeasuredLabels], class_names: Sequence[str]) -> str:
    """IoU per class: one line per class, one column per kind of labels."""
    rows = [["IoU", *(each.labels for each in measured)]]
    columns = [label_metrics(each.matrix).iou for each in measured]
    for name, *values in zip(["background", *class_names], *columns, strict=True):
        rows.append([name, *map(_text, values)])
    return aligned(rows)


def _identity(record: Mapping[str, Any]) -> list[Any]:
    return [record[name] for name in IDENTITY]


def _or_null(value: float) -> float | None:
    return None if math.isnan(value) else value


def _text(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join(f"  {line.rstrip()}" for line in lines)
