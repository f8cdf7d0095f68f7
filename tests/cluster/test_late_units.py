"""Units that are late on a real Ray: named, run a second time elsewhere, stuck workers replaced."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from ray import cloudpickle

from cluster.connect import Connection
from cluster.fanout import LateUnit, Patience, Payload, Pool, Stages, fan_out
from cluster.late_units import _end_here
from cluster.ledger import GIVE_UP, GO_ON, MIN_PEERS, Ledger, Process

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")  # Ray Data warns of its own settings

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test module

HERE, THERE = Process("a", "10.0.0.1", 1), Process("b", "10.0.0.2", 2)


def test_a_unit_is_late_by_a_multiple_of_its_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, now = Ledger(), 0.0
    monkeypatch.setattr("cluster.ledger.time.monotonic", lambda: now)
    for index in range(MIN_PEERS + 1):
        assert ledger.begin("compute", index, HERE) == GO_ON
    now = 10.0
    for index in range(MIN_PEERS - 1):
        ledger.end("compute", index)
    now = 1000.0
    for index in range(MIN_PEERS - 1, MIN_PEERS + 1):
        ledger.beat("compute", index, HERE)
    assert ledger.late(4, 60, 30) == [], "too few have ended"
    now = 12.0
    ledger.end("compute", MIN_PEERS - 1)
    now = 59.0
    ledger.beat("compute", MIN_PEERS, HERE)
    assert ledger.late(4, 60, 30) == [], "younger than the floor"
    now = 61.0
    [late] = ledger.late(4, 60, 30)
    assert (late.stage, late.index, late.seconds, late.median) == ("compute", MIN_PEERS, 61.0, 10.0)
    assert ledger.late(7, 60, 30) == [], "younger than seven medians"


def test_a_process_is_silent_when_it_is_not_heard_in_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, now = Ledger(), 0.0
    monkeypatch.setattr("cluster.ledger.time.monotonic", lambda: now)
    ledger.begin("read", 0, HERE)
    now = 20.0
    ledger.beat("read", 0, THERE)  # an older process that is not gone after all
    now = 31.0
    [late] = ledger.late(4, 60, 30)
    assert late.silent_seconds == 31.0 and late.median is None
    ledger.beat("read", 0, HERE)
    assert ledger.late(4, 60, 30) == []


def test_a_second_answer_ends_the_first_run_at_its_next_stage() -> None:
    ledger = Ledger()
    ledger.begin("read", 0, HERE)
    ledger.answer(0, "ended elsewhere", b"receipt")
    ledger.end("read", 0)
    assert ledger.begin("compute", 0, HERE) == ("ended elsewhere", b"receipt")
    assert ledger.begin("compute", 1, HERE) == GO_ON


def test_a_replaced_process_does_not_count_against_its_unit() -> None:
    ledger = Ledger()
    for _ in range(3):
        assert ledger.begin("compute", 0, HERE) == GO_ON
        ledger.forgive("compute", 0)
    assert [ledger.begin("compute", 0, HERE) for _ in range(3)] == [GO_ON, GO_ON, GIVE_UP]


def stopped_once(mark: Path, payload: Payload) -> Payload:
    """Stops its own process at unit 2, the first time."""
    try:
        if payload["unit"] == 2:
            mark.touch(exist_ok=False)
            mark.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
    except FileExistsError:
        pass
    time.sleep(0.1)
    return payload


def same(payload: Payload) -> Payload:
    return payload


@pytest.mark.cluster
@pytest.mark.parametrize("stage", ["read", "compute", "write"])
def test_a_stopped_worker_is_named_and_replaced(local_ray: Connection, tmp_path: Path, stage: str) -> None:
    named: list[LateUnit] = []
    mark = tmp_path / "stopped"
    fault = partial(stopped_once, mark)
    stages = {name: fault if name == stage else same for name in ("read", "compute", "write")}
    receipts = fan_out(
        [{"unit": number} for number in range(8)],
        Stages(lambda: stages["compute"], stages["read"], stages["write"]),
        Pool(2, 2),
        on_late=named.append,
        patience=Patience(silent_seconds=8, poll_seconds=1),  # heard every 5 s
    )
    assert sorted(receipt["unit"] for receipt in receipts) == list(range(8))
    [late] = named
    assert late.unit == {"unit": 2} and late.stage == stage and late.pid == int(mark.read_text())
    assert late.seconds < 60
    assert f"in stage '{stage}'" in str(late) and "it was ended" in str(late)
    assert not Path(f"/proc/{late.pid}").exists()


def slow_once(folder: Path, payload: Payload) -> Payload:
    """Takes for ever at unit 5, the first time, and notes who runs which unit."""
    with open(folder / str(payload["unit"]), "a") as runs:
        runs.write(f"{os.getpid()} ")
    if payload["unit"] == 5 and len((folder / "5").read_text().split()) == 1:
        time.sleep(3600)
    time.sleep(0.1)
    return payload | {"by": os.getpid()}


@pytest.mark.cluster
def test_a_slow_unit_runs_a_second_time_and_the_first_answer_counts(local_ray: Connection, tmp_path: Path) -> None:
    named: list[LateUnit] = []
    receipts = list(
        fan_out(
            [{"unit": number} for number in range(8)],
            Stages(lambda: partial(slow_once, tmp_path), same, same),
            Pool(2, 2),
            on_late=named.append,
            patience=Patience(floor_seconds=3, poll_seconds=1),
        )
    )
    assert sorted(receipt["unit"] for receipt in receipts) == list(range(8))
    [late] = named
    assert late.unit == {"unit": 5} and "started a second time" in str(late)
    first, second = (tmp_path / "5").read_text().split()
    assert late.pid == int(first)
    assert {receipt["by"] for receipt in receipts if receipt["unit"] == 5} == {int(second)}


@pytest.mark.cluster
def test_an_error_of_the_second_run_comes_back_as_itself(local_ray: Connection, tmp_path: Path) -> None:
    def fail_second(payload: Payload) -> Payload:
        if payload["unit"] == 5 and (tmp_path / "5").exists():
            raise ValueError("unit 5: no such thing.")
        return slow_once(tmp_path, payload)

    stages = Stages(lambda: fail_second, same, same)
    with pytest.raises(ValueError, match=r"^unit 5: no such thing\."):
        list(
            fan_out(
                [{"unit": number} for number in range(8)],
                stages,
                Pool(2, 2),
                patience=Patience(floor_seconds=3, poll_seconds=1),
            )
        )


BUSY = "import sys, time; print('ready', flush=True)\nwhile True: pass  # ray::"
IDLE = "import sys, time; print('ready', flush=True)\ntime.sleep(600)  # ray::"


@pytest.mark.parametrize(("code", "found"), [(BUSY, "at work"), (IDLE, "ended"), (IDLE.replace("ray", "x"), "gone")])
def test_only_an_idle_worker_of_ray_is_ended(code: str, found: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline()
        assert _end_here(process.pid, only_if_idle=True) == found
        assert (process.poll() is None) == (found != "ended") or process.wait(10) == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert _end_here(process.pid, only_if_idle=False) == "gone"
