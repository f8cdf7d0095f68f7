"""Launches a step of the table: its module says what to do, and the driver of its kind does it."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from cluster.connect import Connection
from jobs.run.directory import Run
from jobs.run.fingerprints import outdated_in_words, upstream_ids
from jobs.run.steps import BY_NAME
from jobs.steps.estimates import StepEstimate
from jobs.steps.launch import LaunchOptions
from jobs.steps.unit_driver import run_unit_step
from jobs.training.training_job import run_training_job
from storage.units import Shard


def launch_step(
    run: Run,
    connection: Connection,
    name: str,
    shard: Shard = (1, 1),
    *,
    restart: bool = False,
    retry_skipped: bool = False,
    dry_run: bool = False,
    estimate: StepEstimate | None = None,
    is_part: bool = False,
) -> None:
    """Runs a step, continues it, or prints that it is done.

    Args:
        connection: the cluster, or this process.
        name: the step.
        shard, restart, retry_skipped, dry_run, estimate, is_part: as in `jobs.steps.launch.LaunchOptions`.

    Raises:
        NotYet: a step that this step reads is not finished.
        ValueError: the step refuses this launch; the sentence says why and what to do.
    """
    options = LaunchOptions(shard, restart, retry_skipped, dry_run, estimate, is_part)
    drive = run_unit_step if BY_NAME[name].kind == "units" else run_training_job
    job = job_maker(name)(run, connection)
    for other in upstream_ids(job.fingerprint):  # results of unit steps are refused, networks are only outdated
        if outdated := outdated_in_words(run, other):
            print(f"{BY_NAME[name].title}: WARNING: {outdated}", flush=True)
    drive(run, connection, job, options)


def job_maker(name: str) -> Callable[[Run, Connection], Any]:
    """`make_job` of the module of a step."""
    return import_module(f"jobs.{BY_NAME[name].module}").make_job
