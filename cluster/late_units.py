"""Units that are late: the driver prints their names, runs them a second time elsewhere, and replaces stuck workers.

A thread of the driver asks the ledger. Two things can be wrong with a unit's process:

- It sends no beats any more and uses no processor time (stopped, suspended, deadlocked). It is ended, and Ray runs its
  unit again in a new process.
- It works much longer than its peers did (a slow machine, a disk that hangs). A spare process also runs the whole unit,
  and the first result counts. If that is the spare process's result, the late process is ended.

Some processes cannot be ended, for example while they wait in the kernel for a dead network disk. Then the fan-out
waits, and the driver has printed for which process.
"""

import contextlib
import logging
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.ledger import Late, Process
from cluster.live_metrics import count_late
from cluster.spare_process import start_spare_process
from cluster.stages import Payload, Stages
from cluster.unit_row import ENDED, FAILED

MAX_SECOND_RUNS = 4
"""The most second runs at the same time."""

NODE_SECONDS = 20.0
"""The longest time in seconds that a node may take to check one of its processes."""

_IDLE_SECONDS, _LOOKS = 2.0, 8  # a silent process is stuck if it is idle in this many checks over this time

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patience:
    """When a unit counts as late.

    Attributes:
        factor, floor_seconds: It has been in a stage longer than this many times the median of its peers, and longer
            than this time.
        silent_seconds: Or its process has sent no beat for this time and uses no processor time.
        poll_seconds: The time between checks.
    """

    factor: float = 4.0
    floor_seconds: float = 60.0
    silent_seconds: float = 20.0  # four beats
    poll_seconds: float = 2.0


@dataclass(frozen=True)
class LateUnit:
    """A unit that is late.

    Attributes:
        unit: The unit, as it was given to the fan-out.
        stage: read, compute or write.
        node, pid: The address of the node, and the process there.
        seconds: How long it has been in this stage.
        reason: Why it counts as late and what is done about it; the end of a sentence.
    """

    unit: Payload
    stage: str
    node: str
    pid: int
    seconds: float
    reason: str

    def __str__(self) -> str:
        where = f"in stage '{self.stage}' for {self.seconds:.0f} s on node {self.node} (process {self.pid})"
        return f"{where}: {self.reason}"


@dataclass(frozen=True)
class _SecondRun:
    actor: Any
    result: Any  # a reference


