"""Connecting to Ray: an own local Ray that lives as long as the block, or a cluster that is already there.

An own local Ray listens on 127.0.0.1 only, is a child of this process and ends with it; no other Ray of the
machine is joined, asked or stopped. It takes seconds to start, so it is started by the first work that needs it: a job
that finds everything done starts none. Nothing here decides what runs where: that is `fanout` and `training`.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
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
"""The folder that holds the project's packages; workers of a Ray on this machine import them from it."""

MIN_LOCAL_CPUS = 2
"""Logical CPUs an own local Ray declares at least: one holds the compute actor, the others read and write."""

CONNECT_SECONDS = 10

QUIET_RAY_CORE = {"RAY_BACKEND_LOG_LEVEL": "fatal"}
"""Ray's C++ core writes to a driver's stderr past Python's logging; its errors also arrive as exceptions, and one
of them accompanies every Ray Data actor pool (https://github.com/ray-project/ray/issues/53727)."""

NO_WAIT_FOR_WORKERS = {"RAY_prestart_worker_first_driver": "0"}
"""Ray would start workers in advance and let the first driver in when all of them are there: if one of them dies
meanwhile, never. They are started for their first tasks instead."""


@dataclass(frozen=True)
class Connection:
    """What the cluster has at this moment, added over its living nodes.

    Attributes:
        num_cpus: Logical CPUs, as declared to Ray.
        num_gpus: GPUs, as declared to Ray.
        num_nodes: Living nodes, the head included.
        in_process: There is no Ray; use the in-process form of whatever comes next.
        is_to_start: An own Ray that the first work will start.
    """

    num_cpus: float
    num_gpus: float
    num_nodes: int
    in_process: bool = False
    is_to_start: bool = field(default=False, compare=False)

    def require(self, *, cpus: float, gpus: float, purpose: str) -> None:
        """Refuses a demand that the cluster cannot meet as it is now.

        Args:
            cpus: Logical CPUs needed at the same time.
            gpus: GPUs needed at the same time.
            purpose: Who asks, for the message, as in "4 compute actors and a read task".

        Raises:
            ClusterError: More is asked than the cluster has.
        """
        for asked, there, name in ((gpus, self.num_gpus, "GPU"), (cpus, self.num_cpus, "CPU")):
            if asked > there:
                verb = "needs" if purpose.startswith("1 ") else "need"
                raise ClusterError(
                    f"cluster: {purpose} {verb} {plural(asked, name)}, the cluster has {there:g}. Ask for fewer "
                    f"workers, add nodes, or say that the cluster is autoscaling."
                )


_promised_cpus: list[int] = []
"""What the own Ray of the `connect` block around will declare once it is needed; empty outside of such a block."""


def resources() -> Connection:
    """What the connected cluster has now; an own Ray that is not there yet is started.

    Raises:
        ClusterError: No Ray is connected.
    """
    if not ray.is_initialized():
        if not _promised_cpus:
            raise ClusterError("cluster: no Ray is connected. Run this inside `with connect():`.")
        with _sigterm_handler_kept():
            _start(_promised_cpus[-1])
    total = ray.cluster_resources()
    num_nodes = sum(node["Alive"] for node in ray.nodes())
    return Connection(total.get("CPU", 0.0), total.get("GPU", 0.0), num_nodes)


