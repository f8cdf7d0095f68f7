"""Where a launch computes: on a cluster or in this process, on which device, with how many workers."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from cluster.connect import Connection, connect, resources_if_running, start_optional_ray
from cluster.fanout import Payload, Pool, Stages, fan_out, fan_out_in_process
from cluster.late_units import LateUnit
from cluster.quarantine import Trial, run_quarantined
from jobs.run.config_keys import ClusterConfig, Config
from jobs.run.directory import Run
from jobs.steps.waiting import notices

START_SECONDS = 20.0
"""About the time until a local Ray and its workers work. Shorter work is done in this process."""

CPUS_OF_A_NEW_NODE = 8.0
"""The CPUs that a node of an autoscaling cluster is assumed to have, as those of `ray_cluster.yaml` do."""

CPUS_OF_A_NEW_GPU = 4.0
"""The same for each GPU of such a node. Its 16 GiB are enough for three processes that use CUDA."""


def connected(run: Run) -> AbstractContextManager[Connection]:
    """The connection that the run's configuration asks for; it is open during a `with` block.

    If the run has recorded that no Ray is used, it prints so: the command of this launch does not show it.
    """
    config = run.config.cluster
    if config.address == "in-process" and run.keeps_address:
        print(
            "cluster: the run has recorded cluster.address=in-process, so this process does the work, without Ray. To "
            "use Ray, add '--set cluster.address='.",
            flush=True,
        )
    return connect(config.address, config.cpus)


def resolved_device(asked: str, connection: Connection, key: str) -> str:
    """'cpu' or 'cuda'. With 'auto', 'cuda' if the cluster has GPUs now.

    Args:
        asked: the value of the key, such as "maps.device".

    Raises:
        ValueError: 'cuda' is asked for in this process, and torch finds no GPU.
    """
    if asked == "cuda" and connection.in_process:
        require_own_gpu(key)
    if asked != "auto":
        return asked
    return "cuda" if connection.num_gpus >= 1 else "cpu"


def note_on_cpus(config: Config, connection: Connection, key: str) -> str:
    """Says that a step computes on CPUs because the GPU nodes of an autoscaling cluster are not there yet; else "".

    Args:
        key: the key of the step's device, such as "maps.device"; "" if it always computes on CPUs.
    """
    section = key.partition(".")[0]
    asked = getattr(config, section).device if section else "cpu"
    if asked != "auto" or not config.cluster.autoscaling or connection.in_process or connection.num_gpus >= 1:
        return ""
    return (
        f"{key}: auto, and the cluster has no GPU now, so this step computes on CPUs, to its end. To wait for a GPU "
        f"node instead: --set {key}=cuda."
    )


def require_own_gpu(key: str) -> None:
    """Refuses work on CUDA in this process if torch finds no GPU.

    Raises:
        ValueError: there is none; the message says which key moves the work to the CPU.
    """
    if not torch.cuda.is_available():
        raise ValueError(
            f"{key}: cuda is asked for, but torch finds no GPU on this machine. To use the CPU, give --set {key}=cpu."
        )


def resolved_precision(asked: str, device: str) -> torch.dtype:
    """float32 or bfloat16. With 'auto', float32 on CPU and bfloat16 on GPU."""
    if asked == "auto":
        asked = "bfloat16" if device == "cuda" else "float32"
    return getattr(torch, asked)


def precision_name(precision: torch.dtype) -> str:
    """The name of a precision in fingerprints, such as 'float32'."""
    return str(precision).removeprefix("torch.")


def actor_pool(config: ClusterConfig, connection: Connection, device: str, actors_per_gpu: int = 1) -> Pool:
    """A pool of computing actors for the cluster: one per GPU, or one per CPU, each with one thread.

    Up to ``actors_per_gpu`` actors share a GPU, if it has as many CPUs and one more for tasks.

    The CPU actors of a node together leave one logical CPU free. Reading and writing tasks, which take a few percent of
    the backbone's time, are scheduled there. The nodes to come of an autoscaling cluster are not known: there may be
    only a head without CPUs now.
    """
    on_gpu = device == "cuda"
    given = config.max_actors if on_gpu else config.max_cpu_actors or config.max_actors
    most = given or max(1, int(connection.num_gpus if on_gpu else connection.num_cpus))
    if on_gpu:
        cpus_of_gpu = CPUS_OF_A_NEW_GPU if config.autoscaling else connection.num_cpus / max(1.0, connection.num_gpus)
        actors_per_gpu = max(1, min(actors_per_gpu, int(cpus_of_gpu - 1)))
        most *= actors_per_gpu
    there = connection.num_cpus / max(1, connection.num_nodes)
    cpus_per_node = CPUS_OF_A_NEW_NODE if config.autoscaling else max(2.0, there)
    return Pool(
        min_actors=config.min_actors or (1 if config.autoscaling else most),
        max_actors=most,
        cpus_per_actor=1.0 if on_gpu else math.floor(1e4 * (1 - 1 / cpus_per_node)) / 1e4,  # Ray's resolution
        gpus_per_actor=math.floor(1e4 / actors_per_gpu) / 1e4 if on_gpu else 0.0,
        read_cpus=1.0 if on_gpu else 0.25,
        write_cpus=0.25,
        autoscaling=config.autoscaling,
    )


def is_done_here(connection: Connection, seconds: float | None) -> bool:
    """Whether work is done in this process: without a Ray, or because a local Ray would take longer to start.

    Args:
        seconds: about how long one worker would need; None if it is not known.
    """
    is_short = seconds is not None and seconds < START_SECONDS
    return connection.in_process or (connection.is_optional and is_short)


def require_workers(
    config: ClusterConfig, connection: Connection, device: str, device_key: str, actors_per_gpu: int = 1
) -> None:
    """Refuses work in units for which the cluster is too small; call it before anything is written or deleted.

    Args:
        device_key: the key that moves the work to the CPU, "" if it never runs on a GPU.
        actors_per_gpu: as in `actor_pool`.

    Raises:
        ClusterError: the workers do not fit, or they need a GPU and there is none.
    """
    if not connection.in_process:
        there = resources_if_running() or connection  # nodes may have come or gone since the launch connected
        actor_pool(config, connection, device, actors_per_gpu).require(there, device_key)


def run_stages(
    units: Sequence[Mapping[str, Any]],
    stages: Stages,
    config: ClusterConfig,
    connection: Connection,
    device: str,
    trial: Trial | None = None,
    *,
    seconds: float | None = None,
    actors_per_gpu: int = 1,
) -> Iterator[Payload]:
    """The receipts of all units, in the order in which they finish.

    Args:
        trial: if a unit repeatedly ends its process, its images are tried with this, one by one; None: such a unit
            stops the launch.
        seconds: about how long one worker would need for all units; None if it is not known.
        actors_per_gpu: as in `actor_pool`.
    """
    if is_done_here(connection, seconds if units else 0.0):
        return fan_out_in_process(units, stages)
    if connection.is_optional and not start_optional_ray(_print_failure):
        return fan_out_in_process(units, stages)
    pool = actor_pool(config, connection, device, actors_per_gpu)

    def quarantine(unit: Payload) -> Payload:
        assert trial is not None  # it runs the stages apart
        return run_quarantined(unit, unit["unit"].num_rows, stages, trial, pool)

    is_one_machine = device == "cpu" and connection.num_nodes == 1 and not config.autoscaling
    ours = stages.in_actors() if is_one_machine else stages
    return _with_notices(fan_out(units, ours, pool, on_poison=quarantine if trial else None, on_late=_print_late), pool)


def _with_notices(results: Iterator[Payload], pool: Pool) -> Iterator[Payload]:
    """The results. Until the first one, lines say what the workers need and what the cluster has."""
    with (
        contextlib.closing(results),  # type: ignore[type-var]  # a generator
        notices("no unit is finished", "a worker needs", pool.cpus_per_actor, pool.gpus_per_actor) as has_come,
    ):
        for result in results:
            has_come()
            yield result


def _print_failure(reason: str) -> None:
    """Prints that the local Ray did not start, and what is done instead."""
    print(f"The local Ray did not start ({reason}), so the work goes on in this process, on one core.", flush=True)


def _print_late(late: LateUnit) -> None:
    """Prints which unit takes much longer than the others, with its node and process."""
    print(f"unit {late.unit['unit'].name} is late, {late}.", flush=True)
