"""Dry runs: what a step or the whole pipeline would do, and how long it would take.

A step that has no finished unit or epoch yet is timed on a few images (`jobs.cli.timing`).
"""

import io
from collections.abc import Collection, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial

from cluster.connect import Connection
from cluster.words import listed
from jobs.cli.estimate import Estimate, can_be_timed_here, estimate_of_records, estimate_steps, is_begun
from jobs.cli.launch import launch_step
from jobs.cli.pipeline import require_possible, require_startable, steps_to_redo
from jobs.cli.timing import END, SECONDS
from jobs.run.config_keys import Config
from jobs.run.directory import Run
from jobs.run.selection import measurable_splits, units_of_step
from jobs.run.steps import BY_NAME, STEPS, StepRow, pipeline_steps
from jobs.run.training_record import read_complete
from jobs.steps.dry_run import NOTHING, print_deletion
from jobs.steps.estimates import FILE, KeptEstimate, StepEstimate, read_estimates, write_estimates
from jobs.steps.launch import LaunchOptions
from jobs.steps.machine_load import busy_in_words
from jobs.steps.progress import duration, size
from jobs.steps.unit_driver import plan_units
from jobs.steps.unit_dry_run import extent_in_words
from jobs.training.plan import planned_training
from jobs.training.training_job import extent_in_words as extent_of_training
from jobs.training.training_job import print_trained
from storage.errors import NotYet
from storage.units import Shard

UNTIMED = ("seeds",)  # steps of milliseconds, which are not worth a timing of all steps before them


def plan_step(
    run: Run,
    connection: Connection,
    name: str,
    shard: Shard = (1, 1),
    *,
    restart: bool = False,
    retry_skipped: bool = False,
) -> None:
    """Prints what a launch of a step would do; the arguments are those of `jobs.cli.launch.launch_step`.

    Raises:
        NotYet: a step that this step reads is not finished.
        ValueError: the step refuses this launch.
    """
    row, estimate, notes = BY_NAME[name], None, tuple[str, ...]()
    if restart and is_begun(run, row):
        estimate = estimate_of_records(run, connection, row, restart=True)
    plan = partial(
        launch_step, run, connection, name, shard, restart=restart, retry_skipped=retry_skipped, dry_run=True
    )
    if not is_begun(run, row) and name not in UNTIMED:
        with redirect_stdout(io.StringIO()):
            plan()  # refused before anything is timed
        found = _estimate(run, connection, _needed(run.config, row), row.script, is_whole=False)
        estimate, notes = found.steps.get(name), found.notes
    plan(estimate=estimate)
    for note in notes:
        print(f"{row.script}: {note}")


def plan_pipeline(
    run: Run, connection: Connection, *, redo_outdated: bool = False, retry_skipped: bool = False
) -> None:
    """Prints what each step would do. For a step with missing inputs it prints only the amount of work.

    If a step was not started yet, the estimates of all steps are kept in the run, so that status can compare them.

    Args:
        redo_outdated, retry_skipped: as in `run_pipeline`.

    Raises:
        ValueError: the pipeline would stop at this step.
    """
    require_possible(run)
    require_startable(run, redo_outdated=redo_outdated)
    outdated = steps_to_redo(run)
    manifest, steps = run.manifest(), pipeline_steps(run.config)
    begun = {row.name for row in steps if is_begun(run, row)}
    is_fresh = len(begun) < len(steps)
    estimate = (
        _estimate(run, connection, steps, "pipeline", is_whole=True, restarted=outdated)
        if is_fresh
        else Estimate({}, 0.0, 0.0)
    )
    left, unknown = list[StepEstimate](), list[str]()  # of begun steps
    for number, row in enumerate(steps, start=1):
        print(f"pipeline: step {number} of {len(steps)}, {row.title}", flush=True)
        own, is_to_restart = estimate.steps.get(row.name), row.name in outdated
        if row.name in begun:
            own = estimate_of_records(run, connection, row, restart=is_to_restart)
            left += [own] if own else []
            unknown += [] if own else [row.title]
        options = LaunchOptions(
            restart=is_to_restart, retry_skipped=retry_skipped, dry_run=True, estimate=own, is_part=True
        )
        if is_to_restart and outdated & {*row.upstream}:  # what it reads is not there yet
            _print_later(run, row, options, "redone")
            continue
        try:
            launch_step(run, connection, row.name, **vars(options))
        except NotYet:
            _print_later(run, row, options, "finished")
    measured = measurable_splits(manifest, run.config)
    metrics = "".join(f"metrics of {', '.join(split or 'no split' for split in splits)}, " for splits in measured)
    without = "" if metrics else "no metrics (none of the images to measure has a mask), "
    print(f"pipeline: then {metrics}{without}the contact sheet and the report.")
    if estimate.steps:
        _print_total(run, estimate)
        return
    if not is_fresh and (seconds := sum(each.seconds for each in left)):
        stored = size(sum(each.bytes for each in left))
        without = f"without {listed([*unknown, 'the start of processes', 'the metrics', 'the report'])}"
        print(f"pipeline: what is left takes about {duration(seconds)} and {stored}, {without}.")
    print(f"pipeline: {NOTHING}")


