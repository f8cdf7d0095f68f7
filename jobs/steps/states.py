"""The state of each step of a run, for `status.py` and the report. The run is only read, not changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from jobs.run.directory import Run
from jobs.run.fingerprints import manifest_change, outdated_steps
from jobs.run.origin import origin_of
from jobs.run.selection import units_of_step
from jobs.run.steps import STEPS, StepRow, pipeline_steps
from jobs.run.training_record import TrainingRecord, read_trainings
from jobs.steps.added_images import added_in_words
from jobs.steps.evaluation_state import EvaluationState, evaluation_state
from jobs.steps.tally import is_refused
from storage.image_identity import images_ids
from storage.manifest import Manifest
from storage.steps import Receipt, Skipped
from storage.units import Unit


@dataclass(frozen=True)
class StepState:
    """The state of a step.

    Attributes:
        name: name for people; the folder's name with '-' in place of '_'.
        state: "done", "partly done", "not started"; "outdated": the results that it read have changed since; "refused":
            too many of its images were skipped; "record lost": there are results, but no ``step.json``; "not possible":
            the evaluation, if no image to report on has a mask.
        unit: what is counted: "images", "epochs" or "metrics".
        done, left: how many are done and left.
        skipped: the skipped images with the reasons; an id may be there several times.
        seconds: working time of all workers together; 0 for a training.
        finished: when the last unit was finished; "" if no unit is finished.
        command: the command that starts or continues the step; "" if there is nothing to run.
        receipts: the receipts of its finished units, also of those to which images were added since.
        images: the number of images that count, by unit; for "predictions" only those of the predicted splits, and
            without images that were added since the unit was finished.
        note: further information as a sentence without its full stop; "" for none.
    """

    name: str
    state: str
    unit: Literal["images", "epochs", "metrics"]
    done: int
    skipped: tuple[Skipped, ...]
    left: int
    seconds: float
    finished: str
    command: str
    receipts: tuple[Receipt, ...] = ()
    images: Mapping[int, int] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class RunState:
    """The states of a run's steps, by the names of their folders and in order, and the records of its trainings."""

    steps: Mapping[str, StepState]
    trainings: Mapping[str, TrainingRecord]


def run_state(run: Run, manifest: Manifest) -> RunState:
    """The state of every step of a run, without optional steps that were not started and that no other step reads.

    Raises:
        ValueError: a step was made for other images than those in the manifest, or its record is damaged.
    """
    trainings = read_trainings(run)
    outdated, images = outdated_steps(run), images_ids(manifest)
    is_copy = bool(origin_of(run))  # of a network for new images, without its step.json
    steps = {}
    for row in STEPS:
        fingerprint = run.step(row.name).fingerprint()
        if row.kind == "units":  # trainings do not count images
            run.step(row.name).require_images(*images)
        is_lost = not is_copy and row.kind != "metrics" and run.step(row.name).has_lost_record()
        if row.is_optional and fingerprint is None and not is_lost and row not in pipeline_steps(run.config):
            continue
        match row.kind:
            case "training":
                steps[row.name] = _training_state(run, row, fingerprint, trainings[row.name], outdated)
            case "units":
                steps[row.name] = _unit_step_state(run, manifest, row, fingerprint, outdated)
            case "metrics":
                steps[row.name] = _metrics_state(row, evaluation_state(run, manifest, trainings))
        if is_lost:
            steps[row.name] = replace(steps[row.name], state="record lost", command=_command(run, row, is_lost=True))
    return RunState(steps, trainings)


def steps_to_show(run: Run, state: RunState) -> dict[str, StepState]:
    """The steps to tell people about: all, but of a run that has only masks of new images those that were started."""
    hidden = ("not started", "not possible") if origin_of(run) else ()
    return {name: step for name, step in state.steps.items() if step.state not in hidden}


