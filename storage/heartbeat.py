"""Heartbeats: each launch of a step renews its own file, ``<step>/drivers/<launch>-<random>.json``, until it ends.

A heartbeat protects the data of one start of the step. While it is fresh, `--restart` is refused, and the data of this
start is not deleted. A killed launch leaves its last heartbeat behind, which becomes stale. Ages are measured with the
store's clock, so the clocks of the hosts do not matter. Results do not depend on heartbeats: a launch that was
suspended for a long time writes into the folder of its own start, which nobody reads any more.
"""

import contextlib
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from uuid import uuid4

from storage.location import Location
from storage.process_identity import ProcessIdentity
from storage.store_clock import object_ages

INTERVAL = 15.0  # seconds between two beats
STALE_AFTER = 4 * INTERVAL

_FILE = re.compile(r"([\w-]+)\.json", re.ASCII)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Heartbeat:
    """The last heartbeat of a launch.

    Attributes:
        launch: the part of the step that it computes, such as ``"1-of-4"``.
        host: the host on which it runs, for people.
        process: its process.
        started: when it began, in seconds since 1970 by its host's clock; only for display.
        start_id: the start of the step that it works on; "" if it is not known.
        age: seconds since its last beat, by the store's clock.
        name: the name of its file.
    """

    launch: str
    host: str
    process: ProcessIdentity
    started: float
    start_id: str
    age: float
    name: str = ""

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_stale(self) -> bool:
        """Whether the launch counts as dead: its last beat is old, or its process on this machine has ended.

        A beat from the future also counts as old. It was written before the store's clock was set back, and no beat has
        followed since.
        """
        return abs(self.age) > STALE_AFTER or self.process.is_known_to_have_ended()


def heartbeats(step: Location, *, may_write: bool = False) -> list[Heartbeat]:
    """The heartbeats in a step's folder, also stale ones, sorted by file name.

    Args:
        may_write: whether a temporary file may be written to learn the file system's time (see
            `store_clock.object_ages`).
    """
    folder = step / "drivers"
    ages = {name: age for name, age in object_ages(folder, may_write=may_write).items() if _FILE.fullmatch(name)}
    with ThreadPoolExecutor(16) as pool:
        found = pool.map(lambda name: _read(folder / name, ages[name]), sorted(ages))
        return [beat for beat in found if beat is not None]


def living_launches(step: Location) -> list[Heartbeat]:
    """The heartbeats of living launches. The heartbeats of dead launches are deleted."""
    beats = heartbeats(step, may_write=True)
    for beat in beats:
        if beat.is_stale:
            (step / "drivers" / beat.name).delete()
    return [beat for beat in beats if not beat.is_stale]


@contextlib.contextmanager
def beating(step: Location, launch: str, interval: float = INTERVAL, start_id: str = "") -> Iterator[None]:
    """Writes heartbeats into a new file during a `with` block; if one cannot be written, this is logged.

    The first one is written before the block begins, so other launches and the status see it from there on.

    Args:
        step: the step's folder.
        launch: the part of the step: letters, digits, ``_`` and ``-``.
        start_id: the start of the step that the launch works on.
    """
    place = step / "drivers" / f"{launch}-{uuid4().hex[:8]}.json"
    content = {
        "launch": launch,
        "host": socket.gethostname(),
        **asdict(ProcessIdentity.own()),
        "started": time.time(),
        "start_id": start_id,
    }
    has_ended = threading.Event()

    def beat(count: int) -> None:
        _attempt(lambda: place.write_bytes(json.dumps({**content, "beats": count}).encode()))

    def beat_on() -> None:
        count = 1
        while not has_ended.wait(interval):
            count += 1
            beat(count)

    beat(1)
    thread = threading.Thread(target=beat_on, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join()
        _attempt(place.delete)


def _attempt(write: Callable[[], object]) -> None:
    try:
        write()
    except OSError as error:  # a StorageError is one
        _log.warning("the heartbeat could not be written: %s", error)


def _read(place: Location, age: float) -> Heartbeat | None:
    """A heartbeat; None if it was deleted in the meantime, or if the file is something else."""
    try:
        found = json.loads(place.read_bytes())
        launch, host, start_id = str(found["launch"]), str(found["host"]), str(found.get("start_id", ""))
        if not re.fullmatch(r"[\w-]+", launch, re.ASCII) or not host.isprintable():
            return None  # these are printed
        process, started = ProcessIdentity.from_record(found), float(found["started"])
        return Heartbeat(launch, host, process, started, start_id, age, place.name)
    except (FileNotFoundError, IsADirectoryError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
