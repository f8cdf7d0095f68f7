"""The staged fan-out: every unit is read by a task, computed by an actor of a pool, written by a task.

The stages stream through Ray Data: while one unit is computed the next are read and the last is written, and Ray
bounds what lies between them. A row of the data set is one unit, from its plan to its receipt; payloads go from
worker to worker, and the driver sees receipts only. `fan_out_in_process` keeps the same contract without Ray.

Ray retries lost tasks and actors for ever, so a unit that kills its process would circle for ever. A ledger counts
how often each unit was begun and not ended: the third time it is not begun but handed to `on_poison`.
"""

import pickle
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
import ray.data
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.connect import Connection, resources
from cluster.errors import ClusterError
from cluster.live_metrics import count_retry, observe_stage
from cluster.words import plural

Payload = dict[str, Any]
"""What a unit is at some stage: a flat dict of anything that pickles (arrays, numbers, strings, bytes, lists)."""

RUNNING, FAILED, POISON = "running", "failed", "poison"  # the states of a row; one that comes out running is done

MAX_BEGINS = 2
"""How often a unit is begun in one stage when its process keeps dying."""

UNITS_PER_BLOCK = 64
"""Units handed to Ray at once; a task then splits them into a block each. Handing over a block per unit costs
0.8 ms each on the driver before the first unit starts (12.7 s for 15,625 units, against 0.3 s and a first
receipt 6 s after the start)."""


@dataclass(frozen=True)
class Stages:
    """What happens to a unit, in order: read, compute, write. All run in worker processes and must pickle.

    Each may run more than once for the same unit, and must then do the same. An error in one stops the fan-out
    and reaches the caller unchanged.

    Attributes:
        make_compute: Called once in every actor; what it returns turns an input payload into an output payload.
        read: A unit to its input payload, in a task; None where the actor reads the unit itself.
        write: An output payload to the unit's receipt, in a task; None where the actor returns the receipt itself.
    """

    make_compute: Callable[[], Callable[[Payload], Payload]]
    read: Callable[[Payload], Payload] | None = None
    write: Callable[[Payload], Payload] | None = None

    def run(self, compute: Callable[[Payload], Payload], unit: Payload) -> Payload:
        """All stages of one unit in this process; its receipt."""
        payload = compute(self.read(unit) if self.read else unit)
        return self.write(payload) if self.write else payload


@dataclass(frozen=True)
class Pool:
    """How much of the cluster the fan-out takes.

    Attributes:
        min_actors, max_actors: The pool of compute actors grows and shrinks between these.
        cpus_per_actor, gpus_per_actor: What one actor reserves.
        read_cpus, write_cpus: What one read task, one write task reserves.
        reads_per_actor: Units read at the same time, at most, for each of `max_actors`; at least 2.
        autoscaling: The cluster grows on demand, so that a pool larger than it is now is no mistake.
    """

    min_actors: int = 1
    max_actors: int = 1
    cpus_per_actor: float = 1.0
    gpus_per_actor: float = 0.0
    read_cpus: float = 1.0
    write_cpus: float = 1.0
    reads_per_actor: int = 4
    autoscaling: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.min_actors <= self.max_actors:
            raise ValueError(
                f"cluster: a pool of {self.min_actors} to {self.max_actors} actors was asked; at least 1 is needed, "
                f"and the least may not exceed the most."
            )
        if self.reads_per_actor < 2:  # as many reads as actors, and Ray Data would run both stages in the actor
            raise ValueError(f"cluster: reads_per_actor is {self.reads_per_actor}; give 2 or more.")

    def require(self, connection: Connection) -> None:
        """Refuses a cluster on which the pool's smallest form would wait for ever.

        Raises:
            ClusterError: It is too small, and does not grow.
        """
        if not self.autoscaling:
            connection.require(
                cpus=self.min_actors * self.cpus_per_actor + max(self.read_cpus, self.write_cpus, 1),
                gpus=self.min_actors * self.gpus_per_actor,
                purpose=f"{plural(self.min_actors, 'compute actor')} with a task beside them",
            )


