"""The segmentation network that a finished training left in a run."""

import json
from dataclasses import dataclass
from typing import Any

from ficklenet.segmenter import Segmenter, SegmenterSpec, unpack_segmenter
from jobs.kept_model import kept_bytes
from jobs.run import Run


@dataclass(frozen=True)
class TrainedSegmenter:
    """The record of a finished training, `complete.json`."""

    spec: SegmenterSpec
    sha256: str
    metrics: dict[str, Any]


def require_segmenter(run: Run, class_names: tuple[str, ...], asked_by: str) -> TrainedSegmenter:
    """The finished training of a run.

    Args:
        asked_by: the job, for the message.

    Raises:
        ValueError: there is none, or it was trained for another class list.
    """
    folder = run.location / "segmenter"
    if not (folder / "complete.json").exists():
        raise ValueError(
            f"{asked_by}: {run.uri} has no trained segmentation network. "
            f"Run 'python jobs/train_segmentation.py --run {run.uri}' first."
        )
    model, sha256 = load_segmenter(run)
    if model.spec.class_names != class_names:
        raise ValueError(
            f"{folder}: the network knows {list(model.spec.class_names)}, the manifest {list(class_names)}. "
            "Train it for this class list in another run, or with --restart segmenter."
        )
    return TrainedSegmenter(model.spec, sha256, json.loads((folder / "complete.json").read_bytes())["metrics"])


def load_segmenter(run: Run) -> tuple[Segmenter, str]:
    """The run's segmentation network, on CPU, and the sha256 of its file.

    Raises:
        ValueError: the file is not the one the training finished with.
    """
    data, sha256 = kept_bytes(run.location / "segmenter")
    return unpack_segmenter(data), sha256
