"""Heartbeats: there while a launch runs, gone when it ends, told apart from those of a killed launch."""

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

from storage import heartbeat
from storage.heartbeat import STALE_AFTER, Heartbeat, beating, heartbeats
from storage.location import Location
from storage.process_identity import ProcessIdentity
from storage.store_clock import object_ages


def wait_for_beats(step: Location, number: int = 1) -> list[Heartbeat]:
    deadline = time.monotonic() + 30
    while len(found := heartbeats(step)) < number and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def beat_of(process: ProcessIdentity, age: float = 1.0) -> Heartbeat:
    return Heartbeat("1-of-1", socket.gethostname(), process, started=0.0, start_id="", age=age)


def test_a_launch_beats_while_it_runs_and_not_after(location: Location) -> None:
    step = location / "maps"
    with beating(step, "1-of-4", interval=0.05, start_id="2-0123abcd"):
        [beat] = wait_for_beats(step)
        assert (beat.launch, beat.host, beat.pid) == ("1-of-4", socket.gethostname(), os.getpid())
        assert beat.start_id == "2-0123abcd"
        assert not beat.is_stale
        assert -2 < beat.age < 30
        deadline = time.monotonic() + 30
        while beats_of(step) == [1] and time.monotonic() < deadline:
            time.sleep(0.02)
        assert beats_of(step) > [1]
    assert heartbeats(step) == []


def beats_of(step: Location) -> list[int]:
    folder = step / "drivers"
    return [json.loads((folder / name).read_bytes())["beats"] for name in folder.list_names() if name[0] != "."]


def test_two_launches_of_one_part_have_a_heartbeat_each(tmp_path: Path) -> None:
    step = Location(str(tmp_path))
    with beating(step, "1-of-1"):
        wait_for_beats(step)
        with beating(step, "1-of-1"):
            assert len(wait_for_beats(step, 2)) == 2
        [left] = heartbeats(step)
        assert not left.is_stale


def test_a_block_that_raises_leaves_no_heartbeat(tmp_path: Path) -> None:
    step = Location(str(tmp_path))
    with pytest.raises(ValueError, match="mine"), beating(step, "1-of-1"):
        raise ValueError("mine")
    assert heartbeats(step) == []


def test_a_silent_or_ended_launch_is_stale() -> None:
    own = ProcessIdentity.own()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert not beat_of(own).is_stale
    assert beat_of(own, age=STALE_AFTER + 1).is_stale
    assert beat_of(replace(own, pid=ended.pid)).is_stale
    elsewhere = replace(own, machine="another machine or container, whose numbers say nothing here")
    assert not beat_of(replace(elsewhere, pid=ended.pid)).is_stale  # unknown until it is silent
    assert beat_of(replace(own, ticks=own.ticks - 1)).is_stale  # the number was used again by a later process


def test_a_beat_from_before_the_clock_was_set_back_is_stale() -> None:
    """A living launch renews its beat every 15 s by the clock that is valid now."""
    elsewhere = replace(ProcessIdentity.own(), machine="another")
    assert beat_of(elsewhere, age=-3600).is_stale
    assert not beat_of(elsewhere, age=-2).is_stale


def test_a_process_that_ended_and_waits_for_its_parent_is_stale() -> None:
    ended = subprocess.Popen([sys.executable, "-c", "print()"], stdout=subprocess.PIPE)
    assert ended.stdout is not None
    ended.stdout.read()  # to its end; its parent, this process, does not ask for the exit code
    here = beat_of(replace(ProcessIdentity.own(), pid=ended.pid, ticks=0))
    give_up = time.monotonic() + 30
    while not here.is_stale and time.monotonic() < give_up:
        time.sleep(0.05)
    assert here.is_stale
    ended.wait()


def test_the_clocks_of_hosts_do_not_matter(location: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch on a host whose clock is hours late or early, and a reader with another clock again."""
    step, real = location / "maps", time.time
    for hours in (-5, 5):
        with monkeypatch.context() as patch:
            patch.setattr(heartbeat.time, "time", lambda hours=hours: real() + 3600 * hours)
            patch.setattr(socket, "gethostname", lambda: "elsewhere")
            with beating(step, "1-of-1"):
                [beat] = wait_for_beats(step)
                patch.setattr(heartbeat.time, "time", lambda hours=hours: real() - 3600 * hours)
                [beat] = heartbeats(step, may_write=True)
                assert not beat.is_stale
                assert -2 < beat.age < 30


def test_ages_are_the_stores(tmp_path: Path) -> None:
    folder = Location(str(tmp_path))
    (folder / "old").write_bytes(b"1")
    (folder / "deeper/new").write_bytes(b"1")
    os.utime(tmp_path / "old", times=(time.time() - 100, time.time() - 100))
    for may_write in (False, True):
        ages = object_ages(folder, may_write=may_write)
        assert ages.keys() == {"old"}
        assert 99 < ages["old"] < 130
    assert object_ages(folder / "nothing") == {}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[1",
        b"null",
        b"{}",
        b'{"launch": "1-of-1"}',
        b'{"launch": "x", "host": "h", "pid": -1, "started": 0}',
        b'{"launch": "x", "host": "h", "pid": 1000000000000000000000000000000, "started": 0}',
        b'{"launch": "x", "host": "h", "pid": Infinity, "started": 0}',
        b'{"launch": "\\u001b]0;x", "host": "h", "pid": 5, "started": 0}',
        b'{"launch": "x", "host": "\\u001b[31m", "pid": 5, "started": 0}',
    ],
)
def test_what_is_no_heartbeat_is_none(body: bytes, tmp_path: Path) -> None:
    (Location(str(tmp_path)) / "drivers/1-of-1.json").write_bytes(body)
    assert heartbeats(Location(str(tmp_path))) == []


def test_a_heartbeat_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    body = {"launch": "1-of-1", "host": "h", "pid": 5, "started": 0.0, "beat": 9.0}
    (Location(str(tmp_path)) / "drivers/1-of-1.json").write_bytes(json.dumps(body).encode())
    [beat] = heartbeats(Location(str(tmp_path)))
    assert not beat.is_stale


def test_a_store_that_refuses_heartbeats_does_not_stop_the_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "drivers").write_text("a file in the way")
    with caplog.at_level(logging.WARNING), beating(Location(str(tmp_path)), "1-of-1"):
        pass
    assert "the heartbeat could not be written" in caplog.text
