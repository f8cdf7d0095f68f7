"""The staged fan-out: every unit is read by a task, computed by an actor of a pool, written by a task.

The stages stream through Ray Data: while one unit is computed the next are read and the last is written, and Ray
bounds what lies between them. A row of the data set is one unit, from its plan to its receipt; payloads go from
worker to worker, and the driver sees receipts only. `fan_out_in_process` keeps the same contract without Ray.

A unit that keeps ending its process is handed to `on_poison` (see `ledger`); one that is late is named, run a second
time, and its stuck worker replaced (see `late_units`).
"""

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
import ray.data
from ray.exceptions import RayError

from cluster.connect import Connection, resources
from cluster.errors import ClusterError
from cluster.late_units import LateUnit, LateUnits, Patience
from cluster.ledger import MAX_BEGINS, start_ledger
from cluster.stages import Payload, Stages
from cluster.unit_row import POISON, ComputeActor, new_row, receipt_of, run_stage
from cluster.words import plural

__all__ = ["MAX_BEGINS", "LateUnit", "Patience", "Payload", "Pool", "Stages", "fan_out", "fan_out_in_process"]

UNITS_PER_BLOCK = 64
"""Units handed to Ray at once; a task then splits them into a block each. Handing over a block per unit costs
0.8 ms each on the driver before the first unit starts (12.7 s for 15,625 units, against 0.3 s and a first
receipt 6 s after the start)."""

READS_PER_ACTOR = 4
"""Units read at the same time for each actor, where a cluster grows and its CPUs are not known yet."""


@dataclass(frozen=True)
class Pool:
    """How much of the cluster the fan-out takes.

    Attributes:
        min_actors, max_actors: The pool of compute actors grows and shrinks between these.
        cpus_per_actor, gpus_per_actor: What one actor reserves.
        read_cpus, write_cpus: What one read task, one write task reserves.
        autoscaling: The cluster grows on demand, so that a pool larger than it is now is no mistake.
    """

    min_actors: int = 1
    max_actors: int = 1
    cpus_per_actor: float = 1.0
    gpus_per_actor: float = 0.0
    read_cpus: float = 1.0
    write_cpus: float = 1.0
    autoscaling: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.min_actors <= self.max_actors:
            raise ValueError(
                f"cluster: a pool of {self.min_actors} to {self.max_actors} actors was asked; at least 1 is needed, "
                f"and the least may not exceed the most."
            )

    @property
    def resources_of_an_actor(self) -> dict[str, float]:
        """What one compute actor reserves, as Ray names it."""
        return {"num_cpus": self.cpus_per_actor, "num_gpus": self.gpus_per_actor}

    def num_reads(self, connection: Connection) -> int:
        """How many units are read at the same time, at most: as many as the CPUs beside actors and a writing task
        allow, in a cluster that grows at least `READS_PER_ACTOR`.

        It exceeds the number of actors, since Ray Data would run as many reads as actors inside of the actors.
        """
        beside = connection.num_cpus - self.max_actors * self.cpus_per_actor - self.write_cpus
        least = self.max_actors * READS_PER_ACTOR if self.autoscaling else self.max_actors + 1
        return max(least, int(beside / self.read_cpus) if self.read_cpus else 0)

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
    *,
    on_late: Callable[[LateUnit], None] | None = None,
    patience: Patience = Patience(),  # noqa: B008  # it cannot change
) -> Iterator[Payload]:
    """Runs all units through the stages on the connected cluster.

    Args:
        units: What `stages.read` takes, one dict per unit.
        stages: The three functions.
        pool: What to take of the cluster.
        on_poison: Called here, in the driver, with a unit whose process died `MAX_BEGINS` times in one stage; what
            it returns is that unit's receipt. It is called after all other units, when the pool is free. Without it
            such a unit stops the fan-out.
        on_late: Called in a thread of the driver with a unit that is late; without it a warning is logged.
        patience: When a unit counts as late.

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
    ledger, poison = start_ledger(), []
    blocks = _dataset(units, stages, pool, ledger).iter_batches(
        batch_size=None, batch_format="pyarrow", prefetch_batches=0
    )
    with LateUnits(units, stages, ledger, pool.resources_of_an_actor, patience, on_late) as late_units:
        for row in _rows(iter(blocks)):
            late_units.arrived(row["index"])
            if row["state"] == POISON and on_poison is not None:
                poison.append(pickle.loads(row["unit"]))
            else:
                yield receipt_of(row)
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
    rows = [new_row(index, unit) for index, unit in enumerate(units)]
    data: ray.data.Dataset = ray.data.from_items(rows, override_num_blocks=-(-count // UNITS_PER_BLOCK))
    data = data.repartition(target_num_rows_per_block=1)
    if stages.read:
        data = data.map(
            partial(run_stage, "read", stages.read, ledger),
            compute=ray.data.TaskPoolStrategy(size=min(pool.num_reads(resources()), count)),
            num_cpus=pool.read_cpus,
        )
    data = data.map(
        ComputeActor,  # type: ignore[arg-type]  # a class runs as an actor
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
        data = data.map(partial(run_stage, "write", stages.write, ledger), num_cpus=pool.write_cpus)
    return data


def _rows(blocks: Iterator[Any]) -> Iterator[dict[str, Any]]:
    """The rows that come out of the data set; its execution ends when the caller takes no more."""
    try:
        for block in blocks:
            yield from block.to_pylist()
    except RayError as error:
        reason = str(error).strip().splitlines()[0]
        raise ClusterError(f"cluster: Ray stopped the fan-out: {reason}") from error
    finally:
        blocks.close()  # type: ignore[attr-defined]  # a generator
