"""The driver of all unit steps: it plans, opens the step, fans out, counts the receipts and prints the outcome.

Each step gives a `UnitStepJob` with what differs from other steps. Everything else is here, so all unit steps resume,
refuse, restart, retry and report in the same way.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.connect import Connection
from cluster.errors import ClusterError
from cluster.fanout import Payload, Stages
from cluster.live_metrics import count_images
from cluster.quarantine import Trial
from cluster.words import plural
from jobs.run.directory import Run, record_run
from jobs.run.fingerprints import upstream_ids
from jobs.run.steps import BY_NAME, StepRow
from jobs.run.training_record import require_sound_networks
from jobs.steps.compute import is_done_here, note_on_cpus, require_workers, run_stages
from jobs.steps.launch import LaunchOptions, UnitPlan
from jobs.steps.makers import makers
from jobs.steps.progress import Progress, summary_line
from jobs.steps.restarted import restarted
from jobs.steps.retries import finished_images, forget_skipped, units_to_retry
from jobs.steps.unit_dry_run import CostEstimate, extent_in_words, print_unit_step
from storage.errors import StorageError
from storage.heartbeat import beating
from storage.image_identity import images_id
from storage.location import Location
from storage.steps import Skipped, Step
from storage.units import Unit


@dataclass(frozen=True)
class UnitStepJob:
    """What a unit step gives to the driver.

    Attributes:
        title: its name for people, such as 'pseudo-labels'.
        step: its folder.
        fingerprint: everything that changes its results; the driver adds the unit size.
        units: all its units.
        stages: what workers do with a unit; the last stage returns the payload of `jobs.steps.unit_rows.finish_unit`.
        command: the command of this launch, without flags that select a part of the work.
        device: "cpu" or "cuda".
        create: creates the step's arrays in the folder of its results, or opens them if they exist; called once,
            before any worker starts.
        skipped: images that an upstream step skipped, by unit.
        trial: if a unit repeatedly ends its process, its images are tried with this, one by one.
        cost: the cost of an image, for dry runs before any unit is finished. Without a trial, short work is done in
            this process.
        observe: called with the result of each unit's last stage.
        finish: called when no unit is missing any more.
        note: a sentence to print before the work, "" for none.
    """

    title: str
    step: Step
    fingerprint: Mapping[str, Any]
    units: Sequence[Unit]
    stages: Stages
    command: str
    device: str = "cpu"
    create: Callable[[Location], object] | None = None
    skipped: Mapping[int, tuple[Skipped, ...]] = field(default_factory=dict)
    trial: Trial | None = None
    cost: CostEstimate = field(default_factory=CostEstimate)
    observe: Callable[[Payload], None] | None = None
    finish: Callable[[UnitPlan], None] | None = None
    note: str = ""

    @property
    def row(self) -> StepRow | None:
        """The step in the table of steps; None for an export."""
        return BY_NAME.get(self.step.location.name)

    @property
    def actors_per_gpu(self) -> int:
        return self.row.actors_per_gpu if self.row else 1

    def seconds_for(self, units: Sequence[Unit]) -> float | None:
        """About how long one worker needs for these units; None if it is not known, or if images must be tried.

        A unit that has a trial decodes images, and a broken image may end the process.
        """
        if self.trial or self.cost.seconds is None:
            return None
        return self.cost.seconds * sum(unit.num_images for unit in units)


def run_unit_step(run: Run, connection: Connection, job: UnitStepJob, options: LaunchOptions) -> None:
    """Computes the missing units of a step, within this launch's shard.

    Raises:
        ValueError: the step was started with other settings, another driver works on it or a network that it reads is
            damaged (restart), or too many images were skipped. All finished units are kept.
    """
    fingerprint = {**job.fingerprint, "unit_size": run.config.unit_size}
    if job.note:
        print(f"{job.title}: {job.note}", flush=True)

    # 1. Refuse what cannot be started, before anything is written or deleted
    job.step.check_start(fingerprint, job.command, restart=options.restart)
    _require_workers(run, connection, job, options)
    if options.dry_run:
        plan = _planned(run, job, options)
        is_here = is_done_here(connection, job.seconds_for(plan.missing))
        print_unit_step(
            run,
            connection,
            job.title,
            plan,
            job.device,
            job.cost,
            is_here=is_here,
            actors_per_gpu=job.actors_per_gpu,
        )
        return

    # 2. Create or open the step and its arrays, before any worker writes
    if not options.restart and job.row:
        job.step.require_record(f"{job.command} --restart {job.step.location.name}")
    if options.restart:
        require_sound_networks(run, list(upstream_ids(job.fingerprint)))  # before anything is deleted
    images = images_id(run.manifest())
    if options.restart and (num_finished := len(job.units) - len(job.step.missing_units(job.units))):
        print(f"{job.title}: --restart deletes {plural(num_finished, 'finished unit')}")
    start_id = job.step.open(fingerprint, job.command, restart=options.restart, images=images)
    with restarted(options.restart), beating(job.step.location, options.launch, start_id=start_id):
        if job.create:
            job.create(job.step.data(start_id))
        if job.row:
            record_run(run, job.row.name)
        plan = UnitPlan.of(run, job.step, job.units, options, start_id)
        if again := units_to_retry(run, plan):
            forget_skipped(job.title, plan, again)
            plan = UnitPlan.of(run, job.step, job.units, options, start_id)
        print_code_mix(job, plan)

        # 3. The missing units stream through the cluster, and receipts come back
        compute_missing(run, connection, job, plan)

    # 4. Make the results that need all units
    if job.finish:
        with restarted(options.restart):
            job.finish(plan)


def _require_workers(run: Run, connection: Connection, job: UnitStepJob, options: LaunchOptions) -> None:
    """Refuses a launch whose workers do not fit the cluster, if it has anything to compute.

    Raises:
        ClusterError: they do not fit, or they need a GPU and there is none.
    """
    key = job.row.device_key if job.row else ""
    try:
        require_workers(run.config.cluster, connection, job.device, key, job.actors_per_gpu)
    except ClusterError:
        missing = _planned(run, job, options).missing  # the receipts are read only here, because there may be many
        if missing and not is_done_here(connection, job.seconds_for(missing)):
            raise


def _planned(run: Run, job: UnitStepJob, options: LaunchOptions) -> UnitPlan:
    return plan_units(run, job.step, job.units, options, job.title, job.command)


def plan_units(
    run: Run, step: Step, units: Sequence[Unit], options: LaunchOptions, title: str, command: str
) -> UnitPlan:
    """What a launch would compute, without writing anything; for a restart everything.

    Args:
        title, command: of the step, for the message.

    Raises:
        ValueError: too many images were skipped, and none of them will be tried again.
    """
    plan = UnitPlan.of(run, step, units, replace(options, dry_run=True))
    if again := units_to_retry(run, plan):
        tried = {unit.index for unit in again}  # all of these are computed again
        copied = {index: number for index, number in plan.copied.items() if index not in tried}
        missing = sorted({*plan.missing, *again}, key=lambda unit: unit.index)
        return replace(plan, missing=missing, copied=copied)
    finished_images(plan).check(title, run.config.images.max_skipped_fraction, command)
    return plan


def compute_missing(run: Run, connection: Connection, job: UnitStepJob, plan: UnitPlan) -> None:
    """Computes the missing units and counts their receipts.

    Raises:
        ValueError: too many images were skipped, or another launch restarted the step.
    """
    rows = plan.rows(job.skipped)
    seconds = job.seconds_for(plan.missing)
    results = run_stages(
        rows,
        job.stages,
        run.config.cluster,
        connection,
        job.device,
        job.trial,
        seconds=seconds,
        actors_per_gpu=job.actors_per_gpu,
    )
    max_fraction = run.config.images.max_skipped_fraction
    tally = finished_images(plan)
    print(f"{job.title}: {extent_in_words(plan)}.", flush=True)
    row = job.row
    if row and rows and (note := note_on_cpus(run.config, connection, row.device_key)):
        print(f"{job.title}: {note}", flush=True)
    for unit in plan.extended if row is None or not row.copies else ():
        before = plural(plan.receipts[unit.index].stop - unit.start, "image")
        reason = "and images were added to it, so all of it is computed again"
        print(f"{job.title}: unit {unit.name} was finished with {before}, {reason}.", flush=True)
    progress, start = Progress(job.title, tally.total, tally.total - tally.left), time.monotonic()
    try:
        tally.check(job.title, max_fraction, job.command)  # a step that was refused remains refused
        for result in results:
            receipt = result["receipt"]
            num_images, num_copied = plan.images[receipt.unit], plan.copied.get(receipt.unit, 0)
            num_done, num_skipped = tally.done, tally.skipped.total()
            if receipt.unit in plan.copied:
                tally.remove(plan.receipts[receipt.unit], num_copied)
            tally.add(receipt, num_images)
            count_images(job.title, max(0, tally.done - num_done), max(0, tally.skipped.total() - num_skipped))
            progress.advance(num_images - num_copied)
            if job.observe:
                job.observe(result)
            tally.check(job.title, max_fraction, job.command)
    except Exception:
        with suppress(StorageError):  # the first error says more
            job.step.require_current(plan.start_id)  # if another launch restarted the step, that is the reason
        raise
    finally:
        progress.close()
        print(summary_line(job.title, tally.done, tally.skipped, tally.left, time.monotonic() - start), flush=True)


def print_code_mix(job: UnitStepJob, plan: UnitPlan) -> None:
    """Prints a note if some finished units were computed by another version of the code or of its packages."""
    *others, now = makers(plan.receipts.values(), with_own=True).items()
    if others:
        print(
            f"{job.title}: another version of the code or of its packages computed "
            f"{plural(sum(count for _, count in others), 'finished unit')} ({'; '.join(name for name, _ in others)}; "
            f"now {now[0]}). They are kept, because the step's algorithm version is the same. To compute all units "
            f"with this code: '{job.command} --restart {job.step.location.name}'.",
            flush=True,
        )