def fan_out(
    units: Sequence[Mapping[str, Any]],
    stages: Stages,
    pool: Pool,
    on_poison: Callable[[Payload], Payload] | None = None,
) -> Iterator[Payload]:
    """Runs all units through the stages on the connected cluster.

    Args:
        units: What `stages.read` takes, one dict per unit.
        stages: The three functions.
        pool: What to take of the cluster.
        on_poison: Called here, in the driver, with a unit whose process died `MAX_BEGINS` times in one stage; what
            it returns is that unit's receipt. It is called after all other units, when the pool is free. Without it
            such a unit stops the fan-out.

    Yields:
        The receipts, one per unit, as the units finish, in any order. Closing the iterator ends the fan-out.

    Raises:
        ClusterError: The pool does not fit the cluster, a unit is poison and there is no `on_poison`, or Ray itself
            failed.
        Exception: Whatever a stage raised, as itself, with the worker's traceback as a note.
    """
    if not units:
        return
    pool.require(resources())
    ledger = _start_ledger()
    blocks = _dataset(units, stages, pool, ledger).iter_batches(
        batch_size=None, batch_format="pyarrow", prefetch_batches=0
    )
    poison: list[Payload] = []
    for row in _rows(iter(blocks)):
        if row["state"] == POISON and on_poison is not None:
            poison.append(pickle.loads(row["unit"]))
        else:
            yield _receipt(row)
    if on_poison is not None:
        yield from map(on_poison, poison)


def fan_out_in_process(
    units: Sequence[Mapping[str, Any]],
    stages: Stages,
    pool: Pool | None = None,
    on_poison: Callable[[Payload], Payload] | None = None,
) -> Iterator[Payload]:
    """The contract of `fan_out` in this process, one unit after the other: for a debugger and for fast tests.

    `pool` and `on_poison` have no meaning here; a unit that kills its process ends this one.
    """
    compute = stages.make_compute()
    for unit in units:
        yield stages.run(compute, dict(unit))


# --- the driver's side -----------------------------------------------------------------------------------------


