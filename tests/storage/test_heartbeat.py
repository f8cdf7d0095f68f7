"""Signs of life: there while a driver runs, gone when it ends, told apart from those of a killed one."""

import json
import logging
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from storage.heartbeat import STALE_AFTER, Heartbeat, beating, heartbeats
from storage.location import Location


def wait_for_beats(step: Location) -> list[Heartbeat]:
    deadline = time.monotonic() + 30
    while not (found := heartbeats(step)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def test_a_driver_gives_signs_while_it_runs_and_none_after(location: Location) -> None:
    with beating(location / "maps", "1-of-4", interval=0.05):
        [first] = wait_for_beats(location / "maps")
        assert (first.launch, first.host, first.pid) == ("1-of-4", socket.gethostname(), os.getpid())
        assert not first.is_stale(time.time())
        deadline = time.monotonic() + 30
        while heartbeats(location / "maps")[0].beat == first.beat and time.monotonic() < deadline:
            time.sleep(0.02)
        assert heartbeats(location / "maps")[0].beat > first.beat
    assert heartbeats(location / "maps") == []


def test_a_block_that_raises_leaves_no_sign(tmp_path: Path) -> None:
    step = Location(str(tmp_path))
    with pytest.raises(ValueError, match="mine"), beating(step, "1-of-1"):
        raise ValueError("mine")
    assert heartbeats(step) == []


def test_a_silent_or_vanished_driver_is_stale() -> None:
    vanished = subprocess.Popen([sys.executable, "-c", ""])
    vanished.wait()
    here = Heartbeat("1-of-1", socket.gethostname(), os.getpid(), started=0.0, beat=1000.0)
    assert not here.is_stale(1001.0)
    assert here.is_stale(1001.0 + STALE_AFTER)
    assert replace(here, pid=vanished.pid).is_stale(1001.0)
    assert not replace(here, pid=vanished.pid, host="elsewhere").is_stale(1001.0)  # unknown until it is silent
    assert not here.is_stale(900.0)  # another clock


def test_a_driver_that_ended_unasked_for_is_stale() -> None:
    ended = subprocess.Popen([sys.executable, "-c", "print()"], stdout=subprocess.PIPE)
    assert ended.stdout is not None
    ended.stdout.read()  # to its end; its parent, this process, does not ask for the exit code
    here = Heartbeat("1-of-1", socket.gethostname(), ended.pid, started=0.0, beat=1000.0)
    give_up = time.monotonic() + 30
    while not here.is_stale(1001.0) and time.monotonic() < give_up:
        time.sleep(0.05)
    assert here.is_stale(1001.0)
    ended.wait()


@pytest.mark.parametrize("body", [b"", b"null", b"{}", b'{"launch": "1-of-1"}'])
def test_what_is_no_sign_of_life_is_none(body: bytes, tmp_path: Path) -> None:
    (Location(str(tmp_path)) / "drivers/1-of-1.json").write_bytes(body)
    assert heartbeats(Location(str(tmp_path))) == []


def test_a_store_that_refuses_signs_does_not_stop_the_work(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "drivers").write_text("a file in the way")
    with caplog.at_level(logging.WARNING), beating(Location(str(tmp_path)), "1-of-1"):
        pass
    assert "no sign of life" in caplog.text


def test_signs_are_plain_json(tmp_path: Path) -> None:
    step = Location(str(tmp_path))
    with beating(step, "1-of-1"):
        wait_for_beats(step)
        found = json.loads((tmp_path / "drivers" / "1-of-1.json").read_text())
    assert found.keys() == {"launch", "host", "pid", "started", "beat"}
