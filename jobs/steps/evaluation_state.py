"""Whether a run's evaluation is there and current, read from `evaluation/metrics.json`."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.run.directory import Run
from jobs.run.selection import measurable_splits
from jobs.run.training_record import TrainingRecord
from storage.manifest import Manifest
from storage.records import read_json


@dataclass(frozen=True)
class EvaluationState:
    """How far the evaluation is.

    Attributes:
        state: "done", "outdated", "not started", or "not possible": no image to report on has a mask.
        num_metrics: kinds of labels measured, trials on the tune part not counted.
        command: what measures, "" where nothing can be.
    """

    state: str
    num_metrics: int
    command: str


def evaluation_state(run: Run, manifest: Manifest, trainings: Mapping[str, TrainingRecord]) -> EvaluationState:
    """The state of the evaluation; what was measured on the tune part does not count, as settings are tried there."""
    metrics = [record for record in read_metrics(run) if record["part"] != "tune"]
    measurable, stale = measurable_splits(manifest, run.config), _stale_splits(run, metrics, trainings)
    if not measurable and (stale or not metrics):
        state = "not possible"
    else:
        state = "outdated" if stale else "done" if metrics else "not started"
    only_validation = bool(measurable) and set(measurable[0]) <= set(run.config.data.val_splits)
    splits = stale or (measurable[0] if only_validation else ())
    return EvaluationState(state, len(metrics), evaluate_command(run, splits) if measurable else "")


def evaluate_command(run: Run, splits: Sequence[str]) -> str:
    """What measures some splits; without any, the training splits."""
    return shlex.join(["python", "jobs/evaluate.py", "--run", run.uri, *(f"--split={split}" for split in splits)])


def read_metrics(run: Run) -> list[dict[str, Any]]:
    """What `evaluate` has measured, as `jobs.evaluation.metrics` records it.

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
        raise ValueError(f"{place}: damaged, holds no metrics. {remedy}")
    return metrics


def is_of_these_networks(metrics: Mapping[str, Any], trainings: Mapping[str, TrainingRecord]) -> bool:
    """Whether metrics are of the classifier, and of one of the segmentation networks, that the run has now."""
    networks = (None, *(trainings[name].sha256 for name in ("segmenter", "retrained")))
    classifiers = (None, trainings["classifier"].sha256)  # None: a network's, measured where there are no maps
    return metrics["classifier"] in classifiers and metrics.get("segmenter") in networks


def _stale_splits(
    run: Run, metrics: Sequence[Mapping[str, Any]], trainings: Mapping[str, TrainingRecord]
) -> Sequence[str]:
    """The first splits whose labels were measured before they changed, and not since.

    Seeds count by their settings too; a network's metrics only where its predictions would be measured again.
    """
    seeds = (run.step("seeds").fingerprint() or {}).get("seeds", {})
    predicted = ((run.step("predictions").fingerprint() or {}).get("predictions") or {}).get("splits", [])
    is_current: dict[tuple[Any, ...], bool] = {}
    for record in metrics:
        is_of_network = record.get("segmenter") is not None
        if is_of_network and not set(record["splits"]) <= set(predicted):
            continue
        kind = tuple(record["splits"]), is_of_network
        is_current[kind] = is_current.get(kind, False) or (
            is_of_these_networks(record, trainings)
            and (is_of_network or all(record["settings"]["seeds"].get(key) == seeds[key] for key in seeds))
        )
    return next((kind[0] for kind, current in is_current.items() if not current), ())
