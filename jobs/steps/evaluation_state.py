"""Whether a run has an evaluation and whether it is up to date, read from `evaluation/metrics.json`."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.run.directory import Run
from jobs.run.fingerprints import MASKS_CHANGED
from jobs.run.selection import FEW_MASKS, Part, Selection, masks_id, measurable_splits, num_masks
from jobs.run.trained_masks import splits_with_trained_masks
from jobs.run.training_record import TrainingRecord
from storage.manifest import Manifest
from storage.records import read_json

_CURRENT, _RESULTS_CHANGED = "", "results were made again since"

_OLDER_SEEDS = {"maps": "maps"}  # the maps of seeds, if they are not recorded


@dataclass(frozen=True)
class EvaluationState:
    """The state of the evaluation.

    Attributes:
        state: "done", "outdated", "not started", or "not possible" if no image to report on has a mask.
        num_metrics: number of measured kinds of labels, without trials on the tune part.
        command: the commands that measure what is not measured yet, in one line; "" if nothing can be measured.
        note: `MASKS_CHANGED` if the evaluation is outdated because its figures are of other masks; else "".
    """

    state: str
    num_metrics: int
    command: str
    note: str = ""


def evaluation_state(run: Run, manifest: Manifest, trainings: Mapping[str, TrainingRecord]) -> EvaluationState:
    """The state of the evaluation. Metrics of the tune part do not count, because settings are tried there."""
    metrics = [record for record in read_metrics(run) if record["part"] != "tune"]
    measurable = measurable_splits(manifest, run.config)
    stale, note = _stale_splits(run, metrics, trainings, manifest)
    if not measurable and (stale or not metrics):
        state = "not possible"
    else:
        state = "outdated" if stale else "done" if metrics else "not started"
    measured, seen = {split for record in metrics for split in record["splits"]}, splits_with_trained_masks(run)
    unseen = [found for group in measurable if (found := [split for split in group if split not in seen])]
    others = [group for group in unseen or measurable if not set(group) <= measured]
    command = evaluate_commands(run, [*stale, *others] or measurable) if measurable else ""
    return EvaluationState(state, len(metrics), command, note if state == "outdated" else "")


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


def is_of_these_networks(metrics: Mapping[str, Any], trainings: Mapping[str, TrainingRecord]) -> bool:
    """Whether metrics were measured with the classifier and a segmentation network that the run has now."""
    networks = (None, *(trainings[name].sha256 for name in ("segmenter", "retrained")))
    classifiers = (None, trainings["classifier"].sha256)  # None: a network's metrics, measured without maps
    return metrics["classifier"] in classifiers and metrics.get("segmenter") in networks


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


def _stale_splits(
    run: Run, metrics: Sequence[Mapping[str, Any]], trainings: Mapping[str, TrainingRecord], manifest: Manifest
) -> tuple[list[Sequence[str]], str]:
    """All splits with labels or masks that have changed since they were measured, and `EvaluationState.note`.

    Seeds have also changed if their settings have. A network's metrics count only if its predictions would be measured
    again, and not on masks that it was trained on.
    """
    seeds = (run.step("seeds").fingerprint() or {}).get("seeds", {})
    seeds = _OLDER_SEEDS | seeds if seeds else {}
    predicted = ((run.step("predictions").fingerprint() or {}).get("predictions") or {}).get("splits", [])
    measurable = set(predicted) - set(splits_with_trained_masks(run))
    masks, found = MasksNow(manifest), dict[tuple[Any, ...], set[str]]()
    for record in metrics:
        is_of_network = record.get("segmenter") is not None
        if is_of_network and not set(record["splits"]) <= measurable:
            continue
        kind = tuple(record["splits"]), is_of_network
        is_same_result = is_of_these_networks(record, trainings) and (
            is_of_network or seeds.items() <= (_OLDER_SEEDS | record["settings"]["seeds"]).items()
        )
        reason = _CURRENT if is_same_result else _RESULTS_CHANGED
        found.setdefault(kind, set()).add(reason if masks.were_measured_by(record) else MASKS_CHANGED)
    stale = {kind: reasons for kind, reasons in found.items() if _CURRENT not in reasons}
    is_of_masks = bool(stale) and set.union(*stale.values()) == {MASKS_CHANGED}
    return list(dict.fromkeys(splits for splits, _ in stale)), MASKS_CHANGED if is_of_masks else ""
