"""The estimate of a dry run: the paces of `jobs.cli.timing`, scaled by the counts of the run."""

import math
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch

from cluster.connect import PROJECT_ROOT, Connection, usable_cpus
from jobs.cli.command_line import STARTED
from jobs.cli.timing import END, Paces, TrainingPace, UnitPace, time_steps
from jobs.cli.workload import computed_shares
from jobs.reporting.page import NUM_IMAGES
from jobs.run.config_keys import training_worker_range
from jobs.run.directory import Run
from jobs.run.selection import measurable_splits, resolve_selection, units_of_step
from jobs.run.steps import StepRow
from jobs.run.training_record import read_epochs
from jobs.steps.compute import actor_pool, is_done_here, resolved_device
from jobs.steps.estimates import StepEstimate
from jobs.steps.evaluation_state import part_to_measure
from jobs.steps.machine_load import busy_in_words
from jobs.steps.unit_rows import copied_rows
from jobs.training.foreground import NUM_IMAGES as NUM_COMPARED
from jobs.training.image_list import image_list
from jobs.training.plan import Plan, planned_training
from jobs.training.training_job import epochs_to_do, is_trained_here

BUSY = "This machine was busy with other programs, and the times include this: without these, they are shorter."
RAY_SECONDS = 5.0  # the start of a local Ray, beside that of its processes
_STARTS = {"units": 1.5, "training": 3.0}  # processes that a step on Ray starts, one after the other


@dataclass(frozen=True)
class Estimate:
    """What the rest of a run will take.

    Attributes:
        steps: by name; without steps that are done, or that could not be timed.
        start_seconds: of this job, of Ray and of its workers.
        end_seconds: of the evaluation, the contact sheet and the report.
        untimed: the titles of the parts that are left to do, but could not be timed, so they are in no sum.
        problem: why they could not be timed; "" if all were.
        notes: sentences about how this machine changed the times.
    """

    steps: dict[str, StepEstimate]
    start_seconds: float
    end_seconds: float
    untimed: tuple[str, ...] = ()
    problem: str = ""
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        return self.start_seconds + self.end_seconds + sum(step.seconds for step in self.steps.values())

    @property
    def bytes(self) -> float:
        return sum(step.bytes for step in self.steps.values())


def is_begun(run: Run, row: StepRow) -> bool:
    """Whether the step has a finished unit or epoch, which shows its speed better than a few images do."""
    step = run.step(row.name)
    return bool(step.receipts() if row.kind == "units" else read_epochs(step.data()))


def can_be_timed_here(run: Run, connection: Connection) -> bool:
    """Whether this machine has a GPU if the steps use one."""
    config = run.config
    sections = ("classifier", "maps", "segmenter", "predictions")
    devices = (resolved_device(getattr(config, name).device, connection, f"{name}.device") for name in sections)
    uses_gpu = "cuda" in set(devices)
    return torch.cuda.is_available() or not uses_gpu


