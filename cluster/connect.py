"""Connects to Ray: to a local Ray that is started for a `with` block, or to an existing cluster.

A local Ray listens only on 127.0.0.1. It is a child of this process and ends with it. Other Rays on the machine are not
joined or stopped. Starting takes seconds, so the first work that needs Ray starts it; a job that has nothing to do
starts none. `fanout` and `training` decide what runs where.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import ray
import ray.data  # configures Ray Data's logging, which is lowered below
from ray._private import ray_constants
from ray._private.accelerators import get_accelerator_manager_for_resource
from ray.exceptions import AuthenticationError

from cluster.environment import is_submitted_job
from cluster.errors import ClusterError
from cluster.words import plural

PROJECT_ROOT = Path(__file__).resolve().parent.parent
"""The folder with the project's packages; workers of a Ray on this machine import them from there."""

MIN_LOCAL_CPUS = 2
"""The least number of logical CPUs of a local Ray: one for the compute actor, the others for reading and writing."""

CONNECT_SECONDS = 10

QUIET_RAY_CORE = {"RAY_BACKEND_LOG_LEVEL": "fatal"}
"""Ray's C++ core writes to the driver's stderr directly. Its errors also arrive as exceptions, and every actor pool of
Ray Data causes one such line (https://github.com/ray-project/ray/issues/53727)."""

NO_WAIT_FOR_WORKERS = {"RAY_prestart_worker_first_driver": "0"}
"""By default, Ray starts workers in advance and accepts the first driver when all are ready. If one of them dies, it
never accepts the driver. With this setting, workers are started for their first tasks."""


@dataclass(frozen=True)
class Connection:
    """The current resources of the cluster, summed over its living nodes.

    Attributes:
        num_cpus: Logical CPUs, as declared to Ray.
        num_gpus: GPUs, as declared to Ray.
        num_nodes: Living nodes, with the head.
        in_process: There is no Ray; use the functions that work in this process.
        is_to_start: The first work will start a local Ray.
        is_optional: The Ray is a local one that was not asked for. Work that would gain nothing from it may be done in
            this process instead.
        is_own: The Ray is a local one of this process; other Rays were started by somebody else and joined.
    """

    num_cpus: float
    num_gpus: float
    num_nodes: int
    in_process: bool = False
    is_to_start: bool = field(default=False, compare=False)
    is_optional: bool = field(default=False, compare=False)
    is_own: bool = field(default=False, compare=False)

    def require(self, *, cpus: float, gpus: float, purpose: str, device_key: str = "") -> None:
        """Refuses a demand for more resources than the cluster has now.

        Args:
            cpus: Logical CPUs needed at the same time.
            gpus: GPUs needed at the same time.
            purpose: What needs them, for the message, such as "4 compute actors and a read task".
            device_key: The key of the configuration that moves the work to the CPU, for the message; "" if unknown.

        Raises:
            ClusterError: The cluster has less.
        """
        for asked, there, name in ((gpus, self.num_gpus, "GPU"), (cpus, self.num_cpus, "CPU")):
            if asked > there:
                verb = "needs" if purpose.startswith("1 ") else "need"
                no_gpu = name == "GPU" and not there
                to_cpu = f"To use the CPU, give --set {device_key}=cpu. " if device_key else ""
                raise ClusterError(
                    f"cluster: {purpose} {verb} {plural(asked, name)}, but the cluster has {there:g}. "
                    + (
                        f"{to_cpu}To use a GPU, add a node that has one. "
                        if no_gpu
                        else "Ask for fewer workers (cluster.max_actors, cluster.training_workers) or add nodes. "
                    )
                    + "If the cluster adds nodes when they are needed, give --set cluster.autoscaling=true."
                )


@dataclass(frozen=True)
class _Promise:
    """The local Ray that the current `connect` block will start when it is needed."""

    num_cpus: int
    is_optional: bool
    has_failed: bool = False  # it was tried


_promised: list[_Promise] = []
"""The promise of the current `connect` block; empty outside such a block and in one that joined a cluster."""


def resources() -> Connection:
    """The current resources of the connected cluster; a local Ray is started if it is not running yet.

    Raises:
        ClusterError: No Ray is connected.
    """
    if not ray.is_initialized():
        if not _promised:
            raise ClusterError("cluster: no Ray is connected. Run this inside `with connect():`.")
        with _sigterm_handler_kept():
            _start(_promised[-1].num_cpus)
    total = ray.cluster_resources()
    num_nodes = sum(node["Alive"] for node in ray.nodes())
    return Connection(total.get("CPU", 0.0), total.get("GPU", 0.0), num_nodes, is_own=bool(_promised))


def resources_if_running() -> Connection | None:
    """The current resources of the connected cluster; None while no Ray is connected. It starts nothing."""
    return resources() if ray.is_initialized() else None


def start_optional_ray(on_failure: Callable[[str], object]) -> bool:
    """Starts the optional local Ray of the current `connect` block, unless it runs. It is tried once.

    Args:
        on_failure: Called with the reason when it does not start; not called again in this block.

    Returns:
        Whether it runs; if not, the work must be done in this process.
    """
    if not ray.is_initialized() and not _promised[-1].has_failed:
        try:
            resources()
        except ClusterError as error:
            _promised[-1] = replace(_promised[-1], has_failed=True)
            on_failure(_reason(error.__cause__ or error))
    return ray.is_initialized()


