"""The context of a training worker: its rank, its device, its peers and the checkpoints.

There are two kinds: one for Ray Train's workers, and one for training in this process. A checkpoint is only bytes here.
"""

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from torch import nn

from cluster.errors import ClusterError

Metrics = dict[str, Any]

CHECKPOINT_NAME = "checkpoint.bin"


class TrainingContext(ABC):
    """The context in which a worker function runs.

    Attributes:
        rank: This worker's number, starting at 0.
        world_size: The number of workers; it may differ after a resume.
        local_world_size: The number of workers on this node.
        device: The device this worker trains on.
    """

    rank: int
    world_size: int
    local_world_size: int
    device: torch.device

    @abstractmethod
    def latest(self) -> bytes | None:
        """The latest checkpoint of this training, also from an earlier launch; None if there is none yet."""

    @abstractmethod
    def report(self, metrics: Metrics, checkpoint: bytes | None = None) -> None:
        """Sends metrics to the driver and stores a checkpoint.

        All workers must call it the same number of times; it waits for all of them. Only rank 0's arguments are used.
        """

    @abstractmethod
    def wrap(self, model: nn.Module) -> nn.Module:
        """Moves the model to this worker's device; with several workers, their gradients are averaged."""

    def gather(self, value: Any) -> list[Any]:
        """The values of all workers, by rank. All workers must call it; it waits for all of them."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values


class RayContext(TrainingContext):
    """The context of one of Ray Train's workers.

    Args:
        folder: the training's folder, if it is local. A training in one process may have left a checkpoint there.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.world_size = context.get_world_size()
        self.local_world_size = context.get_local_world_size()
        self.device = ray.train.torch.get_device()

    def latest(self) -> bytes | None:
        here = self._folder / CHECKPOINT_NAME if self._folder else None
        found = [here] if here and here.exists() else []
        checkpoint = ray.train.get_checkpoint()
        with checkpoint.as_directory() if checkpoint else nullcontext() as folder:
            found += [Path(folder, CHECKPOINT_NAME)] if folder else []
            return max(found, key=lambda path: path.stat().st_mtime_ns).read_bytes() if found else None

    def report(self, metrics: Metrics, checkpoint: bytes | None = None) -> None:
        if checkpoint is None or self.rank != 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, CHECKPOINT_NAME).write_bytes(checkpoint)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def wrap(self, model: nn.Module) -> nn.Module:
        return ray.train.torch.prepare_model(model)


def require_local_folder(storage_uri: str) -> None:
    """Refuses a training in this process that would keep its checkpoints elsewhere than in a local folder.

    Raises:
        ClusterError: it is not a local folder.
    """
    if "://" in storage_uri:
        raise ClusterError(
            f"cluster: training in-process keeps its checkpoints in a local folder, not in '{storage_uri}'. "
            "Give a local run, or train with Ray: with '--set cluster.address=', also if the run has recorded "
            "cluster.address=in-process."
        )


class LocalContext(TrainingContext):
    """The context of a worker in this process; the latest checkpoint is one file."""

    rank = 0
    world_size = 1
    local_world_size = 1

    def __init__(self, storage_uri: str, name: str, use_gpu: bool, on_report: Callable[[Metrics], None]) -> None:
        require_local_folder(storage_uri)
        self.device = torch.device("cuda" if use_gpu else "cpu")
        self._path = Path(storage_uri) / name / CHECKPOINT_NAME
        self._on_report = on_report

    def latest(self) -> bytes | None:
        return self._path.read_bytes() if self._path.exists() else None

    def report(self, metrics: Metrics, checkpoint: bytes | None = None) -> None:
        if checkpoint is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_suffix(".tmp")
            temporary.write_bytes(checkpoint)
            os.replace(temporary, self._path)
        self._on_report(metrics)

    def wrap(self, model: nn.Module) -> nn.Module:
        return model.to(self.device)