def estimate_steps(
    run: Run, connection: Connection, rows: Sequence[StepRow], *, is_whole: bool, restarted: Collection[str] = ()
) -> Estimate:
    """Times some steps on this machine and scales the times to what is left to do.

    Args:
        rows: the steps in order, with all that they read.
        is_whole: the steps are followed by the evaluation and the report.
        restarted: the names of the steps that will be started again.
    """
    cluster = run.config.cluster
    own_start, was_busy = _own_seconds(), bool(busy_in_words())
    is_here = training_worker_range(cluster) == (1, 1) and (connection.in_process or connection.is_optional)
    num_threads = cluster.cpus_per_training_worker or (0 if is_here else 1)
    on_gpu = connection.num_gpus >= 1 and torch.cuda.is_available()
    paces = time_steps(run, rows, on_gpu=on_gpu, num_threads=num_threads, with_report=is_whole)
    steps, starts, untimed = dict[str, StepEstimate](), 0.0, list[str]()
    for row in rows:
        pace = paces.steps.get(row.name)
        if isinstance(pace, UnitPace):
            steps[row.name], is_on_ray = _of_units(run, connection, row, pace, restart=row.name in restarted)
        elif isinstance(pace, TrainingPace):
            steps[row.name], is_on_ray = _of_training(run, connection, row, pace, restart=row.name in restarted)
        else:
            is_restarted = row.name in restarted
            known = is_begun(run, row) and estimate_of_records(run, connection, row, restart=is_restarted)
            if known:
                steps[row.name] = known
            else:
                untimed.append(row.title)
            continue
        starts += _STARTS[row.kind] if is_on_ray and steps[row.name].seconds else 0
    ray = RAY_SECONDS if starts and connection.is_to_start else 0.0
    start_seconds = own_start + ray
    if starts:
        process = _process_seconds()
        # This start may have read the libraries from a slow disk; the launch will find them in memory
        start_seconds = min(own_start, process) + ray + starts * process
    end_seconds = _end_seconds(run, paces) if is_whole else 0.0
    untimed += END if is_whole and paces.problem else ()
    notes = [BUSY] if was_busy or busy_in_words() else []
    if num_threads > usable_cpus() and any(row.kind == "training" for row in rows):
        notes.append(
            f"The trainings were timed with cluster.cpus_per_training_worker = {num_threads} threads on this machine's "
            f"{usable_cpus()} CPUs; workers that have so many CPUs take less time."
        )
    return Estimate(steps, start_seconds, end_seconds, tuple(untimed), paces.problem, tuple(notes))


def estimate_of_records(
    run: Run, connection: Connection, row: StepRow, *, restart: bool = False
) -> StepEstimate | None:
    """What is left of a begun step, at the speed of its finished units or epochs; None if that is not recorded.

    Args:
        restart: the step will be started again, so all of it is left.
    """
    step, config, manifest = run.step(row.name), run.config, run.manifest()
    stored = step.location.usage()[1]
    if row.kind == "training":
        plan, folder = planned_training(row.name, config, manifest), step.data()
        speed, num_left = read_epochs(folder)[-1].get("images_per_second"), epochs_to_do(plan, folder, restart=restart)
        if num_left and not speed:  # not in a line of an earlier version
            return None
        seconds = num_left * plan.epoch_images / speed if speed else 0.0
        return StepEstimate(seconds, float(stored) if restart else 0.0, "measured on the finished epochs")
    receipts, shares = step.receipts().values(), computed_shares(row, manifest, config)
    num_computed = max(1.0, sum(float(shares[receipt.start : receipt.stop].sum()) for receipt in receipts))
    pace = UnitPace(sum(receipt.seconds for receipt in receipts) / num_computed, 0.0, stored / num_computed)
    found, _ = _of_units(run, connection, row, pace, restart=restart)
    return replace(found, source="measured on the finished units")


def _of_units(
    run: Run, connection: Connection, row: StepRow, pace: UnitPace, *, restart: bool
) -> tuple[StepEstimate, bool]:
    """The estimate of the missing units, and whether they are computed on Ray."""
    step, config = run.step(row.name), run.config
    receipts = {} if restart else step.receipts()
    missing = step.missing_units(units_of_step(row, run.manifest(), config), receipts)
    shares, copied = computed_shares(row, run.manifest(), config), copied_rows(row, missing, receipts)
    computed = [float(shares[unit.start + copied.get(unit.index, 0) : unit.stop].sum()) for unit in missing]
    seconds = [
        pace.seconds * number + pace.reading_seconds * max(0.0, unit.num_images - copied.get(unit.index, 0) - number)
        for unit, number in zip(missing, computed, strict=True)
    ]
    is_here = is_done_here(connection, sum(seconds) if row.name == "seeds" else None)
    section = row.device_key.partition(".")[0]
    asked = getattr(config, section).device if section else "cpu"
    device = resolved_device(asked, connection, row.device_key)
    num_workers = 1 if is_here else actor_pool(config.cluster, connection, device, row.actors_per_gpu).max_actors
    slowest = max(sum(seconds[worker::num_workers]) for worker in range(num_workers))
    num_computed = sum(computed)
    return StepEstimate(slowest + pace.finish_seconds * num_computed, pace.bytes * num_computed), not is_here


