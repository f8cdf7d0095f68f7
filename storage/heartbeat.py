"""A driver's sign of life: ``<step>/drivers/<launch>.json``, renewed while it runs, deleted when it ends in order.

A killed driver leaves its last one, which grows stale. People read it, and `--restart`; no result depends on it.
"""

import contextlib
import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from storage.location import Location

INTERVAL = 15.0  # seconds between two beats
STALE_AFTER = 4 * INTERVAL

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Heartbeat:
    """One driver, as it last said.

    Attributes:
        launch: which part of the step it does, e.g. ``"1-of-4"``; two drivers of one part share one sign.
        host, pid: where it runs.
        started, beat: when it began and when it last said so, in seconds since 1970 (UTC), by its own clock.
    """

    launch: str
    host: str
    pid: int
    started: float
    beat: float

    def age(self, now: float) -> float:
        """Seconds since the last beat."""
        return max(0.0, now - self.beat)

    def is_stale(self, now: float) -> bool:
        """Whether the driver must be taken for dead: silent for long, or known to be gone from this machine."""
        return self.age(now) > STALE_AFTER or (self.host == socket.gethostname() and not _is_running(self.pid))


def heartbeats(step: Location) -> list[Heartbeat]:
    """The signs of life in a step's folder, stale ones too, by launch."""
    folder = step / "drivers"
    names = [name for name in folder.list_names() if re.fullmatch(r"[\w-]+\.json", name)]
    with ThreadPoolExecutor(16) as pool:
        return [beat for beat in pool.map(lambda name: _read(folder / name), names) if beat is not None]


@contextlib.contextmanager
def beating(step: Location, launch: str, interval: float = INTERVAL) -> Iterator[None]:
    """Gives signs of life for the length of a block; a store that refuses them is logged, not raised.

    Args:
        step: the step's folder.
        launch: the part of the step, letters, digits, ``_`` and ``-``.
    """
    place, host, started = step / "drivers" / f"{launch}.json", socket.gethostname(), time.time()
    has_ended = threading.Event()

    def beat() -> None:
        sign = Heartbeat(launch, host, os.getpid(), started, time.time())
        place.write_bytes(json.dumps(asdict(sign)).encode())

    def beat_on() -> None:
        _attempt(beat)
        while not has_ended.wait(interval):
            _attempt(beat)

    thread = threading.Thread(target=beat_on, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join()
        _attempt(place.delete)


def _attempt(write: Callable[[], None]) -> None:
    try:
        write()
    except OSError as error:  # a StorageError is one
        _log.warning("no sign of life: %s", error)


def _read(place: Location) -> Heartbeat | None:
    try:
        found = json.loads(place.read_bytes())
        numbers = float(found["started"]), float(found["beat"])
        return Heartbeat(str(found["launch"]), str(found["host"]), int(found["pid"]), *numbers)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # deleted meanwhile, or torn


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Whether a process has ended and only its parent has not asked how yet; told on Linux alone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False