@contextlib.contextmanager
def connect(address: str | None = None, num_cpus: int | None = None) -> Iterator[Connection]:
    """Connects to Ray during a `with` block; a block inside another one uses the same Ray.

    Args:
        address: "local" starts a local Ray; "auto" or "host:port" joins a cluster; "in-process" uses no Ray. None or ""
            joins the cluster in `RAY_ADDRESS`, which is set in a submitted Ray job, else starts an optional local Ray.
        num_cpus: Logical CPUs of a local Ray, which may be more than the machine has. None or 0: the CPUs that this
            process may use. It does not apply to a joined cluster.

    Yields:
        The cluster's resources at the start; for a local Ray, those that it will have.

    Raises:
        ClusterError: The cluster does not answer.
    """
    if address == "in-process":
        yield Connection(num_cpus=usable_cpus(), num_gpus=0, num_nodes=1, in_process=True)
        return
    _quieten_ray_data()
    _let_full_pools_grow()
    if ray.is_initialized() or _promised:  # the outer block ends it
        yield _planned(_promised[-1]) if _promised and not ray.is_initialized() else resources()
        return
    joined = _address_to_join(address)
    try:
        if joined:
            with _sigterm_handler_kept():
                _join(joined)
            yield resources()
        else:
            _promised.append(_Promise(num_cpus or usable_cpus(), is_optional=address != "local"))
            yield _planned(_promised[-1])
    finally:
        _promised.clear()
        ray.shutdown()


def _planned(promise: _Promise) -> Connection:
    """The resources that the promised local Ray will have."""
    gpus = get_accelerator_manager_for_resource("GPU")
    num_gpus = float(gpus.get_current_node_num_accelerators() if gpus else 0)
    return Connection(float(promise.num_cpus), num_gpus, num_nodes=1, is_to_start=True, is_optional=promise.is_optional)


def _address_to_join(address: str | None) -> str | None:
    """The address of the cluster to join, or None for a local Ray."""
    if address == "local":
        return None
    return address or os.environ.get(ray_constants.RAY_ADDRESS_ENVIRONMENT_VARIABLE) or None


def usable_cpus() -> int:
    """The CPUs that this process may use, but at least the least number of a local Ray."""
    there = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(there, MIN_LOCAL_CPUS)


def _start(num_cpus: int) -> None:
    """Starts a local Ray on 127.0.0.1; its processes end with this process."""
    variables = _import_path() | QUIET_RAY_CORE | NO_WAIT_FOR_WORKERS
    with _loopback_only(), _environment(variables), _without_stderr(), _node_errors("'local'"):
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


@contextlib.contextmanager
def _node_errors(address: str) -> Iterator[None]:
    """Turns the plain Exception that Ray raises for a node that does not start into one clear sentence."""
    try:
        yield
    except (OSError, ValueError, AuthenticationError):
        raise
    except Exception as error:
        raise ClusterError(
            f"cluster: the Ray at {address} did not start ({_reason(error)}). The machine may be overloaded or out of "
            "memory, or its /tmp may be full. Run the same command again, or work without Ray on one core: "
            "--set cluster.address=in-process."
        ) from error


def _reason(error: BaseException) -> str:
    """The first line of an error, to stand in brackets."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


@contextlib.contextmanager
def _sigterm_handler_kept() -> Iterator[None]:
    """Keeps the process's own SIGTERM handler, which Ray replaces by a handler that exits at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def _loopback_only() -> Iterator[None]:
    """Makes a Ray that is started in this `with` block listen only on 127.0.0.1.

    Ray binds to the machine's outer address unless clusters are disabled in its settings. Ray reads the environment
    variable for this once, at import, and disabled clusters cannot be joined. So this applies only during the start.
    """
    enabled = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        # For the communication of torch's workers; even on one machine, NCCL would choose an outer address.
        peers = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
        with _environment({ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"} | peers):  # for Ray's own processes
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = enabled


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Sets environment variables for the processes started in the `with` block, then restores the old values."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Discards everything written to the process's stderr during the `with` block, also by C++ code.

    Ray's core always prints its log level there. Its errors arrive as exceptions.
    """
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _join(address: str) -> None:
    """Joins a cluster; never starts one."""
    # A submitted job has the packages in its working directory
    runtime_env = None if is_submitted_job() else {"env_vars": _import_path()}
    try:
        _require_an_answer(address)
        with _environment(QUIET_RAY_CORE), _without_stderr(), _node_errors(f"'{address}'"):
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=runtime_env)
    except (OSError, AuthenticationError) as error:  # Ray's ConnectionError is an OSError
        if "AuthToken" in str(error.__cause__) or isinstance(error, AuthenticationError):
            remedy = "refuses this process. Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the cluster's token"
        else:
            remedy = "does not answer. Start the cluster, or use the address 'local'"
        variable = ray_constants.RAY_ADDRESS_ENVIRONMENT_VARIABLE
        origin = f" (of the variable {variable})" if os.environ.get(variable) == address else ""
        raise ClusterError(f"cluster: the Ray at '{address}'{origin} {remedy}.") from error


def _require_an_answer(address: str) -> None:
    """Raises OSError at once if nothing listens at "host:port"; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in address:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()


def _import_path() -> dict[str, str]:
    """The environment with which workers can import the project's packages from a checkout, without installation."""
    inherited = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(PROJECT_ROOT), inherited]))}


def _quieten_ray_data() -> None:
    """Keeps Ray Data's progress messages out of a job's output; they remain in Ray's own log files."""
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def _let_full_pools_grow() -> None:
    """A pool of actors grows when each of its actors has as many units as it takes (see `ComputeActor`).

    Ray Data divides the number of units that the actors have been given by the number that they take at the same time,
    and expects that they are given twice as many as they take. Ours are not, so its limits are halved.
    """
    scaling = ray.data.DataContext.get_current().autoscaling_config
    scaling.actor_pool_util_upscaling_threshold = 1.75 / 2
    scaling.actor_pool_util_downscaling_threshold = 0.5 / 2
