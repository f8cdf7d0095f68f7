"""The segmentation networks that finished trainings left in a run: "segmenter" and, optionally, "retrained"."""

import json
from dataclasses import dataclass
from typing import Any

from ficklenet.segmenter import Segmenter, SegmenterSpec, unpack_segmenter
from jobs.kept_model import kept_bytes
from jobs.run import Run
from storage.errors import NotYet

MADE_BY = {"segmenter": "train_segmentation", "retrained": "retrain_segmentation"}


@dataclass(frozen=True)
class TrainedSegmenter:
    """The record of a finished training, `complete.json`."""

    spec: SegmenterSpec
    sha256: str
    metrics: dict[str, Any]


def require_segmenter(
    run: Run, class_names: tuple[str, ...], asked_by: str, name: str = "segmenter"
) -> TrainedSegmenter:
    """A finished training of a run.

    Args:
        asked_by: the job, for the message.
        name: of the training.

    Raises:
        NotYet: there is none.
        ValueError: it was trained for another class list.
    """
    folder = run.location / name
    if not (folder / "complete.json").exists():
        raise NotYet(
            f"{asked_by}: {folder} holds no trained segmentation network. Run '{run.command(MADE_BY[name])}' first."
        )
    model, sha256 = load_segmenter(run, name)
    if model.spec.class_names != class_names:
        raise ValueError(
            f"{folder}: the network knows {list(model.spec.class_names)}, the manifest {list(class_names)}. "
            f"Train it for this class list in another run, or with --restart {name}."
        )
    return TrainedSegmenter(model.spec, sha256, json.loads((folder / "complete.json").read_bytes())["metrics"])


def load_segmenter(run: Run, name: str = "segmenter") -> tuple[Segmenter, str]:
    """A segmentation network of the run, on CPU, and the sha256 of its file.

    Raises:
        ValueError: the file is not the one the training finished with.
    """
    data, sha256 = kept_bytes(run.location / name)
    return unpack_segmenter(data), sha256
