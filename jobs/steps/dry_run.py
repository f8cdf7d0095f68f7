"""`--dry-run`: prints what a launch would do, where, how long, and how many bytes it would store.

A dry run starts and writes nothing. It makes the same checks as a launch and is refused with the same messages.
"""

from dataclasses import dataclass

from cluster.connect import Connection
from cluster.words import plural
from jobs.run.config_keys import ClusterConfig
from jobs.run.directory import Run
from jobs.steps.compute import actor_pool
from jobs.steps.launch import UnitPlan
from jobs.steps.progress import duration, size
from storage.location import Location

NOTHING = "nothing was started, nothing was written."


@dataclass(frozen=True)
class CostEstimate:
    """The cost of an image, used if no unit of a step is finished yet; None if it is not known without a trial.

    Attributes:
        seconds: time of one worker.
        bytes: largest number of stored bytes.
    """

    seconds: float | None = None
    bytes: float | None = None


def print_unit_step(
    run: Run, connection: Connection, title: str, plan: UnitPlan, device: str, cost: CostEstimate
) -> None:
    """Prints what a launch of a unit step would do.

    Args:
        cost: used if no unit is finished.

    Raises:
        ClusterError: the cluster is too small for the requested workers.
    """
    config = run.config.cluster
    left, total = (sum(unit.num_images for unit in units) for units in (plan.missing, plan.units))
    units, images = plural(len(plan.units), "unit"), plural(total, "image")
    print(f"{title}, dry run: {len(plan.missing):,} of {units} to do ({left:,} of {images}).")
    if plan.options.restart:
        print_deletion(plan.step.location)
    if plan.missing:
        num_workers = min(_num_workers(config, connection, device), len(plan.missing))
        print(f"  on:      {plural(num_workers, 'worker')} ({device}), {describe_connection(config, connection)}")
        print(f"  time:    {_time(plan, cost, left, num_workers)}")
        print(f"  storage: {_storage(plan, cost, left)}")
    print(f"  {NOTHING}")


def print_other_job(name: str, what: str, place: Location, where: str = "in this process") -> None:
    """Prints what a job that writes one file would do.

    Args:
        what: what the job would do, in words.
        place: where the file would be.
        where: where the work would run, in words.
    """
    print(f"{name}, dry run: {what}.\n  on:      {where}\n  result:  {place}\n  {NOTHING}")


def describe_connection(config: ClusterConfig, connection: Connection) -> str:
    """Where the work would run, such as 'on a Ray of 1 node, 2 CPUs, 0 GPUs'."""
    if connection.in_process:
        return "in this process"
    grows = ", growing on demand" if config.autoscaling else ""
    start = " (about 10 s to start it)" if connection.is_to_start else ""
    counts = ((connection.num_nodes, "node"), (connection.num_cpus, "CPU"), (connection.num_gpus, "GPU"))
    return f"on a Ray of {', '.join(plural(count, noun) for count, noun in counts)}{grows}{start}"


def print_deletion(place: Location) -> None:
    objects, num_bytes = place.usage()
    print(f"  first:   deletes {plural(objects, 'object')}, {size(num_bytes)}, in {place}")


def _num_workers(config: ClusterConfig, connection: Connection, device: str) -> int:
    if connection.in_process:
        return 1
    pool = actor_pool(config, connection, device)
    pool.require(connection)
    return pool.max_actors


def _time(plan: UnitPlan, cost: CostEstimate, left: int, num_workers: int) -> str:
    images = plan.num_finished
    seconds = sum(receipt.seconds for receipt in plan.receipts.values()) / images if images else cost.seconds
    if seconds is None:
        return "unknown until a unit is finished"
    rough = "a rough estimate; the first finished units give a better one"
    source = "measured on the finished units" if images else rough
    return f"about {duration(left * seconds / num_workers)} ({seconds:.2g} s per image and worker, {source})"


def _storage(plan: UnitPlan, cost: CostEstimate, left: int) -> str:
    place = plan.step.location
    images = plan.num_finished
    if images:
        return f"about {size(left * place.usage()[1] / images)} more in {place}"
    if cost.bytes is None:
        return f"unknown until a unit is finished, in {place}"
    return f"at most {size(left * cost.bytes)} in {place}"
