"""The plain data that a training leaves in its step's folder: `complete.json` and `metrics.jsonl`.

`complete.json` is the marker of a finished training. `metrics.jsonl` has a line per epoch.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from storage.location import Location


@dataclass(frozen=True)
class TrainingRecord:
    """How far a training is.

    Attributes:
        sha256: of the network it finished with; None as long as it has not finished.
        metrics: of its last epoch, or of the epoch that was kept.
        epochs: the metrics of each finished epoch.
    """

    sha256: str | None
    metrics: Mapping[str, Any]
    epochs: tuple[Mapping[str, Any], ...]

    @property
    def num_epochs(self) -> int:
        """How many are finished; the one that was kept may be an earlier one."""
        return max(int(line.get("epoch", 0)) for line in (self.metrics, *self.epochs[-1:]))


def read_training(folder: Location) -> TrainingRecord:
    """The record of a training; an empty one where it was never started."""
    complete, epochs = read_complete(folder) or {}, read_epochs(folder)
    metrics = complete.get("metrics") or (epochs[-1] if epochs else {})
    return TrainingRecord(complete.get("sha256"), metrics, tuple(epochs))


def read_complete(folder: Location) -> dict[str, Any] | None:
    """The marker of a finished training; None where there is none."""
    place = folder / "complete.json"
    return json.loads(place.read_bytes()) if place.exists() else None


def read_epochs(folder: Location) -> list[dict[str, Any]]:
    """The metrics of each epoch; none where there is no `metrics.jsonl`."""
    place = folder / "metrics.jsonl"
    return [json.loads(line) for line in place.read_bytes().splitlines()] if place.exists() else []


def kept_bytes(folder: Location) -> tuple[bytes, str]:
    """The file of the network that the run keeps, and its sha256.

    Raises:
        ValueError: the file is not the one the training finished with.
    """
    data = (folder / "model.pt").read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != (read_complete(folder) or {}).get("sha256"):
        raise ValueError(
            f"{folder / 'model.pt'}: not the file that the training finished with. Train with --restart {folder.name}."
        )
    return data, sha256