class LateUnits:
    """Handles late units while its `with` block runs.

    Args:
        resources: The resources of a spare process, which are those of a compute actor.
        on_late: Called in a thread of this class, once for each process that is late with a unit; without it, a warning
            is logged.
    """

    def __init__(
        self,
        units: Sequence[Mapping[str, Any]],
        stages: Stages,
        ledger: Any,
        resources: dict[str, Any],
        patience: Patience,
        on_late: Callable[[LateUnit], None] | None,
    ) -> None:
        self._units, self._stages, self._ledger, self._resources = units, stages, ledger, resources
        self._patience, self._on_late = patience, on_late or _log
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._arrived: set[int] = set()
        self._named: set[tuple[str, int, Process]] = set()
        self._replaced: set[tuple[str, int, Process]] = set()
        self._awake: set[tuple[str, int, Process]] = set()  # silent, but working
        self._forgiven: set[tuple[str, int]] = set()
        self._begun_again: set[int] = set()
        self._runs: dict[int, _SecondRun] = {}  # running now

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(timeout=NODE_SECONDS)
        for run in list(self._runs.values()):
            with contextlib.suppress(RayError):  # the fan-out may have ended because Ray failed
                ray.kill(run.actor)

    def arrived(self, index: int) -> None:
        """Records that the row of a unit has come out of the data set."""
        self._arrived.add(index)

    def _watch(self) -> None:
        while not self._ended.wait(self._patience.poll_seconds):
            with contextlib.suppress(RayError):  # a node is lost and the ledger restarts: check again later
                self._look()

    def _look(self) -> None:
        patience = self._patience
        question = self._ledger.late.remote(patience.factor, patience.floor_seconds, patience.silent_seconds)
        for late in ray.get(question, timeout=NODE_SECONDS):
            if late.index in self._arrived or self._ended.is_set():
                continue
            is_silent = late.silent_seconds > patience.silent_seconds
            if is_silent and (late.stage, late.index, late.process) not in self._awake:
                self._replace(late)
            elif late.median is not None and late.seconds > max(patience.factor * late.median, patience.floor_seconds):
                self._begin_second_run(late)
        for index, run in list(self._runs.items()):
            self._follow(index, run)

    def _replace(self, late: Late) -> None:
        """Ends a silent process unless it is working; Ray then starts another."""
        key = (late.stage, late.index, late.process)
        if key in self._replaced:
            return
        try:
            found = ray.get(_end_process(late.process, only_if_idle=True), timeout=NODE_SECONDS)
        except RayError:
            found = "no answer"
        silence = f"its process has sent no sign of work for {late.silent_seconds:.0f} s"
        if found == "at work":  # in code that blocks Python, or on an overloaded machine
            self._awake.add(key)
        elif found == "ended":
            self._replaced.add(key)
            if (late.stage, late.index) not in self._forgiven:  # once: the unit itself may stop its processes
                self._forgiven.add((late.stage, late.index))
                self._ledger.forgive.remote(late.stage, late.index)
            self._name(late, f"{silence} and was idle; it was ended, and the unit starts again in another process")
        elif found == "no answer":
            self._name(late, f"{silence}, and its node does not answer; Ray repeats the unit if the node is lost")

    def _begin_second_run(self, late: Late) -> None:
        self._name(late, f"half of the others took at most {late.median:.1f} s; it is started a second time elsewhere")
        if late.index in self._begun_again or len(self._runs) >= MAX_SECOND_RUNS:
            return
        self._begun_again.add(late.index)
        actor = start_spare_process(self._stages, **self._resources, **_elsewhere(late.process.node_id))
        self._runs[late.index] = _SecondRun(actor, actor.run.remote(self._units[late.index]))

    def _follow(self, index: int, run: _SecondRun) -> None:
        """Ends a second run if the unit's first run was faster, else passes on its result."""
        if index not in self._arrived:
            if not ray.wait([run.result], timeout=0)[0]:
                return
            with contextlib.suppress(RayError):  # the spare process died, so the first run counts
                answer = ray.get(run.result)
                state = FAILED if isinstance(pickle.loads(answer), Exception) else ENDED
                ray.get(self._ledger.answer.remote(index, state, answer), timeout=NODE_SECONDS)
                for process in ray.get(self._ledger.processes_of.remote(index), timeout=NODE_SECONDS):
                    _end_process(process, only_if_idle=False)
        del self._runs[index]
        ray.kill(run.actor)

    def _name(self, late: Late, reason: str) -> None:
        key = (late.stage, late.index, late.process)
        if key in self._named:
            return
        self._named.add(key)
        count_late(late.stage)
        unit, process = dict(self._units[late.index]), late.process
        self._on_late(LateUnit(unit, late.stage, process.node, process.pid, late.seconds, reason))


def _log(late: LateUnit) -> None:
    _logger.warning("cluster: unit %s is late, %s.", late.unit, late)


def _elsewhere(node_id: str) -> dict[str, Any]:
    """The option that prefers another living node with CPUs, if there is one."""
    nodes = [node for node in ray.nodes() if node["Alive"] and "CPU" in node["Resources"]]
    others = [node["NodeID"] for node in nodes if node["NodeID"] != node_id]
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(others[0], soft=True)} if others else {}


def _end_process(process: Process, *, only_if_idle: bool) -> Any:
    """A reference to the result of `_end_here` on the process's node."""
    here = NodeAffinitySchedulingStrategy(process.node_id, soft=False)
    task: Any = ray.remote(num_cpus=0, max_retries=0)(_end_here)
    return task.options(scheduling_strategy=here).remote(process.pid, only_if_idle)


def _end_here(pid: int, only_if_idle: bool) -> str:
    """Ends a Ray worker of this node: "ended"; "gone" if there is none; "at work" if it works and must be kept."""
    folder = Path("/proc") / str(pid)
    try:
        if b"ray::" not in (folder / "cmdline").read_bytes():
            return "gone"  # another process now has its number
        if only_if_idle and _is_at_work(folder):
            return "at work"
        os.kill(pid, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):
        return "gone"
    return "ended"


def _is_at_work(process: Path) -> bool:
    """Whether, in the next seconds, the process uses a processor or one of its threads waits for one."""
    before = _processor_ticks(process)
    for _ in range(_LOOKS):
        time.sleep(_IDLE_SECONDS / _LOOKS)
        if _processor_ticks(process) != before:
            return True
        for thread in (process / "task").iterdir():
            with contextlib.suppress(FileNotFoundError):  # a thread that has ended
                if _status_fields(thread)[0] == "R":
                    return True
    return False


def _processor_ticks(process: Path) -> int:
    fields = _status_fields(process)
    return int(fields[11]) + int(fields[12])  # utime and stime


def _status_fields(folder: Path) -> list[str]:
    """The fields of stat (proc(5)), starting at the state; the name before it may contain any character."""
    return (folder / "stat").read_text().rsplit(")", 1)[1].split()