def _estimate(
    run: Run,
    connection: Connection,
    rows: Sequence[StepRow],
    name: str,
    *,
    is_whole: bool,
    restarted: Collection[str] = (),
) -> Estimate:
    if not can_be_timed_here(run, connection):
        print(
            f"{name}: the times are not known, because this machine has no GPU to time the steps on. On a cluster, "
            "submit the dry run with 'ray job submit --entrypoint-num-gpus 1': it then runs on a node with a GPU."
        )
        return Estimate({}, 0.0, 0.0)
    where = "" if connection.is_optional or connection.in_process else "; the nodes of a cluster may differ"
    most = f"This takes up to {SECONDS} s, and the time to start."
    busy = f" {sentence}" if (sentence := busy_in_words()) else ""
    print(f"{name}: timing the steps on a few images on this machine{where}. {most}{busy}", flush=True)
    estimate = estimate_steps(run, connection, rows, is_whole=is_whole, restarted=restarted)
    if estimate.untimed:
        print(f"{name}: {listed(estimate.untimed)} could not be timed ({estimate.problem}).")
    return estimate


def _print_total(run: Run, estimate: Estimate) -> None:
    total, price = estimate.seconds, run.config.cluster.price_per_hour
    money = f", and costs {total / 3600 * price:.2f} at {price:g} per hour" if price else ""
    untimed = listed(estimate.untimed)
    what = f"without {untimed}, which could not be timed, this" if untimed else "all of this"
    end = "" if {*END} & {*estimate.untimed} else f", {duration(estimate.end_seconds)} for metrics and the report"
    _keep(run, estimate)
    print(
        f"pipeline: {what} takes about {duration(total)} and {size(estimate.bytes)}{money}. "
        f"{duration(estimate.start_seconds)} of this are for starting processes{end}."
    )
    cost = f"The cost is {f'without {untimed}, so the run costs more' if untimed else 'an upper bound'}"
    counted = f"{cost}: all machines for the whole time, without the requests to S3."
    for note in (*([counted] if price else []), *estimate.notes):
        print(f"pipeline: {note}")
    print(
        f"pipeline: nothing was started. The dry run wrote one file, {run.location / FILE}, with this estimate; "
        "status.py compares it with the real times."
    )


def _keep(run: Run, estimate: Estimate) -> None:
    """Keeps the estimate of each whole step: a begun step keeps the one from before its start."""
    begun = {row.name for row in STEPS if is_begun(run, row)}
    earlier = {name: each for name, each in read_estimates(run).steps.items() if name in begun}
    number = run.manifest().num_images
    fresh = {name: replace(each, num_images=number) for name, each in estimate.steps.items() if name not in begun}
    others = 0.0 if {*END} & {*estimate.untimed} else estimate.start_seconds + estimate.end_seconds
    write_estimates(run, KeptEstimate(earlier | fresh, others))


def _needed(config: Config, row: StepRow) -> list[StepRow]:
    """A step with all steps that it reads, also through others, in order."""
    possible = {each.name for each in pipeline_steps(config)} | {row.name}
    possible |= {"cells"} if row.name == "refined" else set()
    names, waiting = set[str](), [row.name]
    while waiting:
        name = waiting.pop()
        names.add(name)
        waiting += [other for other in BY_NAME[name].upstream if other in possible - names]
    return [each for each in STEPS if each.name in names]


def _print_later(run: Run, row: StepRow, options: LaunchOptions, when: str) -> None:
    """Prints how much of a step is to do once the steps that it reads are there.

    Args:
        when: what must have happened to the steps that it reads, in words.
    """
    step = run.step(row.name)
    if row.kind == "training":
        if not options.restart and read_complete(step.data()):
            print_trained(run, row.name)
            return
        plan = planned_training(row.name, run.config, run.manifest())
        is_left, extent = True, extent_of_training(plan, step.data(), restart=options.restart)
    else:
        units = units_of_step(row, run.manifest(), run.config)
        todo = plan_units(run, step, units, options, row.title, run.step_command(row.name))
        is_left, extent = bool(todo.missing), extent_in_words(todo)
    details = f"; details are known after the steps above are {when}" if is_left else ""
    print(f"{row.title}, dry run: {extent}{details}.")
    if options.restart:
        print_deletion(step.location)
    if is_left and (own := options.estimate):
        print(f"  time:    {own.time_in_words}\n  storage: about {size(own.bytes)}")
