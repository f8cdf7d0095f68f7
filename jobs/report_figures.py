"""What a report says of a run's evaluation: figures grouped as they may be compared, with what was set otherwise."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.figures import skipped_in_words
from jobs.report_facts import Setting
from jobs.run import Run
from jobs.step_states import RunState, read_figures


@dataclass(frozen=True)
class Measured:
    """Figures over the same images in the same frame; `notes` says for each what was set otherwise than now."""

    splits: tuple[str, ...]
    part: str
    resolution: str
    size: str
    num_images: int
    left_out: Mapping[str, int]
    num_foreign: int  # masks without a pixel of any of their image's classes
    skipped: tuple[str, ...]  # in words
    figures: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]

    @property
    def is_trial(self) -> bool:
        """Whether settings were tried here, on the tune part."""
        return self.part == "tune"


def measured_figures(run: Run, settings: Sequence[Setting], state: RunState) -> list[Measured]:
    """What `evaluate` has measured, grouped by images and frame; the trials of the tune part last."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for figure in read_figures(run):
        groups[tuple(figure["splits"]), figure["part"], figure["resolution"]].append(figure)
    now = {setting.key: setting.value for setting in settings}
    found = [_measured(group, now, state) for group in groups.values()]
    return sorted(found, key=lambda measured: measured.is_trial)


def _measured(group: Sequence[dict[str, Any]], now: Mapping[str, Any], state: RunState) -> Measured:
    noted = [(figure, _made_otherwise(figure, now, state)) for figure in group]
    noted.sort(key=lambda pair: pair[1] != "")  # those of now first
    group, notes = [figure for figure, _ in noted], tuple(note for _, note in noted)
    first = group[0]
    kinds = [figure["labels"] + (f" by {note}" if note else "") for figure, note in zip(group, notes, strict=True)]
    return Measured(
        splits=tuple(first["splits"]),
        part=first["part"],
        resolution=first["resolution"],
        size=first["size"],
        num_images=first["num_images"],
        left_out=first["left_out"],
        num_foreign=max(figure.get("num_foreign", 0) for figure in group),
        skipped=tuple(skipped_in_words(zip(kinds, (figure.get("skipped", {}) for figure in group), strict=True))),
        figures=tuple(group),
        notes=notes,
    )


def _made_otherwise(figure: Mapping[str, Any], now: Mapping[str, Any], state: RunState) -> str:
    """'seeds.theta = 0.5' where a figure was measured with another value than the run has now."""
    used = {f"{section}.{key}": value for section, keys in figure["settings"].items() for key, value in keys.items()}
    others = [f"{key} = {value}" for key, value in used.items() if value != now.get(key, value)]
    if figure["classifier"] != state.trainings["classifier"].sha256:
        others.insert(0, "an earlier classifier")
    if figure.get("segmenter") not in (None, *(state.trainings[name].sha256 for name in ("segmenter", "retrained"))):
        others.insert(0, "an earlier network")
    return ", ".join(others)


def headline(measured: Sequence[Measured]) -> tuple[Measured, Mapping[str, Any]] | None:
    """The one figure to name first: the stored seeds by the present settings, at image resolution if it can be."""
    candidates = [
        (each, figure)
        for each in measured
        for figure, note in zip(each.figures, each.notes, strict=True)
        if figure["labels"] == "seeds" and not note and not each.is_trial
    ]
    return min(candidates, key=lambda pair: pair[0].resolution != "image", default=None)
