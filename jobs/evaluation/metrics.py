"""The metrics of a run, as records in <run>/evaluation/metrics.json and as tables."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cluster.words import plural
from ficklenet.metrics import ConfusionMatrix, label_metrics
from jobs.run.directory import Run
from jobs.steps.evaluation_state import read_metrics
from storage.records import seal

IDENTITY = ("labels", "splits", "part", "resolution", "settings")  # newer metrics replace those with equal values

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
    "mean_iou": "the mean IoU over the background and the classes. The IoU of a label: the pixels that have it both in "
    "the result and in the mask, divided by the pixels that have it in at least one of them. Labels that no pixel has "
    "are left out. A class that no mask shows has the IoU 0 where it is predicted.",
    "mean_iou_several": "mIoU over the images with several classes in their mask. It shows whether each class is found "
    "at its place, and not only how much is covered.",
    "foreground_precision": "of the pixels labelled with a class, the share that truly has it.",
    "foreground_recall": "of the pixels that truly have a class, the share labelled with it.",
    "background_precision": "of the pixels labelled background, the share that truly is.",
    "background_recall": "of the pixels that truly are background, the share labelled so.",
    "coverage": "the share of the pixels that have a label: a class or background.",
}


@dataclass(frozen=True)
class MeasuredLabels:
    """The metrics of one kind of label maps over some images.

    Attributes:
        labels: the kind of labels, such as "seeds".
        splits, part: the measured images; see `jobs.run.selection`.
        resolution: "map" or "image", the resolution at which labels were compared with the masks.
        size: "17 x 17", the size at map resolution; "of each image" at image resolution.
        settings: the settings that made the labels.
        classifier: sha256 of the classifier that made the maps; None if the run has no maps.
        segmenter: sha256 of the segmentation network that predicted the labels; None for other labels.
        masks: `jobs.run.selection.masks_id` of the measured masks.
        num_images: the number of measured images.
        left_out: the number of images of the selection that could not be measured, by reason.
        num_foreign: the number of measured images whose mask has no pixel of any of the image's classes.
        skipped: the number of measured images that the labels' step skipped, by reason; all their pixels are misses.
        num_several: the number of measured images with several classes in their mask; `matrix_several` is their matrix,
            None if there are none.
        chosen: the parameters of a baseline, in words.
        trained_on: those of `splits` on whose masks the network of these predictions was trained.
        made_from: {name: id} of the step whose results were measured; empty for predictions, which `segmenter` and
            `settings` identify.
    """

    labels: str
    splits: tuple[str, ...]
    part: str
    resolution: str
    size: str
    settings: Mapping[str, Any]
    classifier: str | None
    segmenter: str | None
    masks: str
    num_images: int
    left_out: Mapping[str, int]
    num_foreign: int
    skipped: Mapping[str, int]
    matrix: ConfusionMatrix
    num_several: int = 0
    matrix_several: ConfusionMatrix | None = None
    chosen: str = ""
    trained_on: tuple[str, ...] = ()
    made_from: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The kind of labels, with a baseline's parameters, or with the mark that the network has seen the masks."""
        about = self.chosen or trained_in_words(self.splits, self.trained_on)
        return f"{self.labels} ({about})" if about else self.labels

    @property
    def figures(self) -> dict[str, float]:
        """The metrics that `SUMMARY` names; NaN if no pixel counts."""
        found = asdict(label_metrics(self.matrix))
        several = math.nan if self.matrix_several is None else label_metrics(self.matrix_several).mean_iou
        return {name: value for name, value in found.items() if name != "iou"} | {"mean_iou_several": several}

    def record(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Plain data for JSON; a value is null if no pixel counts."""
        found = {name: _or_null(value) for name, value in self.figures.items()}
        names = ["background", *class_names]
        iou = {name: _or_null(v) for name, v in zip(names, label_metrics(self.matrix).iou, strict=True)}
        about = {name: value for name, value in vars(self).items() if name not in ("matrix", "matrix_several")}
        return {**about, **found, "iou": iou, "confusion_matrix": self.matrix.tolist()}


def store_metrics(run: Run, measured: Sequence[MeasuredLabels], class_names: Sequence[str]) -> None:
    """Adds new metrics to the run's; they replace earlier ones of the same labels, images and settings."""
    place = run.location / "evaluation" / "metrics.json"
    records = [json.loads(json.dumps(each.record(class_names))) for each in measured]
    replaced = [_identity(record) for record in records]
    kept = [record for record in read_metrics(run) if _identity(record) not in replaced]
    place.write_bytes(seal({"metrics": kept + records}, indent=1))


def trained_in_words(splits: Sequence[str], trained_on: Sequence[str]) -> str:
    """The mark beside a network's figures on masks that it was trained on; "" if it has seen none of them."""
    if not trained_on:
        return ""
    if set(splits) == set(trained_on):
        return "trained on these masks"
    return f"trained on masks of {', '.join(trained_on)}"


def skipped_in_words(measured: Iterable[tuple[str, Mapping[str, int]]]) -> list[str]:
    """Sentences such as '1 image was skipped by an earlier step (empty file): all its pixels count as misses'.

    Args:
        measured: kinds of labels, and the number of measured images that have no labels, by reason.
    """
    without: dict[tuple[str, int], dict[str, None]] = {}
    kinds: dict[str, None] = {}
    for labels, reasons in measured:
        kinds[labels] = None
        for reason, count in reasons.items():
            without.setdefault((reason, count), {})[labels] = None
    return [
        f"{plural(count, 'image')} {'was' if count == 1 else 'were'} skipped by an earlier step ({reason}): all "
        f"{'its' if count == 1 else 'their'} pixels count as misses"
        + (f" in {', '.join(labels)}" if len(labels) < len(kinds) else "")
        for (reason, count), labels in without.items()
    ]


def summary_table(measured: Sequence[MeasuredLabels]) -> str:
    """One line per kind of labels, and one line that explains the columns."""
    rows = [["", *SUMMARY.values()]]
    for each in measured:
        rows.append([each.name, *(_text(each.figures[name]) for name in SUMMARY)])
    num_several = measured[0].num_several
    note = (
        f"of several: mIoU of the {plural(num_several, 'image')} with several classes; fg: pixels of classes; bg: "
        "pixels of the background; coverage: the share of pixels with a label"
    )
    return f"{aligned(rows)}\n  ({note}; -: no such pixels, so mIoU leaves it out)"


def class_table(measured: Sequence[MeasuredLabels], class_names: Sequence[str]) -> str:
    """IoU per class: one line per class, one column per kind of labels."""
    rows = [["IoU", *(each.name for each in measured)]]
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
    """A table as text: the first column is aligned to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join(f"  {line.rstrip()}" for line in lines)