def _training_state(
    run: Run,
    row: StepRow,
    fingerprint: Mapping[str, Any] | None,
    training: TrainingRecord,
    outdated: set[str],
) -> StepState:
    is_outdated = row.name in outdated
    recorded = fingerprint or {}
    configured = recorded.get(row.section, {}).get("epochs", getattr(run.config, row.section).epochs)
    num_epochs = recorded.get("raised_epochs", configured)
    left = 0 if training.sha256 else max(0, num_epochs - training.num_epochs)
    state = "done" if training.sha256 else "not started" if fingerprint is None else "partly done"
    return StepState(
        name=row.title,
        state="outdated" if is_outdated else state,
        unit="epochs",
        done=training.num_epochs,
        skipped=_skipped_in_training(training),
        left=left,
        seconds=0.0,
        finished="",
        command=_command(run, row, is_outdated=is_outdated),
        note=(is_outdated and manifest_change(run, row.name))
        or (added_in_words(run, row.name) if training.sha256 else ""),
    )


def _skipped_in_training(training: TrainingRecord) -> tuple[Skipped, ...]:
    reasons: dict[str, str] = {}
    for metrics in (*training.epochs, training.metrics):
        reasons |= metrics.get("skipped_images", {})
    return tuple(Skipped(image_id, reason) for image_id, reason in reasons.items())


def _unit_step_state(
    run: Run, manifest: Manifest, row: StepRow, fingerprint: Mapping[str, Any] | None, outdated: set[str]
) -> StepState:
    step, is_outdated = run.step(row.name), row.name in outdated
    units = units_of_step(row, manifest, run.config, fingerprint)
    images = {unit.index: unit.num_images for unit in units}
    receipts, total = tuple(step.receipts_of(units) if fingerprint is not None else ()), sum(images.values())
    missing = step.missing_units(units, {receipt.unit: receipt for receipt in receipts})
    images |= _images_before_additions(manifest, row, fingerprint, receipts, missing)
    left = total - sum(images[receipt.unit] for receipt in receipts)
    skipped = tuple(skip for receipt in receipts for skip in receipt.skipped)
    if fingerprint is None:
        state = "not started"
    elif is_outdated:
        state = "outdated"
    elif is_refused(len(skipped), total, run.config.images.max_skipped_fraction):
        state = "refused"
    else:
        state = "partly done" if missing else "done"
    return StepState(
        name=row.title,
        state=state,
        unit="images",
        done=total - left - len(skipped),
        skipped=skipped,
        left=left,
        seconds=sum(receipt.seconds for receipt in receipts),
        finished=_when(max((receipt.finished for receipt in receipts), default=None)),
        command=_command(run, row, is_outdated=is_outdated, is_refused=state == "refused"),
        receipts=receipts,
        images=images,
    )


def _images_before_additions(
    manifest: Manifest,
    row: StepRow,
    fingerprint: Mapping[str, Any] | None,
    receipts: Sequence[Receipt],
    missing: Sequence[Unit],
) -> dict[int, int]:
    """The number of images that count in the units that were finished before images were added to them."""
    splits = fingerprint[row.section]["splits"] if row.is_of_splits and fingerprint else None
    grown = {unit.index for unit in missing}
    return {
        receipt.unit: sum(splits is None or each.split in splits for each in manifest.rows(receipt.start, receipt.stop))
        for receipt in receipts
        if receipt.unit in grown
    }


def _metrics_state(row: StepRow, evaluation: EvaluationState) -> StepState:
    return StepState(
        name=row.title,
        state=evaluation.state,
        unit="metrics",
        done=evaluation.num_metrics,
        skipped=(),
        left=0,
        seconds=0.0,
        finished="",
        command=evaluation.command,
        note=evaluation.note,
    )


def _command(
    run: Run, row: StepRow, *, is_outdated: bool = False, is_refused: bool = False, is_lost: bool = False
) -> str:
    plain = Run(run.location, run.config)  # without this launch's settings, because the recorded ones apply
    flags = ["--restart", row.name] if is_outdated or is_lost else ["--retry-skipped"] if is_refused else []
    return plain.step_command(row.name, *flags)


def _when(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
