"""Runs a training: one worker function, in Ray Train's workers or in this process.

It starts the workers, joins them for distributed training and keeps their checkpoints. If a process or a node is lost,
it starts them again from the latest checkpoint. The worker function defines the steps, the batches and the content of
checkpoints; in this module a checkpoint is only bytes.
"""

import os
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
from ray.train.v2.api.callback import UserCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.allocator import keep_freed_memory
from cluster.connect import resources, usable_cpus
from cluster.errors import ClusterError
from cluster.training_context import LocalContext, Metrics, RayContext, TrainingContext
from cluster.training_peers import OneAddressConfig
from cluster.words import plural

Worker = Callable[["TrainingContext", dict[str, Any]], None]
"""The training function; it is called once per worker, with its context and the configuration given to `train`."""

POLL_SECONDS = 0.2  # time between fetches of reports by the driver
RESIZE_SECONDS = 60.0
MAX_FAILURES = 3
"""After so many losses of processes or nodes without a new checkpoint in between, the training gives up."""


def train(
    worker: Worker,
    config: dict[str, Any],
    *,
    num_workers: int | tuple[int, int],
    use_gpu: bool,
    storage_uri: str,
    name: str,
    cpus_per_worker: int = 0,
    autoscaling: bool = False,
    resize_seconds: float = RESIZE_SECONDS,
    in_process: bool = False,
    on_report: Callable[[Metrics], None] | None = None,
    on_start: Callable[[], None] | None = None,
) -> Metrics:
    """Runs the worker function to its end. It continues after lost workers, and from where an earlier launch stopped.

    Args:
        worker: The training function; it must be picklable.
        config: The argument of the training function.
        num_workers: The number of processes that train together; or (least, most): as many of them as the cluster has
            room for. This number changes when nodes are added or lost.
        use_gpu: Each worker uses one GPU beside its CPUs.
        storage_uri: Folder or `s3://` prefix for the checkpoints, which every node must be able to reach.
        name: The name of the training in this folder. The same name resumes it.
        cpus_per_worker: The number of CPUs of each worker, and of torch's threads in it. 0: 1 for each worker of Ray
            Train, and all CPUs for a worker in this process.
        autoscaling: The cluster grows on demand, so the training waits for workers that do not fit now.
        resize_seconds: How often a range of workers is compared with the cluster's size. If their number changes, the
            training continues from the latest checkpoint.
        in_process: Run one worker in this process, without Ray; `storage_uri` must then be a local folder.
        on_report: Called in the driver, in order, with the metrics of every report of rank 0.
        on_start: Called in the driver each time that a worker starts.

    Returns:
        The last reported metrics; empty if there were none.

    Raises:
        ClusterError: The workers do not fit the cluster, or were lost `MAX_FAILURES` times in a row.
        Exception: An error of the worker function, unchanged.
    """
    reports = _Reports(on_report, on_start or (lambda: None))
    if in_process:
        reports.on_start()
        context = LocalContext(storage_uri, name, use_gpu, reports.add)
        with _threads(cpus_per_worker or int(os.environ.get("OMP_NUM_THREADS", usable_cpus()))):
            worker(context, config)
        return reports.last
    cpus_per_worker = cpus_per_worker or 1
    scaling = ray.train.ScalingConfig(  # type: ignore[call-arg]  # annotated for Ray Train's first version
        num_workers=num_workers,  # type: ignore[arg-type]
        use_gpu=use_gpu,
        resources_per_worker=_resources_per_worker(cpus_per_worker, use_gpu),
        elastic_resize_monitor_interval_s=resize_seconds,
    )
    least = num_workers if isinstance(num_workers, int) else num_workers[0]
    connection = resources()
    if not autoscaling:
        connection.require(
            cpus=least * cpus_per_worker, gpus=least if use_gpu else 0, purpose=plural(least, "training worker")
        )
    failures = 0
    while True:
        reports.begin_attempt()
        try:
            _fit(worker, config, scaling, storage_uri, name, reports)
            return reports.last
        except ray.train.TrainingFailedError as error:
            failures = 1 if reports.has_checkpoint else failures + 1
            cause = reports.worker_error
            if cause is not None and (failures > MAX_FAILURES or not _may_be_a_lost_peer(cause)):
                raise cause from None
            if failures > MAX_FAILURES:
                raise ClusterError(
                    f"cluster: training '{name}' lost its workers {failures} times in a row without a new checkpoint. "
                    f"Check whether memory ran out or nodes failed; the same command continues."
                ) from error


