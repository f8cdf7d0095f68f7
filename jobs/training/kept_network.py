"""Chooses the network that a finished training keeps: `model.pt`, with its record and marker `complete.json`.

`model.pt` is a copy of `last.pt` (the network of the last epoch) or of `best.pt` (that of the best validation).
"""

import hashlib
from typing import Any

from ficklenet.model_file import model_record
from jobs.run.training_record import read_complete
from storage.location import Location
from storage.records import seal


def keep_epoch(folder: Location, name: str, keep: str) -> dict[str, Any]:
    """Makes the network of the last or the best epoch the run's network, and returns its metrics.

    The marker is deleted first and written last, so it never describes another file.

    Args:
        folder: the folder of the training's results.
        name: the step.
        keep: "last" or "best".

    Raises:
        ValueError: this network does not exist, or its file is damaged.
    """
    complete = folder / "complete.json"
    record = read_complete(folder) or {}
    if _is_kept(record, keep):
        return record["metrics"]
    data, found = _read_epoch(folder, name, keep)
    complete.delete()
    (folder / "model.pt").write_bytes(data)
    record = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "kept": keep,
        "metrics": found["about"]["metrics"],
        "class_names": found["spec"]["class_names"],
        "geometry": {name: value for name, value in found["spec"].items() if name != "class_names"},
        "config": found["about"]["config"],
        "versions": found["about"]["versions"],
        "fingerprint": found["about"]["fingerprint"],
    }
    complete.write_bytes(seal(record, indent=1))
    return record["metrics"]


def will_change(folder: Location, name: str, keep: str) -> bool:
    """Whether `keep_epoch` makes another network the one of a finished training.

    Raises:
        ValueError: as `keep_epoch`.
    """
    record = read_complete(folder)
    if record is None or _is_kept(record, keep):
        return False
    data, _ = _read_epoch(folder, name, keep)
    return hashlib.sha256(data).hexdigest() != record["sha256"]


def _is_kept(record: dict[str, Any], keep: str) -> bool:
    return bool(record) and record.get("kept", "last") == keep  # older records have no `kept`; they kept the last


def _read_epoch(folder: Location, name: str, keep: str) -> tuple[bytes, dict[str, Any]]:
    """The file of the last or the best epoch's network, and what it says about itself."""
    source = folder / f"{keep}.pt"
    if not source.exists():
        raise ValueError(f"{name}.keep: given '{keep}', but there is no {source}. Train again with --restart {name}.")
    data = source.read_bytes()
    try:
        return data, model_record(data)
    except ValueError as error:
        raise ValueError(
            f"{source}: damaged, {error}. Put it back from a copy, or train again: --restart {name}."
        ) from error
