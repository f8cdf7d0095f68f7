"""`--dry-run`: what a launch would do, on what, for how long and for how many bytes, without starting or writing.

A dry run passes the same checks as a launch and is refused with the same sentences.
"""

from dataclasses import dataclass

from cluster.connect import Connection
from cluster.words import plural
from jobs.compute import actor_pool
from jobs.config import ClusterConfig, training_worker_range
from jobs.progress import duration, size
from jobs.report_curves import read_metrics
from jobs.run import Run
from jobs.training_loop import Plan
from jobs.unit_steps import Launch, UnitPlan
from storage.location import Location

NOTHING = "nothing was started, nothing was written."


@dataclass(frozen=True)
class Rough:
    """What an image costs, for steps of which nothing is finished yet; None where only a trial can tell.

    Attributes:
        seconds: of one worker's time.
        bytes: stored, at most.
    """

    seconds: float | None = None
    bytes: float | None = None


def print_unit_step(
    name: str, launch: Launch, config: ClusterConfig, connection: Connection, device: str, rough: Rough
) -> None:
    """Says what a launch of a step made of units would do.

    Args:
        rough: used as long as no unit is finished.

    Raises:
        ValueError: the step would refuse this launch.
        ClusterError: the cluster is too small for the workers asked for.
    """
    plan = launch.foresee()
    left, total = (sum(unit.num_images for unit in units) for units in (plan.missing, plan.units))
    units, images = plural(len(plan.units), "unit"), plural(total, "image")
    print(f"{name}, dry run: {len(plan.missing):,} of {units} to do ({left:,} of {images}).")
    if launch.restart:
        _print_deletion(launch.step.location)
    if plan.missing:
        num_workers = min(_num_workers(config, connection, device), len(plan.missing))
        print(f"  on:      {plural(num_workers, 'worker')} ({device}), {describe_connection(config, connection)}")
        print(f"  time:    {_time(plan, rough, left, num_workers)}")
        print(f"  storage: {_storage(plan, rough, left)}")
    print(f"  {NOTHING}")


def print_training(run: Run, connection: Connection, device: str, plan: Plan, *, restart: bool) -> None:
    """Says what a training would do.

    Args:
        restart: it would delete what it has and begin anew.

    Raises:
        ClusterError: the cluster is too small for the workers asked for.
    """
    cluster, place = run.config.cluster, run.location / plan.name
    lines = read_metrics(place / "metrics.jsonl")
    epochs_done = plan.epochs if (place / "complete.json").exists() else len(lines)
    epochs_left = plan.epochs if restart else plan.epochs - epochs_done
    least, most = training_worker_range(cluster)
    workers = plural(least, "training worker") if least == most else f"{least} to {most} training workers"
    if not (connection.in_process or cluster.autoscaling):
        num_gpus, cpus = least if device == "cuda" else 0, least * cluster.cpus_per_training_worker
        connection.require(cpus=cpus, gpus=num_gpus, purpose=plural(least, "training worker"))
    pace = lines[-1].get("images_per_second") if lines else None
    seconds = (
        f"about {duration(epochs_left * plan.epoch_images / pace)}" if pace else "unknown until an epoch is finished"
    )
    epochs = f"{epochs_left:,} of {plural(plan.epochs, 'epoch')}"
    print(f"{plan.name}, dry run: {epochs} to do, {plan.epoch_in_words} each.")
    if restart:
        _print_deletion(place)
    if epochs_left:
        print(f"  on:      {workers} ({device}), {describe_connection(cluster, connection)}")
        print(f"  time:    {seconds}\n  storage: the model, and a checkpoint of some three times its size, in {place}")
    print(f"  {NOTHING}")


def print_other_job(name: str, what: str, place: Location, where: str = "in this process") -> None:
    """Says what a job would do that leaves one file.

    Args:
        what: in words.
        place: of the file.
        where: the work would run.
    """
    print(f"{name}, dry run: {what}.\n  on:      {where}\n  result:  {place}\n  {NOTHING}")


def describe_connection(config: ClusterConfig, connection: Connection) -> str:
    """Where the work would run: 'on a Ray of 1 node, 2 CPUs, 0 GPUs'."""
    if connection.in_process:
        return "in this process"
    grows = ", growing on demand" if config.autoscaling else ""
    start = " (some 10 s to start it)" if connection.is_to_start else ""
    counts = ((connection.num_nodes, "node"), (connection.num_cpus, "CPU"), (connection.num_gpus, "GPU"))
    return f"on a Ray of {', '.join(plural(count, noun) for count, noun in counts)}{grows}{start}"


def _print_deletion(place: Location) -> None:
    objects, num_bytes = place.usage()
    print(f"  first:   deletes {plural(objects, 'object')}, {size(num_bytes)}, in {place}")


def _num_workers(config: ClusterConfig, connection: Connection, device: str) -> int:
    if connection.in_process:
        return 1
    pool = actor_pool(config, connection, device)
    pool.require(connection)
    return pool.max_actors


def _time(plan: UnitPlan, rough: Rough, left: int, num_workers: int) -> str:
    images = plan.num_finished
    seconds = sum(receipt.seconds for receipt in plan.receipts.values()) / images if images else rough.seconds
    if seconds is None:
        return "unknown until a unit is finished"
    source = "as in the finished units" if images else "a rough figure; the first finished units tell"
    return f"about {duration(left * seconds / num_workers)} ({seconds:.2g} s an image and worker, {source})"


def _storage(plan: UnitPlan, rough: Rough, left: int) -> str:
    place = plan.step.location
    images = plan.num_finished
    if images:
        return f"about {size(left * place.usage()[1] / images)} more in {place}"
    if rough.bytes is None:
        return f"unknown until a unit is finished, in {place}"
    return f"at most {size(left * rough.bytes)} in {place}"
