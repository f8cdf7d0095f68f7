"""The ledger of a fan-out: an actor that knows which unit is at work in which stage, where, and since when.

Ray repeats the tasks of lost processes for ever, so a unit that kills its process would be repeated for ever: the
ledger counts how often each unit began and did not end. The driver asks it for units that are late.

Times are those of the ledger's own clock: the clocks of other nodes do not matter.
"""

import os
import statistics
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from threading import Event, Thread
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.live_metrics import count_retry

MAX_BEGINS = 2
"""How often a unit is begun in one stage when its process keeps dying."""

BEAT_SECONDS = 5.0
"""How often a process that works on a unit says so."""

MIN_PEERS = 3
"""Units that must have ended in a stage before another can be late there."""

_REMEMBERED = 500  # durations of a stage, for the median

GO_ON, GIVE_UP = "go on", "give up"  # answers to `Ledger.begin`


@dataclass(frozen=True)
class Process:
    """A worker process: the id and the address of its node, and its process id there."""

    node_id: str
    node: str
    pid: int


@dataclass
class Work:
    """A unit at work in one stage.

    Attributes:
        begun, heard: when it began, and when its process last said that it works on it, by the ledger's clock.
    """

    stage: str
    index: int
    process: Process
    begun: float
    heard: float


@dataclass(frozen=True)
class Late:
    """A unit that is late: how long it has been at work in a stage, the median of those that have ended there (None:
    too few have), and for how long its process has not been heard."""

    stage: str
    index: int
    process: Process
    seconds: float
    median: float | None
    silent_seconds: float


class Ledger:
    """The actor. It is lost, with its counts, only if the driver's node is."""

    def __init__(self) -> None:
        self._begun: Counter[tuple[str, int | str]] = Counter()
        self._at_work: dict[tuple[str, int | str], Work] = {}
        self._durations: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_REMEMBERED))
        self._answers: dict[int, tuple[str, bytes]] = {}

    def begin(self, stage: str, key: int | str, process: Process) -> str | tuple[str, bytes]:
        """Notes that `key` is about to be run in `stage`.

        Returns:
            GO_ON; GIVE_UP when it has had its chances; what `answer` was given where the unit ended elsewhere.
        """
        if key in self._answers:
            return self._answers[key]  # type: ignore[index]  # only units have answers
        if self._begun[stage, key] >= MAX_BEGINS:
            return GIVE_UP
        if self._begun[stage, key] > 0:
            count_retry(stage)
        self._begun[stage, key] += 1
        if isinstance(key, int):
            now = time.monotonic()
            self._at_work[stage, key] = Work(stage, key, process, now, now)
        return GO_ON

    def beat(self, stage: str, index: int, process: Process) -> None:
        """Notes that `process` still works on a unit."""
        work = self._at_work.get((stage, index))
        if work is not None and work.process == process:
            work.heard = time.monotonic()

    def end(self, stage: str, key: int | str) -> None:
        """Notes that `key` has ended in `stage`."""
        self._begun.pop((stage, key), None)
        work = self._at_work.pop((stage, key), None)
        if work is not None:
            self._durations[stage].append(time.monotonic() - work.begun)

    def answer(self, index: int, state: str, payload: bytes) -> None:
        """Keeps what a second run of a unit has brought; the first run stops with it at its next stage."""
        self._answers[index] = (state, payload)

    def processes_of(self, index: int) -> list[Process]:
        """The processes that are at work on a unit."""
        return [work.process for work in self._at_work.values() if work.index == index]

    def forgive(self, stage: str, index: int) -> None:
        """Forgets one beginning of a unit, whose process is to be ended through no fault of the unit's."""
        self._begun[stage, index] = max(0, self._begun[stage, index] - 1)

    def late(self, factor: float, floor_seconds: float, silent_seconds: float) -> list[Late]:
        """The units that have been at work for more than `factor` medians of their stage and `floor_seconds`, or whose
        process has not been heard for `silent_seconds`."""
        now, found = time.monotonic(), []
        medians = {stage: statistics.median(each) for stage, each in self._durations.items() if len(each) >= MIN_PEERS}
        for work in self._at_work.values():
            seconds, median, silent = now - work.begun, medians.get(work.stage), now - work.heard
            is_slow = median is not None and seconds > max(factor * median, floor_seconds)
            if is_slow or silent > silent_seconds:
                found.append(Late(work.stage, work.index, work.process, seconds, median, silent))
        return found


def start_ledger() -> Any:
    """A ledger on the driver's own node, which no worker's death takes along."""
    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Ledger)
    return actor.options(scheduling_strategy=node).remote()


@cache
def this_process() -> Process:
    """The process that asks, in a worker."""
    return Process(ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address(), os.getpid())


@contextmanager
def heard(ledger: Any, stage: str, index: int, seconds: float = BEAT_SECONDS) -> Iterator[None]:
    """Lets the ledger hear from this process while the block runs.

    A process that is stopped, or that Python cannot run in, is not heard; one that waits for a disk is.
    """
    ended, process = Event(), this_process()

    def beat() -> None:
        while not ended.wait(seconds):
            ledger.beat.remote(stage, index, process)

    thread = Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
