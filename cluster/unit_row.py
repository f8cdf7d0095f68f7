"""A unit as a row of the fan-out's data set, and the work of worker processes on it.

A row goes through the stages with the unit's state; its payload is pickled. The payload's first large array is a column
of its own, which the next process reads in shared memory: to pickle 64 images of 321 x 321 pixels takes 15 ms.
If a unit has ended early (failed, given up, or finished elsewhere), its row passes the remaining stages unchanged.
"""

import pickle
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from threading import Lock
from typing import Any

import pyarrow as pa
import ray

from cluster.allocator import keep_freed_memory
from cluster.errors import ClusterError
from cluster.ledger import GIVE_UP, GO_ON, MAX_BEGINS, heard, this_process
from cluster.live_metrics import observe_stage
from cluster.stages import Compute, Payload

LARGE = 2**16
"""Bytes from which an array is not pickled with its payload."""

RUNNING, FAILED, POISON, ENDED = "running", "failed", "poison", "ended elsewhere"
"""The states of a row. A row that leaves the last stage as RUNNING or ENDED has the unit's receipt."""

_COLUMN_TYPES = {"index": pa.int64(), "unit": pa.binary(), "state": pa.string(), "payload": pa.binary()}

Row = dict[str, Any]
"""Its values are `index`, `unit` (pickled), `state`, `payload` (pickled), and `array`: the bytes of the payload's first
large array, or None."""


def new_row(index: int, unit: Mapping[str, Any]) -> Row:
    """The row of the unit with this number."""
    packed = pickle.dumps(unit, pickle.HIGHEST_PROTOCOL)
    return {"index": index, "unit": packed, "state": RUNNING, "payload": packed}


def run_stage_of_table(stage: str, function: Compute, ledger: Any, table: pa.Table) -> pa.Table:
    """`run_stage` for a block of Ray Data, which is a table of one row."""
    return _table_of(run_stage(stage, function, ledger, _row_of(table)))


def _row_of(table: pa.Table) -> Row:
    """The one row of a table, without a copy of its array."""
    row = {name: table[name][0].as_py() for name in _COLUMN_TYPES}
    array = table["array"][0].as_buffer() if "array" in table.column_names else None
    return {**row, "array": array}


def _table_of(row: Row) -> pa.Table:
    array = pa.nulls(1, pa.large_binary())
    if row["array"] is not None:
        ends = pa.array([0, memoryview(row["array"]).nbytes], pa.int64()).buffers()[1]
        array = pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(row["array"])])
    columns = {name: pa.array([row[name]], kind) for name, kind in _COLUMN_TYPES.items()}
    return pa.table({**columns, "array": array})


def receipt_of(row: Row) -> Payload:
    """The receipt in a row that left the last stage.

    Raises:
        ClusterError: The unit repeatedly ended its process. Exception: An error of a stage, unchanged.
    """
    if row["state"] == FAILED:
        raise pickle.loads(row["payload"])
    if row["state"] in (RUNNING, ENDED):
        return _unpacked(row)
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
        payload = _unpacked(row)
        payload = prepare(payload) if prepare else payload
    except Exception as error:  # noqa: BLE001  # passed on, not swallowed
        return row | _failed(stage, error)
    with turn or nullcontext():
        answer = ray.get(ledger.begin.remote(stage, row["index"], this_process()))
        if answer == GIVE_UP:
            return row | {"state": POISON, "payload": stage.encode(), "array": None}
        if answer != GO_ON:
            state, result = answer
            return row | {"state": state, "payload": result, "array": None}
        start = time.monotonic()
        try:
            with heard(ledger, stage, row["index"]):
                result = function(payload)
        except Exception as error:  # noqa: BLE001  # passed on, not swallowed
            return row | _failed(stage, error)
        finally:
            ledger.end.remote(stage, row["index"])
        observe_stage(stage, time.monotonic() - start)
    try:
        return row | _packed(result)
    except Exception as error:  # noqa: BLE001  # passed on, not swallowed
        return row | _failed(stage, error)


def _failed(stage: str, error: Exception) -> Row:
    """What an error changes in the row of a unit; call it while the error is handled.

    An error that cannot be pickled or unpickled, as happens with classes of other packages, becomes a ClusterError.
    """
    note = f"In stage '{stage}', in a worker:\n{traceback.format_exc()}"
    error.add_note(note)
    try:
        packed = pickle.dumps(error, pickle.HIGHEST_PROTOCOL)
        pickle.loads(packed)
    except Exception:  # noqa: BLE001  # whatever a foreign class raises here
        replaced = ClusterError(f"{type(error).__name__}: {error}")
        replaced.add_note(note)
        packed = pickle.dumps(replaced, pickle.HIGHEST_PROTOCOL)
    return {"state": FAILED, "payload": packed, "array": None}


def _packed(payload: Payload) -> Row:
    """The values `payload` and `array` of a row.

    The payload is pickled, because Arrow's typed columns would change empty lists, None and some arrays.
    """
    large: list[memoryview] = []

    def is_pickled(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if large or raw.nbytes < LARGE:
            return True
        large.append(raw)
        return False

    pickled = pickle.dumps(payload, pickle.HIGHEST_PROTOCOL, buffer_callback=is_pickled)
    return {"payload": pickled, "array": large[0] if large else None}


def _unpacked(row: Row) -> Payload:
    return pickle.loads(row["payload"], buffers=[] if row["array"] is None else [row["array"]])


class ComputeActor:
    """One actor of the pool. An error during its start is raised by its first unit, like any other error.

    It is called for `CALLS` units at the same time. It computes one, while the next one is unpacked and prepared, and
    the last one is packed, so that a GPU is not idle in the meantime.
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

    def __call__(self, table: pa.Table) -> pa.Table:
        prepare = getattr(self._compute, "prepare", None)
        return _table_of(run_stage("compute", self._compute, self._ledger, _row_of(table), self._turn, prepare))


def _fail(error: Exception, _: Payload) -> Payload:
    raise error
