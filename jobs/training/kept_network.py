"""Which network a finished training keeps: `model.pt`, and `complete.json` about it, the marker.

`model.pt` is a copy of `last.pt` or of `best.pt`, the last epoch's network and that of the best validation.
"""

import hashlib
from typing import Any

from ficklenet.model_file import model_record
from jobs.run.training_record import read_complete
from storage.location import Location
from storage.records import seal


def keep_epoch(folder: Location, name: str, keep: str) -> dict[str, Any]:
    """Makes the last or the best epoch's network of a finished training the run's; returns its metrics.

    The marker is deleted first and written last, so it never lies beside a file that it does not describe.

    Args:
        folder: of the training's results.
        name: of the step.
        keep: "last" or "best".

    Raises:
        ValueError: that network is not there.
    """
    complete = folder / "complete.json"
    record = read_complete(folder) or {}
    if record.get("kept", "last" if record else None) == keep:  # before `kept`, it was always the last
        return record["metrics"]
    source = folder / f"{keep}.pt"
    if not source.exists():
        raise ValueError(f"{name}.keep: given '{keep}', but {source} is not there. Train with --restart {name}.")
    data = source.read_bytes()
    found = model_record(data)
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
