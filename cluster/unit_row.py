"""A unit as a row of the fan-out's data set, and the work of worker processes on it.

A row goes through the stages with the unit's state; its payload is pickled. If a unit has ended early (failed, given
up, or finished elsewhere), its row passes the remaining stages unchanged.
"""

import pickle
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from threading import Lock
from typing import Any

import ray

from cluster.allocator import keep_freed_memory
from cluster.errors import ClusterError
from cluster.ledger import GIVE_UP, GO_ON, MAX_BEGINS, heard, this_process
from cluster.live_metrics import observe_stage
from cluster.stages import Compute, Payload

RUNNING, FAILED, POISON, ENDED = "running", "failed", "poison", "ended elsewhere"
"""The states of a row. A row that leaves the last stage as RUNNING or ENDED has the unit's receipt."""

Row = dict[str, Any]


def new_row(index: int, unit: Mapping[str, Any]) -> Row:
    """The row of the unit with this number."""
    packed = pack(unit)
    return {"index": index, "unit": packed, "state": RUNNING, "payload": packed}


def receipt_of(row: Row) -> Payload:
    """The receipt in a row that left the last stage.

    Raises:
        ClusterError: The unit repeatedly ended its process. Exception: An error of a stage, unchanged.
    """
    if row["state"] == FAILED:
        raise pickle.loads(row["payload"])
    if row["state"] in (RUNNING, ENDED):
        return pickle.loads(row["payload"])
    raise ClusterError(
        f"cluster: unit {pickle.loads(row['unit'])} ended its process {MAX_BEGINS} times in stage "
        f"'{row['payload'].decode()}'. Check whether memory ran out, or leave this unit out."
    )


def run_stage(
    stage: str,
    function: Compute,
    ledger: Any,
    row: Row,
    turn: AbstractContextManager[object] | None = None,
    prepare: Compute | None = None,
) -> Row:
    """Runs one stage of one unit, unless an earlier stage has ended it.

    Errors are sent to the driver as data and raised there. If they were raised here, they would arrive inside Ray's
    exceptions, with the cause in the middle of a long traceback.

    Args:
        turn: Entered after the payload is unpacked and prepared, before the unit begins; left before the result is
            packed. If the process ends, only the unit whose turn it is has begun, and a waiting unit does not count as
            the cause.
        prepare: Called with the unpacked payload before the turn; the function gets its result.
    """
    if row["state"] != RUNNING:
        return row
    keep_freed_memory()
    try:
        payload = pickle.loads(row["payload"])
        payload = prepare(payload) if prepare else payload
    except Exception as error:  # noqa: BLE001  # passed on, not swallowed
        return row | _failed(stage, error)
    with turn or nullcontext():
        answer = ray.get(ledger.begin.remote(stage, row["index"], this_process()))
        if answer == GIVE_UP:
            return row | {"state": POISON, "payload": stage.encode()}
        if answer != GO_ON:
            state, result = answer
            return row | {"state": state, "payload": result}
        start = time.monotonic()
        try:
            with heard(ledger, stage, row["index"]):
                result = function(payload)
        except Exception as error:  # noqa: BLE001  # passed on, not swallowed
            return row | _failed(stage, error)
        finally:
            ledger.end.remote(stage, row["index"])
        observe_stage(stage, time.monotonic() - start)
    return row | {"payload": pack(result)}


def _failed(stage: str, error: Exception) -> Row:
    """What an error changes in the row of a unit; call it while the error is handled."""
    error.add_note(f"In stage '{stage}', in a worker:\n{traceback.format_exc()}")
    return {"state": FAILED, "payload": pack(error)}


class ComputeActor:
    """One actor of the pool. An error during its start is raised by its first unit, like any other error.

    It is called for `CALLS` units at the same time. It computes one, while the next one is unpacked and prepared, and
    the last one is packed: 64 images of the network's size take about 50 ms to unpack, in which a GPU would be idle.
    """

    CALLS = 2

    def __init__(self, make_compute: Callable[[], Compute], ledger: Any) -> None:
        self._ledger, self._turn = ledger, Lock()
        self._compute = self._make(make_compute)

    def _make(self, make_compute: Callable[[], Compute]) -> Compute:
        actor = ray.get_runtime_context().get_actor_id()  # the same after a restart
        if ray.get(self._ledger.begin.remote("make_compute", actor, this_process())) == GIVE_UP:
            ended = f"a compute actor's process ended {MAX_BEGINS} times while it started"
            return partial(_fail, ClusterError(f"cluster: {ended}. Check whether memory ran out on its node."))
        try:
            compute = make_compute()
        except Exception as error:  # noqa: BLE001  # raised by the first unit
            compute = partial(_fail, error)
        self._ledger.end.remote("make_compute", actor)
        return compute

    def __call__(self, row: Row) -> Row:
        return run_stage(
            "compute", self._compute, self._ledger, row, self._turn, getattr(self._compute, "prepare", None)
        )


def _fail(error: Exception, _: Payload) -> Payload:
    raise error


def pack(value: object) -> bytes:
    """Pickles a value before it is sent; Arrow's typed columns would change empty lists, None and some arrays."""
    return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
