"""The staged fan-out on a real Ray, and its in-process form."""

import itertools
import os
import resource
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from ray import cloudpickle

from cluster import fanout
from cluster.connect import Connection
from cluster.errors import ClusterError
from cluster.fanout import MAX_BEGINS, Payload, Pool, Stages, fan_out, fan_out_in_process
from cluster.stages import Compute

STAGES = ["compute", *(pytest.param(stage, marks=pytest.mark.cluster) for stage in ("read", "write"))]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")  # Ray Data warns of its own settings

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test module

ONE, TWO = Pool(1, 1), Pool(2, 2)


def units(count: int) -> list[Payload]:
    return [{"unit": number} for number in range(count)]


def note_begin(folder: Path, stage: str, unit: int) -> None:
    """Leaves a file for this beginning, so that the driver can count them."""
    (folder / f"{stage}-{unit}-{time.monotonic_ns()}").touch()


def num_begins(folder: Path, stage: str, unit: int | str = "*") -> int:
    return len(list(folder.glob(f"{stage}-{unit}-*")))


def run_noted(folder: Path, stage: str, fault: dict[tuple[str, int], str], payload: Payload) -> Payload:
    """A stage that notes its beginning, then does what `fault` says for this stage and unit."""
    unit = payload["unit"]
    note_begin(folder, stage, unit)
    match fault.get((stage, unit)):
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "die once" if num_begins(folder, stage, unit) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        case "value error":
            raise ValueError(f"unit {unit}: no such thing.")
    return {"unit": unit, "squares": np.arange(unit + 1) ** 2}


def noted_stages(folder: Path, fault: dict[tuple[str, int], str] | None = None) -> Stages:
    stage = partial(run_noted, folder)
    return Stages(
        lambda: partial(stage, "compute", fault or {}),
        partial(stage, "read", fault or {}),
        partial(finish, partial(stage, "write", fault or {})),
    )


def finish(stage: partial[Payload], payload: Payload) -> Payload:
    return {"unit": stage(payload)["unit"], "sum": int(payload["squares"].sum()), "skipped": []}


def in_order(receipts: list[Payload]) -> list[Payload]:
    return sorted(receipts, key=lambda receipt: receipt["unit"])


def test_each_unit_runs_once_in_each_stage_and_leaves_one_receipt(local_ray: Connection, tmp_path: Path) -> None:
    receipts = list(fan_out(units(9), noted_stages(tmp_path), ONE))
    assert in_order(receipts) == [{"unit": n, "sum": sum(k * k for k in range(n + 1)), "skipped": []} for n in range(9)]
    for stage, unit in itertools.product(("read", "compute", "write"), range(9)):
        assert num_begins(tmp_path, stage, unit) == 1


@pytest.mark.cluster
def test_workers_order_and_process_do_not_change_receipts(local_ray: Connection, tmp_path: Path) -> None:
    stages = noted_stages(tmp_path)
    expected = list(fan_out_in_process(units(7), stages))
    assert in_order(list(fan_out(units(7), stages, TWO))) == expected
    assert in_order(list(fan_out(units(7)[::-1], stages, Pool(1, 2)))) == expected


def timed(folder: Path, stage: str, payload: Payload) -> Payload:
    """A stage that notes when and where it ran; the later units are not read before one is computed."""
    begin = time.monotonic()
    (folder / stage).touch()
    while stage == "read" and payload["unit"] >= 6 and not (folder / "compute").exists():
        time.sleep(0.1)
        assert time.monotonic() < begin + 100, "computing waits for all reading"
    time.sleep(0.2)
    return payload | {stage: (begin, time.monotonic(), os.getpid())}


@pytest.mark.cluster
def test_stages_overlap_in_processes_of_their_own(local_ray: Connection, tmp_path: Path) -> None:
    stage = partial(timed, tmp_path)
    stages = Stages(lambda: partial(stage, "compute"), partial(stage, "read"), partial(stage, "write"))
    receipts, arrivals = [], []
    for receipt in fan_out(units(12), stages, ONE):
        receipts.append(receipt)
        arrivals.append(time.monotonic())
    reads, computes = ([receipt[stage] for receipt in receipts] for stage in ("read", "compute"))
    assert any(r[0] < c[1] and c[0] < r[1] for r in reads for c in computes), "reading waited for computing"
    assert not {r[2] for r in reads} & {c[2] for c in computes}, "Ray Data fused reading into the actor"
    assert arrivals[0] < max(c[0] for c in computes), "the first receipt came after all units were computed"


def echo(payload: Payload) -> Payload:
    return payload


def test_reading_and_writing_are_optional(local_ray: Connection) -> None:
    stages = Stages(lambda: echo)
    assert in_order(list(fan_out(units(5), stages, ONE))) == list(fan_out_in_process(units(5), stages)) == units(5)


AWKWARD = {
    "unit": 0,
    "nothing": None,
    "empty": [],
    "mixed": [1, "a", {"b": None}],
    "bytes": b"\0\xff",
    "no rows": np.zeros((0, 3), np.float16),
    "flags": np.array([True, False]),
}


