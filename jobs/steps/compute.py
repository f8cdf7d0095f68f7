"""Where a launch computes: on a cluster or in this process, on which device, with how many workers."""

import contextlib
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from cluster.connect import Connection, connect, resources_if_running, start_optional_ray
from cluster.fanout import Payload, Pool, Stages, fan_out, fan_out_in_process
from cluster.late_units import LateUnit
from cluster.quarantine import Trial, run_quarantined
from cluster.words import plural
from jobs.run.config_keys import ClusterConfig

START_SECONDS = 20.0
"""About the time until a local Ray and its workers work. Shorter work is done in this process."""

NOTICE_SECONDS = 30.0
"""The time without a finished unit after which a launch says what it waits for."""

WITHOUT_RAY = "--set cluster.address=in-process"


def connected(config: ClusterConfig) -> AbstractContextManager[Connection]:
    """The connection that the configuration asks for; it is open during a `with` block."""
    return connect(config.address, config.cpus)


def resolved_device(asked: str, connection: Connection) -> str:
    """'cpu' or 'cuda'. With 'auto', 'cuda' if the cluster has GPUs now.

    Raises:
        ValueError: 'cuda' is asked for in this process, and torch finds no GPU.
    """
    if asked == "cuda" and connection.in_process and not torch.cuda.is_available():
        raise ValueError(
            "device: cuda is asked for, but torch finds no GPU on this machine. To use the CPU, set the step's device "
            "to auto or cpu, as in --set maps.device=cpu."
        )
    if asked != "auto":
        return asked
    return "cuda" if connection.num_gpus >= 1 else "cpu"


def resolved_precision(asked: str, device: str) -> torch.dtype:
    """float32 or bfloat16. With 'auto', float32 on CPU and bfloat16 on GPU."""
    if asked == "auto":
        asked = "bfloat16" if device == "cuda" else "float32"
    return getattr(torch, asked)


def precision_name(precision: torch.dtype) -> str:
    """The name of a precision in fingerprints, such as 'float32'."""
    return str(precision).removeprefix("torch.")


def actor_pool(config: ClusterConfig, connection: Connection, device: str) -> Pool:
    """A pool of computing actors for the cluster: one per GPU, or one per CPU, each with one thread.

    The CPU actors of a node together leave one logical CPU free. Reading and writing tasks, which take a few percent of
    the backbone's time, are scheduled there.
    """
    on_gpu = device == "cuda"
    most = config.max_actors or max(1, int(connection.num_gpus if on_gpu else connection.num_cpus))
    cpus_per_node = max(2.0, connection.num_cpus / max(1, connection.num_nodes))
    return Pool(
        min_actors=config.min_actors or (1 if config.autoscaling else most),
        max_actors=most,
        cpus_per_actor=1.0 if on_gpu else math.floor(1e4 * (1 - 1 / cpus_per_node)) / 1e4,  # Ray's resolution
        gpus_per_actor=1.0 if on_gpu else 0.0,
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


def run_stages(
    units: Sequence[Mapping[str, Any]],
    stages: Stages,
    config: ClusterConfig,
    connection: Connection,
    device: str,
    trial: Trial | None = None,
    *,
    seconds: float | None = None,
) -> Iterator[Payload]:
    """The receipts of all units, in the order in which they finish.

    Args:
        trial: if a unit repeatedly ends its process, its images are tried with this, one by one; None: such a unit
            stops the launch.
        seconds: about how long one worker would need for all units; None if it is not known.
    """
    if is_done_here(connection, seconds):
        return fan_out_in_process(units, stages)
    if connection.is_optional and (failure := start_optional_ray()):
        print(f"{failure} Now the work goes on in this process, on one core.", flush=True)
        return fan_out_in_process(units, stages)
    pool = actor_pool(config, connection, device)

    def quarantine(unit: Payload) -> Payload:
        assert trial is not None  # it runs the stages apart
        return run_quarantined(unit, unit["unit"].num_rows, stages, trial, pool)

    is_one_machine = device == "cpu" and connection.num_nodes == 1 and not config.autoscaling
    ours = stages.in_actors() if is_one_machine else stages
    return _with_notice(fan_out(units, ours, pool, on_poison=quarantine if trial else None, on_late=_print_late), pool)


def _with_notice(results: Iterator[Payload], pool: Pool) -> Iterator[Payload]:
    """The results. If the first one takes long, a line says what the workers need and what the cluster has."""
    notice = threading.Timer(NOTICE_SECONDS, lambda: print(waiting_for(pool, resources_if_running()), flush=True))
    notice.daemon = True
    notice.start()
    try:
        with contextlib.closing(results):  # type: ignore[type-var]  # a generator
            for result in results:
                notice.cancel()
                yield result
    finally:
        notice.cancel()


def waiting_for(pool: Pool, there: Connection | None) -> str:
    """Why no unit is finished yet, in a sentence.

    Args:
        there: what the cluster has now; None if Ray is still starting.
    """
    so_far = f"no unit is finished after {NOTICE_SECONDS:.0f} s"
    without = f"If this machine is busy, stop the command and give {WITHOUT_RAY}, which works without Ray."
    if there is None:
        return f"{so_far}: Ray is still starting. {without}"
    has = f"{plural(round(there.num_cpus), 'CPU')} and {plural(round(there.num_gpus), 'GPU')}"
    if there.num_gpus < pool.gpus_per_actor or there.num_cpus < pool.cpus_per_actor:
        needs = "1 GPU" if pool.gpus_per_actor else f"{pool.cpus_per_actor:g} CPUs"
        return f"{so_far}: a worker needs {needs}, the cluster has {has} now. The launch waits until nodes are added."
    is_alone = there.num_nodes == 1 and not pool.autoscaling
    ending = f" {without}" if is_alone else ""
    return f"{so_far}: workers are starting, or a unit takes longer (the cluster has {has}).{ending}"


def _print_late(late: LateUnit) -> None:
    """Prints which unit takes much longer than the others, with its node and process."""
    print(f"unit {late.unit['unit'].name} is late, {late}.", flush=True)