def _dataset(units: Sequence[Mapping[str, Any]], stages: Stages, pool: Pool, ledger: Any) -> ray.data.Dataset:
    """The lazy data set whose rows are the units and, at its end, their receipts."""
    count = len(units)  # Ray Data warns of stages that could run more units at once than there are
    rows = [{"index": i, "unit": unit, "state": RUNNING, "payload": unit} for i, unit in enumerate(map(_pack, units))]
    data: ray.data.Dataset = ray.data.from_items(rows, override_num_blocks=-(-count // UNITS_PER_BLOCK))
    data = data.repartition(target_num_rows_per_block=1)
    if stages.read:
        data = data.map(
            partial(_run_stage, "read", stages.read, ledger),
            compute=ray.data.TaskPoolStrategy(size=min(pool.reads_per_actor * pool.max_actors, count)),
            num_cpus=pool.read_cpus,
        )
    data = data.map(
        _ComputeActor,  # type: ignore[arg-type]  # a class runs as an actor
        fn_constructor_args=(stages.make_compute, ledger),
        compute=ray.data.ActorPoolStrategy(
            min_size=min(pool.min_actors, count),
            max_size=min(pool.max_actors, count),
            max_tasks_in_flight_per_actor=2,  # with 1 the pool never grows beyond min_size
        ),
        num_cpus=pool.cpus_per_actor,
        num_gpus=pool.gpus_per_actor,
    )
    if stages.write:
        data = data.map(partial(_run_stage, "write", stages.write, ledger), num_cpus=pool.write_cpus)
    return data


def _rows(blocks: Iterator[Any]) -> Iterator[dict[str, Any]]:
    """The rows that come out of the data set; ends its execution when the caller has had enough."""
    try:
        for block in blocks:
            yield from block.to_pylist()
    except RayError as error:
        reason = str(error).strip().splitlines()[0]
        raise ClusterError(f"cluster: Ray stopped the fan-out: {reason}") from error
    finally:
        blocks.close()  # type: ignore[attr-defined]  # a generator


def _receipt(row: dict[str, Any]) -> Payload:
    """What a row that came out of the last stage means to the caller."""
    if row["state"] == FAILED:
        raise pickle.loads(row["payload"])
    if row["state"] == RUNNING:
        return pickle.loads(row["payload"])
    raise ClusterError(
        f"cluster: unit {pickle.loads(row['unit'])} ended its process {MAX_BEGINS} times in stage "
        f"'{row['payload'].decode()}'. Look for lack of memory, or leave this unit out."
    )


def _start_ledger() -> Any:
    """A ledger on the driver's own node, which no worker's death takes along."""
    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Ledger)
    return actor.options(scheduling_strategy=node).remote()


# --- the workers' side -----------------------------------------------------------------------------------------


class _Ledger:
    """Counts the beginnings of units that have not ended. An actor; lost with its counts only if its node is."""

    def __init__(self) -> None:
        self._begun: Counter[tuple[str, int | str]] = Counter()

    def begin(self, stage: str, key: int | str) -> bool:
        """Notes that `key` is about to be run in `stage`; False: it has had its chances."""
        if self._begun[stage, key] >= MAX_BEGINS:
            return False
        if self._begun[stage, key] > 0:
            count_retry(stage)
        self._begun[stage, key] += 1
        return True

    def end(self, stage: str, key: int | str) -> None:
        del self._begun[stage, key]


def _run_stage(stage: str, function: Callable[[Payload], Payload], ledger: Any, row: dict[str, Any]) -> dict[str, Any]:
    """Runs one stage of one unit, unless an earlier stage has ended it.

    Errors travel to the driver as data and are raised there: raised here, they would come back wrapped in Ray's
    exceptions, with the cause in the middle of a long traceback.
    """
    if row["state"] in (FAILED, POISON):
        return row
    if not ray.get(ledger.begin.remote(stage, row["index"])):
        return row | {"state": POISON, "payload": stage.encode()}
    start = time.monotonic()
    try:
        result = _pack(function(pickle.loads(row["payload"])))
    except Exception as error:  # noqa: BLE001  # carried on, not swallowed
        error.add_note(f"In stage '{stage}', in a worker:\n{traceback.format_exc()}")
        return row | {"state": FAILED, "payload": _pack(error)}
    observe_stage(stage, time.monotonic() - start)
    ledger.end.remote(stage, row["index"])
    return row | {"payload": result}


class _ComputeActor:
    """One actor of the pool. What goes wrong while it is made ready is raised by its first unit, as any error is."""

    def __init__(self, make_compute: Callable[[], Callable[[Payload], Payload]], ledger: Any) -> None:
        self._ledger = ledger
        self._compute = self._make(make_compute)

    def _make(self, make_compute: Callable[[], Callable[[Payload], Payload]]) -> Callable[[Payload], Payload]:
        actor = ray.get_runtime_context().get_actor_id()  # the same after a restart
        if not ray.get(self._ledger.begin.remote("make_compute", actor)):
            ended = f"a compute actor's process ended {MAX_BEGINS} times while it was made ready"
            return partial(_fail, ClusterError(f"cluster: {ended}. Look for lack of memory on its node."))
        try:
            compute = make_compute()
        except Exception as error:  # noqa: BLE001  # raised by the first unit
            compute = partial(_fail, error)
        self._ledger.end.remote("make_compute", actor)
        return compute

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return _run_stage("compute", self._compute, self._ledger, row)


def _fail(error: Exception, _: Payload) -> Payload:
    raise error


def _pack(value: object) -> bytes:
    """Pickles what travels: Arrow's typed columns would change empty lists, None and arrays of other types."""
    return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