def _of_training(
    run: Run, connection: Connection, row: StepRow, pace: TrainingPace, *, restart: bool
) -> tuple[StepEstimate, bool]:
    """The estimate of the epochs that are left, and whether they are trained on Ray."""
    config, manifest, folder = run.config, run.manifest(), run.step(row.name).data()
    plan, validation = planned_training(row.name, config, manifest), config.data.val_splits
    if row.name == "classifier":
        num_validation = len(image_list(manifest, validation)) if validation else 0
    else:
        num_validation = min(NUM_COMPARED, plan.num_images)
    share = epochs_to_do(plan, folder, restart=restart) / plan.epochs
    num_workers, wanted = training_worker_range(config.cluster)[0], 2 * plan.num_images + num_validation
    most = 1e9 * getattr(config, row.section).kept_features_gb
    kept = min(1.0, most / (wanted * pace.feature_bytes)) if pace.feature_bytes else 1.0
    seconds = share * _training_seconds(plan, pace, num_validation, kept) / num_workers
    is_here = is_trained_here(config.cluster, connection, folder, is_new=restart)
    return StepEstimate(seconds, pace.bytes if share else 0.0), not is_here


def _training_seconds(plan: Plan, pace: TrainingPace, num_validation: int, kept: float) -> float:
    """The time of one worker.

    Args:
        kept: the share of the images and mirror images whose features there is room for, if the backbone is frozen.
    """
    num_validations = math.ceil(plan.epochs / plan.validate_every)
    first_passes = plan.num_images * (2 - 2.0 ** (1 - plan.epochs)) + num_validation
    all_passes = plan.num_images * plan.epochs + num_validation * num_validations
    num_passes = kept * first_passes + (1 - kept) * all_passes
    return (
        plan.steps * plan.step_images * pace.step_seconds
        + num_passes * pace.pass_seconds
        + num_validations * num_validation * pace.validation_seconds
        + plan.epochs * pace.epoch_seconds
    )


def _end_seconds(run: Run, paces: Paces) -> float:
    """Of the evaluation, the contact sheet and the report."""
    manifest, config = run.manifest(), run.config
    groups = measurable_splits(manifest, config)
    selections = [resolve_selection(manifest, config, group, part_to_measure(run, group)) for group in groups]
    num_measured = 0
    for table in manifest.iter_tables(["image_id", "split", "mask_uri"]):
        masked = table["mask_uri"].is_valid()
        ids, splits = table["image_id"].filter(masked), table["split"].filter(masked)
        num_measured += sum(int(selection.of(ids, splits).sum()) for selection in selections)
    drawn = min(NUM_IMAGES, manifest.num_images) / max(1, min(NUM_IMAGES, paces.num_images))
    evaluation = paces.evaluation_seconds * num_measured / max(1, paces.num_measured)
    return evaluation + paces.report_seconds * drawn


def _own_seconds() -> float:
    """The start of this job until now, with its imports; the launch will take as long."""
    return time.monotonic() - STARTED


def _process_seconds() -> float:
    """The start of a worker: a process of Python that imports what workers import, two at the same time.

    The faster of two attempts, because the first one may read the libraries from a slow disk.
    """
    command = [sys.executable, "-c", "import ray.data, jobs.maps.map_maker"]
    seconds = []
    for _ in range(2):
        started = time.monotonic()
        processes = [subprocess.Popen(command, cwd=PROJECT_ROOT) for _ in range(2)]
        for process in processes:
            process.wait()
        seconds.append(time.monotonic() - started)
    return min(seconds)
