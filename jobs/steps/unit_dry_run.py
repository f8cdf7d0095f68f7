"""`--dry-run` of a unit step: the missing units, the workers, the time and the storage."""

from dataclasses import dataclass

from cluster.connect import Connection
from cluster.words import plural
from jobs.run.config_keys import ClusterConfig
from jobs.run.directory import Run
from jobs.steps.compute import actor_pool
from jobs.steps.dry_run import NOTHING, print_deletion
from jobs.steps.launch import UnitPlan
from jobs.steps.progress import duration, size


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
    run: Run,
    connection: Connection,
    title: str,
    plan: UnitPlan,
    device: str,
    cost: CostEstimate,
    *,
    is_here: bool,
    actors_per_gpu: int = 1,
) -> None:
    """Prints what a launch of a unit step would do.

    Args:
        cost: used if no unit is finished.
        is_here: the work is done in this process.
        actors_per_gpu: as in `jobs.steps.compute.actor_pool`.
    """
    config, left = run.config.cluster, plan.num_to_compute
    print(f"{title}, dry run: {extent_in_words(plan)}.")
    if plan.options.restart:
        print_deletion(plan.step.location)
    if plan.missing:
        pool = actor_pool(config, connection, device, actors_per_gpu)
        num_workers = 1 if is_here else min(pool.max_actors, len(plan.missing))
        where = describe_connection(config, connection, is_here=is_here)
        print(f"  on:      {plural(num_workers, 'worker')} ({device}), {where}")
        print(f"  time:    {_time(plan, cost, left, num_workers)}")
        print(f"  storage: {_storage(plan, cost, left)}")
    if not plan.options.is_part:
        print(f"  {NOTHING}")


def extent_in_words(plan: UnitPlan) -> str:
    """How much of a step is to do, such as '1 of 4 units to do (2 of 14 images)'."""
    units, images = plural(len(plan.units), "unit"), plural(sum(unit.num_images for unit in plan.units), "image")
    number = sum(plan.copied.values())
    where = "this unit" if len(plan.missing) == 1 else "these units"
    others = f"; the {'result' if number == 1 else 'results'} of {number:,} {'other' if number == 1 else 'others'} in"
    copied = f"{others} {where} {'is' if number == 1 else 'are'} copied" if number else ""
    return f"{len(plan.missing):,} of {units} to do ({plan.num_to_compute:,} of {images}{copied})"


def describe_connection(config: ClusterConfig, connection: Connection, *, is_here: bool = False) -> str:
    """Where the work would run, such as 'on a Ray of 1 node, 2 CPUs, 0 GPUs'."""
    if connection.in_process or is_here:
        return "in this process"
    grows = ", growing on demand" if config.autoscaling else ""
    start = " (about 10 s to start it)" if connection.is_to_start else ""
    counts = ((connection.num_nodes, "node"), (connection.num_cpus, "CPU"), (connection.num_gpus, "GPU"))
    return f"on a Ray of {', '.join(plural(count, noun) for count, noun in counts)}{grows}{start}"


def _time(plan: UnitPlan, cost: CostEstimate, left: int, num_workers: int) -> str:
    images = plan.num_finished
    if not images and plan.options.estimate:
        return plan.options.estimate.time_in_words
    again = {unit.index for unit in plan.extended}  # their receipts are of fewer images than the units have now
    measured = sum(receipt.seconds for index, receipt in plan.receipts.items() if index not in again)
    seconds = measured / images if images else cost.seconds
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
    if plan.options.estimate:
        return f"about {size(plan.options.estimate.bytes)} in {place}"
    if cost.bytes is None:
        return f"unknown until a unit is finished, in {place}"
    return f"at most {size(left * cost.bytes)} in {place}"
