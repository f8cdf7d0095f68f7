"""Compares runs: the settings in which they differ, and their metrics side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.evaluation.metrics import trained_in_words
from jobs.run.directory import Run
from jobs.steps.evaluation_state import read_metrics

SHOWN = {"mean_iou": "mIoU", "foreground_precision": "fg precision", "foreground_recall": "fg recall"}


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


def metrics_side_by_side(runs: Sequence[Run]) -> list[list[str]]:
    """Rows of all metrics of the runs: the labels, the images and the metric, then each run's value or '-'.

    If a run has measured the same labels with several settings, the last measurement counts.
    """
    found = [{_identity(record): record for record in read_metrics(run)} for run in runs]
    kinds = list(dict.fromkeys(kind for each in found for kind in each))
    rows = []
    for kind in kinds:
        counts = sorted({each[kind]["num_images"] for each in found if kind in each})
        images = "" if len(counts) == 1 else f" (of {' or '.join(map(str, counts))} images)"
        for name, title in SHOWN.items():
            values = [_figure(each.get(kind), name) for each in found]
            rows.append([f"{kind}{images}, {title}", *values])
    return rows


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
