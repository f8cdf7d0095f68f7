"""The training shell: one worker function, run by Ray Train's workers or in this process.

The shell starts the workers, joins them for distributed training, keeps their checkpoints, and starts them again from
the latest one when a process or a node is lost. What a step is, which batch it takes and what a checkpoint holds is
the worker function's business: here a checkpoint is bytes.
"""

import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.train.v2.api.callback import UserCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.connect import resources
from cluster.errors import ClusterError
from cluster.training_context import LocalContext, Metrics, RayContext, TrainingContext
from cluster.training_peers import OneAddressConfig
from cluster.words import plural

Worker = Callable[["TrainingContext", dict[str, Any]], None]
"""The user's training function; called once per worker with its context and the configuration given to `train`."""

POLL_SECONDS = 0.2  # how often the driver fetches reports
RESIZE_SECONDS = 60.0
MAX_FAILURES = 3
"""Lost processes or nodes in a row, without a new checkpoint between them, after which training gives up."""


def train(
    worker: Worker,
    config: dict[str, Any],
    *,
    num_workers: int | tuple[int, int],
    use_gpu: bool,
    storage_uri: str,
    name: str,
    cpus_per_worker: int = 1,
    autoscaling: bool = False,
    resize_seconds: float = RESIZE_SECONDS,
    in_process: bool = False,
    on_report: Callable[[Metrics], None] | None = None,
) -> Metrics:
    """Trains to the end of the worker function, through lost workers and from where an earlier launch stopped.

    Args:
        worker: The training function; it must pickle.
        config: Handed to it.
        num_workers: Processes that train together; (least, most) for as many of them as the cluster has room for,
            followed as nodes come and go.
        use_gpu: Each worker takes one GPU beside its CPUs.
        storage_uri: Folder or `s3://` prefix of the checkpoints, which every node must reach.
        name: The run's name within it. The same name resumes.
        cpus_per_worker: CPUs each worker takes, and the number of threads torch uses there.
        autoscaling: The cluster grows on demand, so workers that do not fit now are waited for.
        resize_seconds: How often a range of workers is held against the cluster's size. A change of their number
            continues from the latest checkpoint.
        in_process: Runs one worker in this process, without Ray; `storage_uri` must then be a local folder.
        on_report: Called in the driver, in order, with the metrics of every report of rank 0.

    Returns:
        The metrics reported last; empty if none were.

    Raises:
        ClusterError: The workers do not fit the cluster, or were lost `MAX_FAILURES` times in a row.
        Exception: Whatever the worker function raised, as itself.
    """
    reports = _Reports(on_report)
    if in_process:
        worker(LocalContext(storage_uri, name, use_gpu, reports.add), config)
        return reports.last
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
                    f"Look for lack of memory or failing nodes; the same command continues."
                ) from error


def _resources_per_worker(cpus: int, use_gpu: bool) -> dict[str, float]:
    return {"CPU": cpus, "GPU": 1} if use_gpu else {"CPU": cpus}


def _may_be_a_lost_peer(error: Exception) -> bool:
    """Whether a worker's error may only say that another worker has gone: torch raises RuntimeError then."""
    return isinstance(error, RuntimeError) and not isinstance(error, ClusterError)


def _fit(
    worker: Worker,
    config: dict[str, Any],
    scaling: ray.train.ScalingConfig,
    storage_uri: str,
    name: str,
    reports: "_Reports",
) -> None:
    """One attempt of Ray Train, from the latest checkpoint under `name`; passes reports on as they come."""
    # With the driver, as Ray Train's controller is: any other node may be lost.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(num_cpus=0)(_Mailbox)
    mailbox = actor.options(scheduling_strategy=here).remote()
    trainer = ray.train.torch.TorchTrainer(
        partial(_run_worker, worker, mailbox),
        train_loop_config=config,
        torch_config=OneAddressConfig(),
        scaling_config=scaling,
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage_uri,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            # Ray Train would also repeat the user's own errors, so lost workers are counted in `train`.
            failure_config=ray.train.FailureConfig(max_failures=0),
            callbacks=[_Forward(mailbox)],  # type: ignore[list-item]  # annotated for Ray Train's first version
        ),
    )
    thread = ThreadPoolExecutor(max_workers=1)
    future = thread.submit(trainer.fit)
    thread.shutdown(wait=False)  # an interrupt here must not wait for the training's end
    try:
        while not wait([future], timeout=POLL_SECONDS).done:
            reports.take(ray.get(mailbox.drain.remote()))
        reports.take(ray.get(mailbox.drain.remote()))
    finally:
        ray.kill(mailbox)
    future.result()


# --- from the workers to the driver ----------------------------------------------------------------------------


class _Mailbox:
    """An actor that keeps what workers and controller say until the driver fetches it."""

    def __init__(self) -> None:
        self._letters: list[tuple[str, Any]] = []

    def put(self, kind: str, content: Any) -> None:
        self._letters.append((kind, content))

    def drain(self) -> list[tuple[str, Any]]:
        letters, self._letters = self._letters, []
        return letters


class _Forward(UserCallback):
    """Runs beside Ray Train's controller, once all workers have reported and the checkpoint is stored."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def after_report(self, run_context: Any, metrics: list[Metrics], checkpoint: Any) -> None:
        self._mailbox.put.remote("metrics", metrics[0])
        if checkpoint is not None:
            self._mailbox.put.remote("checkpoint", None)


class _Reports:
    """The driver's view of a training: the last metrics, and what the present attempt has brought."""

    def __init__(self, on_report: Callable[[Metrics], None] | None) -> None:
        self._on_report = on_report
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
            if kind == "metrics":
                self.add(content)
            elif kind == "checkpoint":
                self.has_checkpoint = True
            elif self.worker_error is None or _may_be_a_lost_peer(self.worker_error):
                self.worker_error = content  # the error of one's own wins over those of its peers


# --- the workers' side -----------------------------------------------------------------------------------------


def _run_worker(worker: Worker, mailbox: Any, config: dict[str, Any]) -> None:
    try:
        worker(RayContext(), config)
    except Exception as error:
        error.add_note(f"In a training worker:\n{traceback.format_exc()}")
        ray.get(mailbox.put.remote("error", error))  # itself: Ray Train hands on its text only
        raise