def test_payloads_and_receipts_arrive_as_they_were_sent(local_ray: Connection) -> None:
    [receipt] = fan_out([AWKWARD], Stages(lambda: echo, echo, echo), ONE)
    for name, value in AWKWARD.items():
        if isinstance(value, np.ndarray):
            assert receipt[name].dtype == value.dtype
            np.testing.assert_array_equal(receipt[name], value)
        else:
            assert receipt[name] == value


def test_large_arrays_arrive_as_they_were_sent(local_ray: Connection) -> None:
    """The first one is read in shared memory."""
    values = np.arange(100_000, dtype=np.int32)
    sent = {"first": values.reshape(100, 1000), "second": np.asfortranarray(values.reshape(50, 2000)), "empty": []}
    [receipt] = fan_out([sent], Stages(lambda: echo, echo, echo), ONE)
    assert receipt["empty"] == []
    for name in ("first", "second"):
        assert receipt[name].dtype == np.int32
        np.testing.assert_array_equal(receipt[name], sent[name])


class Doubler:
    """Doubles a number that `prepare` has unpacked; without it, the number is missing."""

    def prepare(self, payload: Payload) -> Payload:
        return {"unit": payload["unit"], "number": payload["unit"] + 1}

    def __call__(self, payload: Payload) -> Payload:
        return {"unit": payload["unit"], "doubled": 2 * payload["number"]}


def test_an_actor_prepares_each_unit_of_a_larger_block_before_it_computes_it(
    local_ray: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout, "FEW_UNITS", 4)
    receipts = fan_out(units(5), Stages(Doubler, echo, echo), ONE)
    assert sorted(receipt["doubled"] for receipt in receipts) == [2, 4, 6, 8, 10]


def test_ray_data_accepts_actors_with_gpus(local_ray: Connection) -> None:
    """It has rules for them that it does not have for others; no GPU is needed to see them."""
    fanout._dataset(units(2), Stages(lambda: echo, echo, echo), Pool(1, 1, gpus_per_actor=1.0), None)


def large(payload: Payload) -> Payload:
    return payload | {"image": np.ones(16 << 20, np.uint8)}


def small(payload: Payload) -> Payload:
    return {"unit": payload["unit"], "sum": int(payload["image"].sum())}


def test_driver_never_holds_a_payload(local_ray: Connection) -> None:
    list(fan_out(units(1), Stages(lambda: large, large, small), ONE))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    receipts = list(fan_out(units(12), Stages(lambda: large, large, small), ONE))
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert {receipt["sum"] for receipt in receipts} == {16 << 20}
    assert grown_mib < 16, "one payload has 16 MiB"


@pytest.mark.parametrize("stage", STAGES)
def test_an_error_in_a_stage_comes_back_as_itself_and_stops(local_ray: Connection, tmp_path: Path, stage: str) -> None:
    stages = noted_stages(tmp_path, {(stage, 2): "value error"})
    with pytest.raises(ValueError) as caught:
        list(fan_out(units(200), stages, ONE))
    assert type(caught.value) is ValueError
    assert str(caught.value) == "unit 2: no such thing."
    assert "run_noted" in caught.value.__notes__[0], "the worker's traceback is lost"
    assert num_begins(tmp_path, "write") < 200


class ForeignError(Exception):
    """An error as other packages define them: pickle calls its class with the message alone."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{message} ({code})")


def fail_foreign(payload: Payload) -> Payload:
    raise ForeignError(7, "no answer")


def hold_a_lock(payload: Payload) -> Payload:
    return {"lock": threading.Lock()}


@pytest.mark.parametrize(
    ("compute", "kind", "message"),
    [
        (hold_a_lock, TypeError, r"^cannot pickle '_thread.lock' object"),
        (fail_foreign, ClusterError, r"^ForeignError: no answer \(7\)"),
    ],
)
def test_results_and_errors_that_cannot_be_pickled_are_reported_in_one_sentence(
    local_ray: Connection, compute: Compute, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        list(fan_out(units(1), Stages(lambda: compute), ONE))
    assert caught.value.__notes__[0].startswith("In stage 'compute', in a worker:\nTraceback")


def refuse() -> None:
    raise FileNotFoundError("no classifier: train one first.")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.cluster
def test_an_error_while_an_actor_is_made_ready_comes_back_as_itself(local_ray: Connection) -> None:
    with pytest.raises(FileNotFoundError, match=r"^no classifier: train one first\."):
        list(fan_out(units(3), Stages(refuse, echo, echo), ONE))


@pytest.mark.cluster
def test_an_actor_that_dies_while_it_is_made_ready_stops_the_fan_out(local_ray: Connection) -> None:
    with pytest.raises(ClusterError, match="while it started"):
        list(fan_out(units(3), Stages(die, echo, echo), ONE))


@pytest.mark.parametrize("stage", STAGES)
def test_the_unit_of_a_killed_worker_is_run_again(local_ray: Connection, tmp_path: Path, stage: str) -> None:
    receipts = list(fan_out(units(6), noted_stages(tmp_path, {(stage, 3): "die once"}), ONE))
    assert [receipt["unit"] for receipt in in_order(receipts)] == list(range(6))
    assert num_begins(tmp_path, stage, 3) == 2


@pytest.mark.cluster
@pytest.mark.parametrize("stage", STAGES)
def test_a_unit_that_kills_its_process_is_handed_to_on_poison(
    local_ray: Connection, tmp_path: Path, stage: str
) -> None:
    stages = noted_stages(tmp_path, {(stage, 3): "die"})
    receipts = in_order(list(fan_out(units(6), stages, ONE, on_poison=lambda unit: unit | {"poison": True})))
    assert receipts[3] == {"unit": 3, "poison": True}
    assert [receipt["unit"] for receipt in receipts] == list(range(6))
    assert num_begins(tmp_path, stage, 3) == MAX_BEGINS


class Unpacked:
    """Leaves a file where it is unpacked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __setstate__(self, state: dict[str, Path]) -> None:
        (state["_folder"] / "unpacked").touch()


