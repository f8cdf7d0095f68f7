"""A run's metrics for the report: in groups that can be compared, with the settings that have changed since."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.evaluation.metrics import skipped_in_words
from jobs.reporting.facts import Setting
from jobs.run.directory import Run
from jobs.steps.evaluation_state import MASKS_CHANGED, MasksNow, read_metrics
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


def measured_metrics(run: Run, settings: Sequence[Setting], state: RunState) -> list[Measured]:
    """The metrics that `evaluate` has recorded, grouped by images and resolution; trials of the tune part come last."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for record in read_metrics(run):
        groups[tuple(record["splits"]), record["part"], record["resolution"]].append(record)
    now = {setting.key: setting.value for setting in settings}
    masks = MasksNow(run.manifest())
    found = [_measured(group, now, state, masks) for group in groups.values()]
    return sorted(found, key=lambda measured: measured.is_trial)


def _measured(group: Sequence[dict[str, Any]], now: Mapping[str, Any], state: RunState, masks: MasksNow) -> Measured:
    noted = [(record, _made_otherwise(record, now, state, masks)) for record in group]
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


def _made_otherwise(record: Mapping[str, Any], now: Mapping[str, Any], state: RunState, masks: MasksNow) -> str:
    """What has changed since the metrics were measured: settings such as 'seeds.theta = 0.5', networks or masks."""
    used = {f"{section}.{key}": value for section, keys in record["settings"].items() for key, value in keys.items()}
    others = [f"{key} = {value}" for key, value in used.items() if value != now.get(key, value)]
    if record["classifier"] not in (None, state.trainings["classifier"].sha256):
        others.insert(0, "an earlier classifier")
    if record.get("segmenter") not in (None, *(state.trainings[name].sha256 for name in ("segmenter", "retrained"))):
        others.insert(0, "an earlier network")
    if not masks.were_measured_by(record):
        others.append(f"earlier masks ({MASKS_CHANGED})")
    return ", ".join(others)


def headline(measured: Sequence[Measured]) -> tuple[Measured, Mapping[str, Any]] | None:
    """The main metrics: those of the stored seeds with the current settings, at image resolution if possible."""
    candidates = [
        (each, record)
        for each in measured
        for record, note in zip(each.metrics, each.notes, strict=True)
        if record["labels"] == "seeds" and not note and not each.is_trial
    ]
    return min(candidates, key=lambda pair: pair[0].resolution != "image", default=None)