@contextlib.contextmanager
def connect(address: str | None = None, num_cpus: int | None = None) -> Iterator[Connection]:
    """Connects to Ray for the length of a `with` block; inside another such block it shares that one's Ray.

    Args:
        address: "local" starts an own Ray; "auto" or "host:port" joins a cluster; "in-process" does without Ray.
            None or "" joins the cluster that `RAY_ADDRESS` names, as in a submitted Ray job, else starts an own Ray.
        num_cpus: Logical CPUs an own Ray declares, which may be more than the machine has. None or 0: those this
            process may use. A cluster that is joined has its own.

    Yields:
        The cluster's resources at the start; of an own Ray those it will have.

    Raises:
        ClusterError: The cluster does not answer.
    """
    if address == "in-process":
        yield Connection(num_cpus=_usable_cpus(), num_gpus=0, num_nodes=1, in_process=True)
        return
    _quieten_ray_data()
    if ray.is_initialized() or _promised_cpus:  # whoever connected first ends it
        yield resources() if ray.is_initialized() else _foretold(_promised_cpus[-1])
        return
    joined = _address_to_join(address)
    try:
        if joined:
            with _sigterm_handler_kept():
                _join(joined)
            yield resources()
        else:
            _promised_cpus.append(num_cpus or _usable_cpus())
            yield _foretold(_promised_cpus[-1])
    finally:
        _promised_cpus.clear()
        ray.shutdown()


def _foretold(num_cpus: int) -> Connection:
    """What an own Ray of so many CPUs will have."""
    gpus = get_accelerator_manager_for_resource("GPU")
    num_gpus = float(gpus.get_current_node_num_accelerators() if gpus else 0)
    return Connection(float(num_cpus), num_gpus, num_nodes=1, is_to_start=True)


def _address_to_join(address: str | None) -> str | None:
    """The address of the cluster to join, or None when an own Ray is wanted."""
    if address == "local":
        return None
    return address or os.environ.get(ray_constants.RAY_ADDRESS_ENVIRONMENT_VARIABLE) or None


def _usable_cpus() -> int:
    there = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(there, MIN_LOCAL_CPUS)


def _start(num_cpus: int) -> None:
    """Starts an own Ray on 127.0.0.1, whose processes end with this one."""
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
    """Turns what Ray raises for a node that does not come up, a bare Exception, into one sentence."""
    try:
        yield
    except (OSError, ValueError, AuthenticationError):
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ClusterError(
            f"cluster: the Ray at {address} did not come up ({reason}). The machine may be overloaded, out of memory "
            f"or its /tmp full; run the same command again."
        ) from error


@contextlib.contextmanager
def _sigterm_handler_kept() -> Iterator[None]:
    """Keeps the process's own answer to SIGTERM, which Ray replaces by one that exits on the spot."""
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
    """Lets a Ray that is started here listen on 127.0.0.1 alone.

    Ray binds to the machine's outer address unless it believes that clusters are switched off. Its environment
    variable for that is read once, at import, and would hinder joining a cluster, so this holds for the start only.
    """
    enabled = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        # What torch's workers talk through; NCCL would pick an outer address even between GPUs of one machine.
        peers = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
        with _environment({ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"} | peers):  # for Ray's own processes
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = enabled


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Sets environment variables for the processes started inside the block, and puts the old values back."""
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
    """Drops what is written to the process's stderr inside the block, below Python too.

    Ray's core announces its log level there and cannot be told not to; its errors arrive as exceptions.
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
    """Joins a cluster, without ever starting one."""
    # A submitted job ships the packages as its working directory
    runtime_env = None if is_submitted_job() else {"env_vars": _import_path()}
    try:
        _require_an_answer(address)
        with _environment(QUIET_RAY_CORE), _without_stderr(), _node_errors(f"'{address}'"):
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=runtime_env)
    except (OSError, AuthenticationError) as error:  # a ConnectionError of Ray's is an OSError
        if "AuthToken" in str(error.__cause__) or isinstance(error, AuthenticationError):
            remedy = "refuses this process. Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the cluster's token"
        else:
            remedy = "does not answer. Start one with 'ray start --head', or use the address 'local'"
        raise ClusterError(f"cluster: the Ray at '{address}' {remedy}.") from error


def _require_an_answer(address: str) -> None:
    """Raises OSError at once when nothing listens at a "host:port"; Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in address:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()


def _import_path() -> dict[str, str]:
    """The environment that lets a worker import the project's packages from a checkout, without installation."""
    inherited = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(PROJECT_ROOT), inherited]))}


def _quieten_ray_data() -> None:
    """Keeps Ray Data's running commentary out of a job's output; it stays in Ray's own log files."""
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