def die_beside_a_waiting_unit(folder: Path, payload: Payload) -> Payload:
    note_begin(folder, "compute", payload["unit"])
    deadline = time.monotonic() + 60
    while payload["unit"] == 0:
        if (folder / "unpacked").exists():
            if not num_begins(folder, "compute", 1):
                (folder / "unpacked").unlink()  # wait for it the next time too
            os.kill(os.getpid(), signal.SIGKILL)
        assert time.monotonic() < deadline, "no unit is unpacked while another is computed"
        time.sleep(0.01)
    return {"unit": payload["unit"]}


def test_a_unit_that_waits_for_its_turn_does_not_count_as_the_cause(local_ray: Connection, tmp_path: Path) -> None:
    waiting = {"unit": 1, "note": Unpacked(tmp_path)}
    stages = Stages(lambda: partial(die_beside_a_waiting_unit, tmp_path))
    found = list(fan_out([{"unit": 0}, waiting], stages, ONE, on_poison=lambda unit: unit | {"poison": True}))
    assert in_order(found) == [{"unit": 0, "poison": True}, {"unit": 1}]
    assert [num_begins(tmp_path, "compute", unit) for unit in (0, 1)] == [MAX_BEGINS, 1]


@pytest.mark.cluster
def test_poison_without_a_remedy_stops_and_names_the_unit(local_ray: Connection, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"unit \{'unit': 1\} ended its process 2 times in stage 'compute'"):
        list(fan_out(units(3), noted_stages(tmp_path, {("compute", 1): "die"}), ONE))


def slow(payload: Payload) -> Payload:
    time.sleep(0.1)
    return payload


@pytest.mark.cluster
def test_a_caller_who_has_had_enough_ends_the_execution(local_ray: Connection, tmp_path: Path) -> None:
    stages = noted_stages(tmp_path)
    receipts = fan_out(units(300), Stages(lambda: slow, stages.read, echo), ONE)
    next(receipts)
    receipts.close()
    time.sleep(0.5)  # what was under way ends
    begun = num_begins(tmp_path, "read")
    time.sleep(1)
    assert num_begins(tmp_path, "read") == begun < 300


def test_no_units_give_no_receipts(local_ray: Connection) -> None:
    assert list(fan_out([], Stages(refuse, echo, echo), ONE)) == []


def test_a_pool_larger_than_the_cluster_is_refused(local_ray: Connection) -> None:
    with pytest.raises(ClusterError, match=r"8 compute actors .* need 9 CPUs, but the cluster has 4"):
        next(fan_out(units(1), Stages(refuse, echo, echo), Pool(8, 8)))
    with pytest.raises(ClusterError, match=r"1 compute actor .* needs 1 GPU, but the cluster has 0"):
        next(fan_out(units(1), Stages(refuse, echo, echo), Pool(gpus_per_actor=1)))


@pytest.mark.parametrize(
    ("cpus", "pool", "reads"),
    [
        (16, Pool(1, 1, gpus_per_actor=1, write_cpus=0.25), 14),  # a GPU node: 16 CPUs for one actor
        (4, Pool(4, 4, cpus_per_actor=0.75, read_cpus=0.25, write_cpus=0.25), 5),
        (2, Pool(1, 1, cpus_per_actor=0.5, read_cpus=0.25, write_cpus=0.25), 5),
        (2, Pool(1, 1), 2),
        (1, Pool(1, 8, autoscaling=True), 32),
    ],
)
def test_reads_take_the_cpus_that_actors_and_writing_leave(cpus: float, pool: Pool, reads: int) -> None:
    assert pool.num_reads(Connection(num_cpus=cpus, num_gpus=1, num_nodes=1)) == reads


@pytest.mark.parametrize("numbers", [{"min_actors": 0}, {"min_actors": 3, "max_actors": 2}])
def test_an_impossible_pool_is_refused(numbers: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"^cluster: "):
        Pool(**numbers)
