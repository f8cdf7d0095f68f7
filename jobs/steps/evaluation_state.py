"""Whether a run has an evaluation and whether it is up to date, read from `evaluation/metrics.json`."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jobs.run.directory import Run
from jobs.run.fingerprints import MASKS_CHANGED, step_id
from jobs.run.selection import FEW_MASKS, Part, Resolution, Selection, masks_id, measurable_splits, num_masks
from jobs.run.steps import BY_NAME
from jobs.run.trained_masks import splits_with_trained_masks
from jobs.run.training_record import TrainingRecord
from storage.manifest import Manifest
from storage.records import read_json

RESULTS_CHANGED = "results were made again since"

_EARLIER_MASKS = f"earlier masks ({MASKS_CHANGED})"
_OLDER_SEEDS = {"maps": "maps"}  # the maps of seeds, if they are not recorded
_NEEDED = {"pseudo-labels": "pseudo_labels"}  # the step that figures of these labels need; others need seeds


@dataclass(frozen=True)
class EvaluationState:
    """The state of the evaluation.

    Attributes:
        state: "done", "outdated", "not started", or "not possible" if no image to report on has a mask.
        num_metrics: number of measured kinds of labels, without trials on the tune part.
        command: the commands that measure what is not measured yet, in one line; "" if nothing can be measured.
        note: why it is outdated: `MASKS_CHANGED` if only masks have changed, else `RESULTS_CHANGED`; "" if it is not.
    """

    state: str
    num_metrics: int
    command: str
    note: str = ""


@dataclass(frozen=True)
class OutdatedFigures:
    """Figures of some images that were measured, and whose results or masks have changed since.

    Attributes:
        resolutions: those at which they were measured, in the order of `jobs/evaluate.py`.
        deterministic: whether they include labels of the deterministic maps.
        is_of_masks: whether all of them are outdated because masks were added or changed.
    """

    selection: Selection
    resolutions: tuple[Resolution, ...]
    deterministic: bool
    is_of_masks: bool

    def command(self, run: Run) -> str:
        """The command that measures them again."""
        is_part = not set(self.selection.splits) & set(run.config.data.val_splits)
        flags = [f"--split={split}" for split in self.selection.splits]
        flags += [f"--part={self.selection.part}"] if is_part else []
        flags += ["--deterministic"] if self.deterministic else []
        return shlex.join(["python", "jobs/evaluate.py", "--run", run.uri, *flags])


def evaluation_state(run: Run, manifest: Manifest, trainings: Mapping[str, TrainingRecord]) -> EvaluationState:
    """The state of the evaluation. Metrics of the tune part do not count, because settings are tried there."""
    metrics = [record for record in read_metrics(run) if record["part"] != "tune"]
    measurable = measurable_splits(manifest, run.config)
    outdated = outdated_figures(run, manifest, trainings)
    if not measurable and (not metrics or _is_any_changed(run, metrics, manifest, trainings)):
        state = "not possible"
    else:
        state = "outdated" if outdated else "done" if metrics else "not started"
    measured, seen = {split for record in metrics for split in record["splits"]}, splits_with_trained_masks(run)
    unseen = [found for group in measurable if (found := [split for split in group if split not in seen])]
    others = [group for group in unseen or measurable if not set(group) <= measured]
    again = [figures.command(run) for figures in outdated]
    first = [evaluate_command(run, splits) for splits in others or ([] if again else measurable)]
    note = ""
    if state == "outdated":
        note = MASKS_CHANGED if all(figures.is_of_masks for figures in outdated) else RESULTS_CHANGED
    command = " && ".join(dict.fromkeys([*again, *first])) if measurable else ""
    return EvaluationState(state, len(metrics), command, note)


def outdated_figures(
    run: Run, manifest: Manifest, trainings: Mapping[str, TrainingRecord]
) -> tuple[OutdatedFigures, ...]:
    """All figures that are outdated and can be measured again, without those of the tune part.

    Figures with other settings are no longer outdated if the same labels were measured with the current ones too.
    """
    now, changes = ResultsNow(run, manifest, trainings), dict[tuple[Any, ...], list[list[str]]]()
    for record in read_metrics(run):
        selection = Selection(tuple(record["splits"]), record["part"])
        if record["part"] != "tune" and now.can_measure(record["labels"], selection):
            changes.setdefault((selection, record["labels"], record["resolution"]), []).append(now.changes(record))
    found = dict[Selection, list[tuple[str, str, bool]]]()
    for (selection, labels, resolution), each in changes.items():
        if all(each):
            is_of_masks = any(_EARLIER_MASKS in texts for texts in each)
            found.setdefault(selection, []).append((labels, resolution, is_of_masks))
    every: tuple[Resolution, ...] = ("map", "image")
    return tuple(
        OutdatedFigures(
            selection,
            tuple(resolution for resolution in every if resolution in {one for _, one, _ in figures}),
            any("deterministic" in labels for labels, _, _ in figures),
            all(is_of_masks for _, _, is_of_masks in figures),
        )
        for selection, figures in found.items()
    )


def _is_any_changed(
    run: Run, metrics: Sequence[Mapping[str, Any]], manifest: Manifest, trainings: Mapping[str, TrainingRecord]
) -> bool:
    now = ResultsNow(run, manifest, trainings)
    return any(now.changes(record) for record in metrics)


def evaluate_commands(run: Run, groups: Sequence[Sequence[str]]) -> str:
    """One line with the commands that measure some groups of splits.

    Args:
        groups: training splits or validation splits, as `measurable_splits` gives them.
    """
    return " && ".join(dict.fromkeys(evaluate_command(run, splits) for splits in groups))


def evaluate_command(run: Run, splits: Sequence[str]) -> str:
    """The command that measures the part of some splits that `part_to_measure` gives."""
    part = part_to_measure(run, splits)
    flags = [*(f"--split={split}" for split in splits), *([f"--part={part}"] if part else [])]
    return shlex.join(["python", "jobs/evaluate.py", "--run", run.uri, *flags])


def part_to_measure(run: Run, splits: Sequence[str]) -> Part | None:
    """ "all" if few images of the report part of these splits have a mask, else None, the usual part.

    The tune part counts as much as the report part as long as no settings were tried on it.
    """
    manifest, is_tried = run.manifest(), bool(set(splits) & tried_splits(read_metrics(run)))
    if is_tried or set(splits) & set(run.config.data.val_splits):
        return None
    report, tune = (num_masks(manifest, Selection(tuple(splits), part), FEW_MASKS) for part in ("report", "tune"))
    return "all" if tune and 0 < report < FEW_MASKS else None


def tried_splits(metrics: Sequence[Mapping[str, Any]]) -> set[str]:
    """The splits on whose tune part settings were tried, so that figures of this part are too high."""
    return {split for record in metrics if record["part"] == "tune" for split in record["splits"]}


def read_metrics(run: Run) -> list[dict[str, Any]]:
    """The metrics that `evaluate` has recorded, in the format of `jobs.evaluation.metrics`.

    Raises:
        ValueError: the file is damaged.
    """
    place = run.location / "evaluation" / "metrics.json"
    remedy = "Delete it, then run evaluate again."
    try:
        metrics = read_json(place, "the metrics of an evaluation", remedy).get("metrics")
    except FileNotFoundError:
        return []
    if not isinstance(metrics, list):
        raise ValueError(f"{place}: damaged, it contains no metrics. {remedy}")
    return metrics


@dataclass(frozen=True)
class MasksNow:
    """The masks that the manifest has now, to compare metrics with; the ids are computed when they are needed."""

    manifest: Manifest
    ids: dict[Selection, str] = field(default_factory=dict)

    def were_measured_by(self, metrics: Mapping[str, Any]) -> bool:
        """Whether metrics were measured with these masks. True for metrics of versions that recorded no masks."""
        if "masks" not in metrics:
            return True
        selection = Selection(tuple(metrics["splits"]), metrics["part"])
        if selection not in self.ids:
            self.ids[selection] = masks_id(self.manifest, selection)
        return bool(metrics["masks"] == self.ids[selection])


@dataclass(frozen=True)
class ResultsNow:
    """The results and masks that a run has now, to find figures of earlier ones."""

    run: Run
    manifest: Manifest
    trainings: Mapping[str, TrainingRecord]

    def since(self, metrics: Mapping[str, Any]) -> str:
        """What has changed since figures were measured, such as "an earlier network, seeds.theta = 0.5"; else ""."""
        return ", ".join(self.changes(metrics))

    def changes(self, metrics: Mapping[str, Any]) -> list[str]:
        """What has changed since figures were measured: networks, settings or masks, in words. Empty if nothing has.

        A trial of settings names them in its labels, so these settings count as unchanged.
        """
        tried = {text.partition("=")[0] for text in metrics["labels"].split(", ") if "=" in text}
        used = {
            f"{section}.{key}": value for section, keys in metrics["settings"].items() for key, value in keys.items()
        }
        found = [
            f"{key} = {value}"
            for key, value in used.items()
            if key not in tried and value != self._settings.get(key, value)
        ]
        if metrics["classifier"] not in (None, self.trainings["classifier"].sha256):
            found.insert(0, "an earlier classifier")
        networks = (None, *(self.trainings[name].sha256 for name in ("segmenter", "retrained")))
        if metrics.get("segmenter") not in networks:
            found.insert(0, "an earlier network")
        made_from = metrics.get("made_from", {})  # earlier versions did not record it
        if not found and any(self._ids[name] not in (None, id_) for name, id_ in made_from.items()):
            found.append(f"earlier {' and '.join(BY_NAME[name].title for name in made_from)}")
        if not self._masks.were_measured_by(metrics):
            found.append(_EARLIER_MASKS)
        return found

    def can_measure(self, labels: str, selection: Selection) -> bool:
        """Whether `jobs/evaluate.py` would measure these labels of these images: the step that made them is there."""
        if not num_masks(self.manifest, selection, enough=1):
            return False
        if not labels.startswith("predictions"):
            return self.run.step(_NEEDED.get(labels, "seeds")).fingerprint() is not None
        predicted = (self.run.step("predictions").fingerprint() or {}).get("predictions", {})
        is_refined = labels == "predictions" or predicted.get("refine", True)
        return bool(is_refined and set(selection.splits) <= set(predicted.get("splits", [])))

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """The settings with which the steps were started, by key."""
        found = dict[str, Any]()
        for name in ("maps", "seeds", "pseudo_labels", "predictions"):
            if fingerprint := self.run.step(name).fingerprint():
                section = (_OLDER_SEEDS if name == "seeds" else {}) | fingerprint.get(name, {})
                found |= {f"{name}.{key}": value for key, value in section.items()}
        return found

    @cached_property
    def _ids(self) -> dict[str, str | None]:
        return {name: step_id(self.run, name) for name in ("maps", "refined", "seeds", "pseudo_labels")}

    @cached_property
    def _masks(self) -> MasksNow:
        return MasksNow(self.manifest)
