"""The records that a training writes into its step's folder: `complete.json` and `metrics.jsonl`.

`complete.json` marks a finished training. `metrics.jsonl` has one line per epoch.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ficklenet.torch_file import changed_part
from jobs.run.directory import Run
from jobs.run.steps import TRAININGS
from storage.location import Location
from storage.records import read_json, read_json_lines

_COMPLETE_REMEDY = "Delete it, then run the training again. It writes the file again and trains nothing twice."


@dataclass(frozen=True)
class TrainingRecord:
    """The progress of a training.

    Attributes:
        sha256: the hash of the finished network; None if the training is not finished.
        metrics: those of the last epoch, or of the epoch that was kept.
        epochs: the metrics of each finished epoch.
    """

    sha256: str | None
    metrics: Mapping[str, Any]
    epochs: tuple[Mapping[str, Any], ...]

    @property
    def num_epochs(self) -> int:
        """The number of finished epochs; the kept network may be from an earlier one."""
        return max(int(line.get("epoch", 0)) for line in (self.metrics, *self.epochs[-1:]))


def read_training(folder: Location) -> TrainingRecord:
    """The record of a training; it is empty if the training was never started."""
    complete, epochs = read_complete(folder) or {}, read_epochs(folder)
    metrics = complete.get("metrics") or (epochs[-1] if epochs else {})
    return TrainingRecord(complete.get("sha256"), metrics, tuple(epochs))


def read_trainings(run: Run) -> dict[str, TrainingRecord]:
    """The records of all trainings of a run, by the names of their steps."""
    return {row.name: read_training(run.step(row.name).data()) for row in TRAININGS}


def read_complete(folder: Location) -> dict[str, Any] | None:
    """The marker of a finished training; None if there is none.

    Raises:
        ValueError: it is damaged.
    """
    try:
        complete = read_json(folder / "complete.json", "the record of a finished training", _COMPLETE_REMEDY)
    except FileNotFoundError:
        return None
    missing = [key for key in ("sha256", "metrics", "class_names", "geometry") if key not in complete]
    if missing:
        raise ValueError(f"{folder / 'complete.json'}: damaged, it has no {missing[0]}. {_COMPLETE_REMEDY}")
    return complete


def read_epochs(folder: Location) -> list[dict[str, Any]]:
    """The metrics of each epoch; an empty list if there is no `metrics.jsonl`.

    Raises:
        ValueError: it is damaged.
    """
    remedy = "Delete it, then run the same command again. Only the curves of earlier epochs are lost."
    return read_json_lines(folder / "metrics.jsonl", "an epoch's metrics", remedy)


def kept_bytes(run: Run, name: str) -> tuple[bytes, str]:
    """The bytes of the run's finished network, and their sha256.

    Raises:
        ValueError: the file is not the one that the training wrote at its end.
    """
    folder = run.step(name).data()
    data = (folder / "model.pt").read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != (read_complete(folder) or {}).get("sha256"):
        raise ValueError(
            f"{folder / 'model.pt'}: not the file that the training wrote. Put it back from a copy, or train again: "
            f"'{run.step_command(name, '--restart', name)}'."
        )
    return data, sha256


def check_trainings(run: Run) -> tuple[list[str], list[str]]:
    """Reads everything that the trainings of a run keep.

    Returns:
        The names of the trainings whose networks are what was written, and a sentence for each damaged file.
    """
    sound, problems = list[str](), list[str]()
    for row in TRAININGS:
        try:
            read_training(run.step(row.name).data())
            found = require_sound_networks(run, [row.name])
            _require_sound_epochs(run, found)
            sound += found
        except ValueError as error:
            problems.append(str(error))
    return sound, problems


def require_sound_networks(run: Run, names: Sequence[str]) -> list[str]:
    """Reads finished networks whole, and refuses one that is not what its training wrote.

    Args:
        names: steps; those that are no trainings, or not finished, are left out.

    Returns:
        The names of the networks that were read.

    Raises:
        ValueError: as in `kept_bytes`.
    """
    found = [row.name for row in TRAININGS if row.name in names and read_complete(run.step(row.name).data())]
    for name in found:
        kept_bytes(run, name)
    return found


def _require_sound_epochs(run: Run, names: Sequence[str]) -> None:
    """Refuses a network of the best or the last epoch of a finished training if its bytes have changed.

    Raises:
        ValueError: there is such a file.
    """
    for name in names:
        folder = run.step(name).data()
        kept = (read_complete(folder) or {}).get("kept", "last")
        for epoch in ("best", "last"):
            place = folder / f"{epoch}.pt"
            if place.exists() and (reason := changed_part(place.read_bytes())):
                copy = f"Copy {folder / 'model.pt'} to it, which is the same network" if kept == epoch else "Delete it"
                raise ValueError(
                    f"{place}: damaged, {reason}. The run uses model.pt beside it, which is whole. {copy}; it is only "
                    f"needed if {name}.keep is changed to {epoch}."
                )
