"""A run's metrics for the report: in groups that can be compared, with the settings that have changed since."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.evaluation.metrics import skipped_in_words
from jobs.run.directory import Run
from jobs.steps.evaluation_state import ResultsNow, read_metrics
from jobs.steps.states import RunState


@dataclass(frozen=True)
class Measured:
    """Metrics of the same images at the same resolution; `notes` has the settings that have changed since."""

    splits: tuple[str, ...]
    part: str
    resolution: str
    size: str
    num_images: int
    left_out: Mapping[str, int]
    num_foreign: int  # masks without a pixel of any of their image's classes
    skipped: tuple[str, ...]  # in words
    metrics: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]

    @property
    def is_trial(self) -> bool:
        """Whether these metrics are trials of settings, on the tune part."""
        return self.part == "tune"

    @property
    def absent(self) -> list[str]:
        """The classes that no mask shows, but some labels have: their IoU is 0."""
        found = dict[str, None]()
        for record in self.metrics:
            for (name, iou), row in zip(record["iou"].items(), record["confusion_matrix"], strict=True):
                if iou == 0 and not any(row):
                    found[name] = None
        return list(found)


def measured_metrics(run: Run, state: RunState) -> list[Measured]:
    """The metrics that `evaluate` has recorded, grouped by images and resolution; trials of the tune part come last."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for record in read_metrics(run):
        groups[tuple(record["splits"]), record["part"], record["resolution"]].append(record)
    now = ResultsNow(run, run.manifest(), state.trainings)
    found = [_measured(group, now) for group in groups.values()]
    return sorted(found, key=lambda measured: measured.is_trial)


def _measured(group: Sequence[dict[str, Any]], now: ResultsNow) -> Measured:
    noted = [(record, now.since(record)) for record in group]
    noted.sort(key=lambda pair: pair[1] != "")  # metrics with the current settings first
    group, notes = [record for record, _ in noted], tuple(note for _, note in noted)
    first = group[0]
    kinds = [record["labels"] + (f" with {note}" if note else "") for record, note in zip(group, notes, strict=True)]
    return Measured(
        splits=tuple(first["splits"]),
        part=first["part"],
        resolution=first["resolution"],
        size=first["size"],
        num_images=first["num_images"],
        left_out=first["left_out"],
        num_foreign=max(record.get("num_foreign", 0) for record in group),
        skipped=tuple(skipped_in_words(zip(kinds, (record.get("skipped", {}) for record in group), strict=True))),
        metrics=tuple(group),
        notes=notes,
    )


def headline(measured: Sequence[Measured]) -> tuple[Measured, Mapping[str, Any]] | None:
    """The main metrics: those of the stored seeds with the current settings, at image resolution if possible."""
    candidates = [
        (each, record)
        for each in measured
        for record, note in zip(each.metrics, each.notes, strict=True)
        if record["labels"] == "seeds" and not note and not each.is_trial
    ]
    return min(candidates, key=lambda pair: pair[0].resolution != "image", default=None)