def is_begun_on_ray(storage_uri: str, name: str) -> bool:
    """Whether Ray Train has checkpoints of this training in a local folder."""
    return Path(storage_uri, name, CHECKPOINT_MANAGER_SNAPSHOT_FILENAME).exists()


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Lets torch use so many threads in this process during the `with` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _resources_per_worker(cpus: int, use_gpu: bool) -> dict[str, float]:
    return {"CPU": cpus, "GPU": 1} if use_gpu else {"CPU": cpus}


def _may_be_a_lost_peer(error: Exception) -> bool:
    """Whether a worker's error may only mean that another worker was lost; torch then raises RuntimeError."""
    return isinstance(error, RuntimeError) and not isinstance(error, ClusterError)


def _fit(
    worker: Worker,
    config: dict[str, Any],
    scaling: ray.train.ScalingConfig,
    storage_uri: str,
    name: str,
    reports: "_Reports",
) -> None:
    """Runs one attempt of Ray Train from the latest checkpoint of `name`, and passes on reports as they arrive."""
    # On the driver's node, like Ray Train's controller, because any other node may be lost.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(num_cpus=0)(_Mailbox)
    mailbox = actor.options(scheduling_strategy=here).remote()
    trainer = ray.train.torch.TorchTrainer(
        partial(_run_worker, worker, mailbox, None if "://" in storage_uri else Path(storage_uri, name)),
        train_loop_config=config,
        torch_config=OneAddressConfig(),
        scaling_config=scaling,
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage_uri,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            # Ray Train would also retry errors of the worker function, so `train` counts lost workers itself.
            failure_config=ray.train.FailureConfig(max_failures=0),
            callbacks=[_Forward(mailbox)],  # type: ignore[list-item]  # annotated for Ray Train's first version
        ),
    )
    thread = ThreadPoolExecutor(max_workers=1)
    future = thread.submit(trainer.fit)
    thread.shutdown(wait=False)  # an interrupt here must not wait for the end of the training
    try:
        while not wait([future], timeout=POLL_SECONDS).done:
            reports.take(ray.get(mailbox.drain.remote()))
        reports.take(ray.get(mailbox.drain.remote()))
    finally:
        ray.kill(mailbox)
    future.result()


# --- from the workers to the driver ----------------------------------------------------------------------------


class _Mailbox:
    """An actor that keeps messages of workers and controller until the driver fetches them."""

    def __init__(self) -> None:
        self._letters: list[tuple[str, Any]] = []

    def put(self, kind: str, content: Any) -> None:
        self._letters.append((kind, content))

    def drain(self) -> list[tuple[str, Any]]:
        letters, self._letters = self._letters, []
        return letters


class _Forward(UserCallback):
    """Runs in Ray Train's controller, after all workers have reported and the checkpoint is stored."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def after_report(self, run_context: Any, metrics: list[Metrics], checkpoint: Any) -> None:
        self._mailbox.put.remote("metrics", metrics[0])
        if checkpoint is not None:
            self._mailbox.put.remote("checkpoint", None)


class _Reports:
    """The driver's view of a training: the last metrics, and the results of the current attempt."""

    def __init__(self, on_report: Callable[[Metrics], None] | None, on_start: Callable[[], None]) -> None:
        self._on_report, self.on_start = on_report, on_start
        self.last: Metrics = {}
        self.begin_attempt()

    def begin_attempt(self) -> None:
        self.has_checkpoint = False
        self.worker_error: Exception | None = None

    def add(self, metrics: Metrics) -> None:
        self.last = metrics
        if self._on_report is not None:
            self._on_report(metrics)

    def take(self, letters: list[tuple[str, Any]]) -> None:
        for kind, content in letters:
            if kind == "started":
                self.on_start()
            elif kind == "metrics":
                self.add(content)
            elif kind == "checkpoint":
                self.has_checkpoint = True
            elif self.worker_error is None or _may_be_a_lost_peer(self.worker_error):
                self.worker_error = content  # a worker's own error is more important than those of its peers


# --- the workers' side -----------------------------------------------------------------------------------------


def _run_worker(worker: Worker, mailbox: Any, folder: Path | None, config: dict[str, Any]) -> None:
    keep_freed_memory()
    mailbox.put.remote("started", None)
    try:
        worker(RayContext(folder), config)
    except Exception as error:
        error.add_note(f"In a training worker:\n{traceback.format_exc()}")
        ray.get(mailbox.put.remote("error", error))  # the error object, because Ray Train passes on only its text
        raise
