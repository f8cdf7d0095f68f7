"""Launches a step of the table: its module says what to do, and the driver of its kind does it."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

from cluster.connect import Connection
from jobs.run.directory import Run
from jobs.run.fingerprints import outdated_in_words, readers, step_id, upstream_ids
from jobs.run.steps import BY_NAME
from jobs.steps.estimates import StepEstimate
from jobs.steps.launch import LaunchOptions
from jobs.steps.unit_driver import run_unit_step
from jobs.training.kept_network import will_change
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
    keep = run.config.classifier.keep
    if restart or (name == "classifier" and will_change(run.step(name).data(), name, keep)):
        require_no_reader(run, name)
    job = job_maker(name)(run, connection)
    for other in upstream_ids(job.fingerprint):  # results of unit steps are refused, networks are only outdated
        if outdated := outdated_in_words(run, other):
            print(f"{BY_NAME[name].title}: WARNING: {outdated}", flush=True)
    try:
        drive(run, connection, job, options)
    except Exception as error:
        _require_same_upstream(run, name, job.fingerprint, error)
        raise


def require_no_reader(run: Run, name: str) -> None:
    """Refuses to replace the results of a step while another launch works on a step that reads them.

    Raises:
        ValueError: a launch works on such a step; the message says which one, and what to do.
    """
    for row in readers(run, name):
        run.step(row.name).require_idle(
            f", which depends on the results of the step {BY_NAME[name].title}, and this command would replace these"
        )


def _require_same_upstream(run: Run, name: str, fingerprint: Mapping[str, Any], cause: Exception) -> None:
    """Says that another launch replaced what a failed launch was reading, if so: this is the reason of its error.

    Raises:
        ValueError: it did; the message says which steps, and which command goes on.
    """
    changed = list[str]()
    with suppress(OSError, ValueError):  # the error that ended the launch says more
        changed = [BY_NAME[each].title for each, id_ in upstream_ids(fingerprint).items() if step_id(run, each) != id_]
    if changed:
        plain = Run(run.location, run.config)  # without this launch's settings, because the recorded ones apply
        raise ValueError(
            f"{BY_NAME[name].title}: another launch has replaced the results of {' and '.join(changed)}, which this "
            "launch was reading. When that launch is finished, "
            f"'{plain.command('run_pipeline', '--redo-outdated')}' computes the steps again that were made from them."
        ) from cause


def job_maker(name: str) -> Callable[[Run, Connection], Any]:
    """`make_job` of the module of a step."""
    return import_module(f"jobs.{BY_NAME[name].module}").make_job
