"""The fan-out in stages: a task reads each unit, an actor of a pool computes it, and a task writes it.

The stages stream through Ray Data: while one unit is computed, the next ones are read and the last one is written. Ray
limits the data between the stages. A row of the data set is one unit, from its plan to its receipt. Payloads go from
worker to worker, and the driver gets only receipts. `fan_out_in_process` does the same without Ray.

A unit that repeatedly ends its process is given to `on_poison` (see `ledger`). If a unit is late, the driver prints its
name, runs it a second time, and replaces a stuck worker (see `late_units`).
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
from cluster.unit_row import POISON, ComputeActor, new_row, receipt_of, run_stage_of_table
from cluster.words import plural

__all__ = ["MAX_BEGINS", "LateUnit", "Patience", "Payload", "Pool", "Stages", "fan_out", "fan_out_in_process"]

UNITS_PER_BLOCK = 64
"""Many units are given to Ray in blocks of this size, and a task then splits them into one block per unit. With one
block per unit, the driver would need 0.8 ms per unit before the first unit starts: 12.7 s for 15,625 units, instead of
0.3 s."""

FEW_UNITS = 300
"""So many units are given to Ray one by one. The task that splits blocks would first wait 2 to 4 s for its process."""

READS_PER_ACTOR = 4
"""Units read at the same time for each actor, if the cluster is autoscaling and its CPUs are not known yet."""


@dataclass(frozen=True)
class Pool:
    """The resources that the fan-out uses.

    Attributes:
        min_actors, max_actors: The number of compute actors changes between these.
        cpus_per_actor, gpus_per_actor: What one actor reserves.
        read_cpus, write_cpus: The CPUs that one read task and one write task reserve.
        autoscaling: The cluster grows on demand, so the pool may be larger than the cluster is now.
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
                f"cluster: given a pool of {self.min_actors} to {self.max_actors} actors, allowed: at least 1, and not "
                f"more for cluster.min_actors than for cluster.max_actors."
            )

    @property
    def calls_in_flight(self) -> int:
        """The units that an actor computes, prepares, or has in its queue.

        A GPU is faster than the driver sends the next unit, so its actor has a queue. On CPUs a unit takes much longer,
        and a slow actor would hold units that others could compute.
        """
        return ComputeActor.CALLS * (2 if self.gpus_per_actor else 1)

    @property
    def resources_of_an_actor(self) -> dict[str, float]:
        """The resources that one compute actor reserves, with Ray's names."""
        return {"num_cpus": self.cpus_per_actor, "num_gpus": self.gpus_per_actor}

    def num_reads(self, connection: Connection) -> int:
        """The most units that are read at the same time: as many as fit on the CPUs beside actors and a writing task.

        In an autoscaling cluster it is at least `READS_PER_ACTOR` per actor. It is always larger than the number of
        actors; otherwise Ray Data would run the reads inside the actors.
        """
        beside = connection.num_cpus - self.max_actors * self.cpus_per_actor - self.write_cpus
        least = self.max_actors * READS_PER_ACTOR if self.autoscaling else self.max_actors + 1
        return max(least, int(beside / self.read_cpus) if self.read_cpus else 0)

    def require(self, connection: Connection, device_key: str = "") -> None:
        """Refuses a cluster on which even the smallest pool would wait for ever.

        Args:
            device_key: As in `Connection.require`.

        Raises:
            ClusterError: The cluster is too small and is not autoscaling.
        """
        if not self.autoscaling:
            connection.require(
                cpus=self.min_actors * self.cpus_per_actor + max(self.read_cpus, self.write_cpus, 1),
                gpus=self.min_actors * self.gpus_per_actor,
                purpose=f"{plural(self.min_actors, 'compute actor')} and a task",
                device_key=device_key,
            )


def fan_out(
    units: Sequence[Mapping[str, Any]],
    stages: Stages,
    pool: Pool,
    on_poison: Callable[[Payload], Payload] | None = None,
    *,
    on_late: Callable[[LateUnit], None] | None = None,
    patience: Patience = Patience(),  # noqa: B008  # it is immutable
) -> Iterator[Payload]:
    """Runs all units through the stages on the connected cluster.

    Args:
        units: The input of `stages.read`, one dict per unit.
        stages: The three functions.
        pool: The resources to use.
        on_poison: Called in the driver with a unit whose process died `MAX_BEGINS` times in one stage; it returns the
            receipt of this unit. It is called after all other units, when the pool is free. Without it, such a unit
            stops the fan-out.
        on_late: Called in a thread of the driver with a unit that is late; without it, a warning is logged.
        patience: When a unit counts as late.

    Yields:
        The receipts, one per unit, in the order in which the units finish. Closing the iterator ends the fan-out.

    Raises:
        ClusterError: The pool does not fit the cluster, or a unit repeatedly ended its process and there is no
            `on_poison`, or Ray itself failed.
        Exception: An error of a stage, unchanged, with the worker's traceback as a note.
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
    """Does the same as `fan_out` in this process, one unit at a time: for debuggers and fast tests.

    `pool` and `on_poison` are ignored; a unit that kills its process ends this process.
    """
    compute = stages.make_compute()
    for unit in units:
        yield stages.run(compute, dict(unit))


# --- the driver's side -----------------------------------------------------------------------------------------


def _dataset(units: Sequence[Mapping[str, Any]], stages: Stages, pool: Pool, ledger: Any) -> ray.data.Dataset:
    """The lazy data set. Its rows are the units; after the last stage they have the receipts."""
    count = len(units)  # Ray Data warns if a stage could run more units at the same time than there are
    rows = [new_row(index, unit) for index, unit in enumerate(units)]
    data: ray.data.Dataset
    if count <= FEW_UNITS:
        data = ray.data.from_items(rows, override_num_blocks=count)
    else:
        data = ray.data.from_items(rows, override_num_blocks=-(-count // UNITS_PER_BLOCK))
        data = data.repartition(target_num_rows_per_block=1)
    if stages.read:
        data = data.map_batches(
            partial(run_stage_of_table, "read", stages.read, ledger),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.TaskPoolStrategy(size=min(pool.num_reads(resources()), count)),
            num_cpus=pool.read_cpus,
        )
    data = data.map_batches(
        ComputeActor,  # a class runs as an actor
        batch_size=1,
        batch_format="pyarrow",
        fn_constructor_args=(stages.make_compute, ledger),
        compute=ray.data.ActorPoolStrategy(
            min_size=min(pool.min_actors, count),
            max_size=min(pool.max_actors, count),
            max_tasks_in_flight_per_actor=pool.calls_in_flight,
            max_concurrent_calls_per_actor=ComputeActor.CALLS,
            enable_true_multi_threading=True,  # the actor itself computes one unit at a time
        ),
        num_cpus=pool.cpus_per_actor,
        num_gpus=pool.gpus_per_actor,
    )
    if stages.write:
        write = partial(run_stage_of_table, "write", stages.write, ledger)
        data = data.map_batches(write, batch_size=1, batch_format="pyarrow", num_cpus=pool.write_cpus)
    return data


def _rows(blocks: Iterator[Any]) -> Iterator[dict[str, Any]]:
    """The rows of the data set; its execution ends when the caller closes the iterator."""
    try:
        for block in blocks:
            yield from block.to_pylist()
    except RayError as error:
        reason = str(error).strip().splitlines()[0]
        raise ClusterError(f"cluster: Ray stopped the fan-out: {reason}") from error
    finally:
        blocks.close()  # type: ignore[attr-defined]  # a generator
