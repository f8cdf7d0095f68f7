"""The ledger of a fan-out: an actor that knows which unit is in which stage, where, and since when.

Ray repeats the tasks of lost processes for ever, so a unit that kills its process would also be repeated for ever. So
the ledger counts how often each unit began and did not end. The driver asks it for units that are late.

All times are measured with the ledger's own clock, so the clocks of other nodes do not matter.
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
"""How often a unit is started in one stage if its process repeatedly dies."""

BEAT_SECONDS = 5.0
"""The time in seconds between beats of a process that works on a unit."""

MIN_PEERS = 3
"""The number of units that must have ended in a stage before another unit can be late there."""

_REMEMBERED = 500  # number of recent durations of a stage, for the median

GO_ON, GIVE_UP = "go on", "give up"  # answers to `Ledger.begin`


@dataclass(frozen=True)
class Process:
    """A worker process: the id and the address of its node, and its process number there."""

    node_id: str
    node: str
    pid: int


@dataclass
class Work:
    """A unit that is running in one stage.

    Attributes:
        begun, heard: when it began, and when the last beat of its process came, by the ledger's clock.
    """

    stage: str
    index: int
    process: Process
    begun: float
    heard: float


@dataclass(frozen=True)
class Late:
    """A unit that is late: how long it has been running in a stage, the median time of the units that have ended there
    (None: too few have ended), and the time since the last beat of its process."""

    stage: str
    index: int
    process: Process
    seconds: float
    median: float | None
    silent_seconds: float


class Ledger:
    """The actor. It is lost, with its counts, only if the driver's node is lost."""

    def __init__(self) -> None:
        self._begun: Counter[tuple[str, int | str]] = Counter()
        self._at_work: dict[tuple[str, int | str], Work] = {}
        self._durations: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_REMEMBERED))
        self._answers: dict[int, tuple[str, bytes]] = {}

    def begin(self, stage: str, key: int | str, process: Process) -> str | tuple[str, bytes]:
        """Records that `key` is about to run in `stage`.

        Returns:
            GO_ON; or GIVE_UP if it has begun too often; or the result from `answer` if the unit has ended elsewhere.
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
        """Records that `process` still works on a unit."""
        work = self._at_work.get((stage, index))
        if work is not None and work.process == process:
            work.heard = time.monotonic()

    def end(self, stage: str, key: int | str) -> None:
        """Records that `key` has ended in `stage`."""
        self._begun.pop((stage, key), None)
        work = self._at_work.pop((stage, key), None)
        if work is not None:
            self._durations[stage].append(time.monotonic() - work.begun)

    def answer(self, index: int, state: str, payload: bytes) -> None:
        """Keeps the result of a unit's second run; the first run ends with it at its next stage."""
        self._answers[index] = (state, payload)

    def processes_of(self, index: int) -> list[Process]:
        """The processes that work on a unit."""
        return [work.process for work in self._at_work.values() if work.index == index]

    def forgive(self, stage: str, index: int) -> None:
        """Forgets one start of a unit, because its process will be ended and the unit is not the cause."""
        self._begun[stage, index] = max(0, self._begun[stage, index] - 1)

    def late(self, factor: float, floor_seconds: float, silent_seconds: float) -> list[Late]:
        """The units that are late: they have been running longer than `factor` times the median of their stage and
        longer than `floor_seconds`, or their process has sent no beat for `silent_seconds`."""
        now, found = time.monotonic(), []
        medians = {stage: statistics.median(each) for stage, each in self._durations.items() if len(each) >= MIN_PEERS}
        for work in self._at_work.values():
            seconds, median, silent = now - work.begun, medians.get(work.stage), now - work.heard
            is_slow = median is not None and seconds > max(factor * median, floor_seconds)
            if is_slow or silent > silent_seconds:
                found.append(Late(work.stage, work.index, work.process, seconds, median, silent))
        return found


def start_ledger() -> Any:
    """A ledger on the driver's own node, so that it does not end with a worker."""
    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Ledger)
    return actor.options(scheduling_strategy=node).remote()


@cache
def this_process() -> Process:
    """The current worker process."""
    return Process(ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address(), os.getpid())


@contextmanager
def heard(ledger: Any, stage: str, index: int, seconds: float = BEAT_SECONDS) -> Iterator[None]:
    """Sends beats of this process to the ledger while the `with` block runs.

    No beats come from a process that is stopped or in which Python code cannot run. A process that waits for a disk
    still sends beats.
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
