"""Compares runs: the settings in which they differ, and their metrics side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.evaluation.metrics import trained_in_words
from jobs.run.directory import Run
from jobs.run.training_record import read_trainings
from jobs.steps.evaluation_state import ResultsNow, read_metrics

KINDS = ("predictions", "predictions without CRF", "pseudo-labels", "densified seeds", "seeds")  # in this order
SHOWN = {"mean_iou": "mIoU", "foreground_precision": "fg precision", "foreground_recall": "fg recall"}


@dataclass(frozen=True)
class MetricRow:
    """A metric of all runs.

    Attributes:
        title: the labels, the images and the metric.
        cells: each run's value, or "-"; figures of earlier results have the mark of a note, such as "0.358 [1]".
        is_same: whether all runs have the same value, and none is of earlier results.
    """

    title: str
    cells: tuple[str, ...]
    is_same: bool


@dataclass(frozen=True)
class Metrics:
    """The metrics of runs side by side.

    Attributes:
        notes: what the marks in the rows mean, such as "[1] measured with an earlier network".
    """

    rows: tuple[MetricRow, ...]
    notes: tuple[str, ...]

    @property
    def different(self) -> list[list[str]]:
        return [[row.title, *row.cells] for row in self.rows if not row.is_same]

    @property
    def same(self) -> list[list[str]]:
        return [[row.title, *row.cells] for row in self.rows if row.is_same]


def short_names(runs: Sequence[Run]) -> list[str]:
    """The last parts of the runs' paths, as many as are needed to tell the runs apart."""
    paths = [run.uri.split("/") for run in runs]
    for depth in range(1, max(map(len, paths))):
        names = ["/".join(path[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [run.uri for run in runs]


def different_settings(runs: Sequence[Run]) -> list[list[str]]:
    """Rows of the keys with different values: the key, then each run's value.

    The section `cluster` is left out, because it changes no result.
    """
    flat = [_flat(run.config.model_dump(mode="json", exclude={"cluster"})) for run in runs]
    keys = [key for key in flat[0] if len({str(each[key]) for each in flat}) > 1]
    return [[key, *(_text(each[key]) for each in flat)] for key in keys]


def metrics_side_by_side(runs: Sequence[Run]) -> Metrics:
    """All metrics of the runs, in an order that begins with the mIoU of predictions at image resolution.

    If a run has measured the same labels with several settings, those with its current ones count, or else the last.
    """
    found = [_latest(run) for run in runs]
    notes = list(dict.fromkeys(note for each in found for _, note in each.values() if note))
    marks = {note: f" [{number}]" for number, note in enumerate(notes, start=1)}
    rows = list[tuple[tuple[Any, ...], MetricRow]]()
    for kind in dict.fromkeys(kind for each in found for kind in each):
        first = next(each[kind][0] for each in found if kind in each)
        counts = sorted({each[kind][0]["num_images"] for each in found if kind in each})
        images = "" if len(counts) == 1 else f" (of {' or '.join(map(str, counts))} images)"
        for number, (name, title) in enumerate(SHOWN.items()):
            pairs = [each.get(kind, (None, "")) for each in found]
            cells = tuple(_figure(record, name) + marks.get(note, "") for record, note in pairs)
            is_same = len(set(cells)) == 1 and not any(note for _, note in pairs)
            is_alone = any(record is None for record, _ in pairs)  # a run has not measured it
            order = (
                number,
                is_alone,
                first["resolution"] != "image",
                bool(first.get("trained_on")),
                _rank(first["labels"]),
            )
            rows.append((order, MetricRow(f"{kind}{images}, {title}", cells, is_same)))
    return Metrics(
        tuple(row for _, row in sorted(rows, key=lambda pair: pair[0])),
        tuple(f"{mark.strip()} measured with {note}" for note, mark in marks.items()),
    )


def _rank(labels: str) -> int:
    """The place of a kind of labels in the order of `KINDS`; all others come last."""
    return KINDS.index(labels) if labels in KINDS else len(KINDS)


def _latest(run: Run) -> dict[str, tuple[Mapping[str, Any], str]]:
    """The records of a run by what they measured, each with what has changed in the run since."""
    now, found = ResultsNow(run, run.manifest(), read_trainings(run)), dict[str, tuple[Mapping[str, Any], str]]()
    for record in read_metrics(run):
        kind, note = _identity(record), now.since(record)
        if not note or found.get(kind, (None, note))[1]:
            found[kind] = record, note
    return found


def _identity(record: Mapping[str, Any]) -> str:
    part = "" if record["part"] == "all" else f", {record['part']} part"
    mark = trained_in_words(record["splits"], record.get("trained_on", ()))
    labels = f"{record['labels']} ({mark})" if mark else record["labels"]
    return f"{labels}, {'+'.join(record['splits']) or 'no split'}{part}, {record['resolution']} resolution"


def _figure(record: Mapping[str, Any] | None, name: str) -> str:
    return "-" if record is None or record[name] is None else f"{record[name]:.3f}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _text(value: Any) -> str:
    if value is None:
        return "unset"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
