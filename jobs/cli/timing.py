"""Times the steps of a run on a few of its images, with a temporary run on this machine.

The steps are the real ones, one after the other in this process: the real images, networks, sizes and settings, but few
images and epochs. A first round warms up and shows how slow the images are. While there is time, another round takes
more images; the last round gives the figures. The first steps of a training are slower than the later ones, so the
number of images matters.

The networks have hardly learnt anything by then, so their maps may be empty. After the maps are timed, drawn maps
replace them, so that the later steps have something to work on.
"""

import io
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from cluster.connect import Connection, usable_cpus
from cluster.errors import ClusterError
from jobs.cli.launch import launch_step
from jobs.cli.workload import READING, computed_shares, kept_feature_bytes
from jobs.evaluation.measuring import evaluate_labels
from jobs.maps.unit_images import read_unit_images
from jobs.reporting.contact_sheet import draw_contact_sheet
from jobs.reporting.page import write_report
from jobs.run.config_keys import Config
from jobs.run.directory import Run
from jobs.run.selection import units_of_step
from jobs.run.steps import TRAININGS, StepRow
from jobs.run.training_record import read_epochs
from jobs.training.image_list import image_list
from jobs.training.segmentation_data import training_images
from storage.location import Location
from storage.manifest import Manifest, write_manifest
from storage.units import Unit

SECONDS = 60
"""The time that all rounds together may take, in seconds; approximate."""

END = ("metrics", "report")
"""The titles of what follows the steps."""

EPOCHS = 3
FROZEN_EPOCHS = 8  # with a frozen backbone; by then each image and its mirror image have passed through it
_ROUNDS, _FIRST, _MOST = 3, 2, 64  # the most rounds; training images in the first one, and the most in another one
_MOST_LEARNING_RATE = 1e-3  # a training is as fast with a higher rate, but it may diverge


@dataclass(frozen=True)
class UnitPace:
    """The cost of an image in a unit step.

    Attributes:
        seconds: working time of one worker, for an image that the step computes (`jobs.cli.workload`).
        finish_seconds: time of the work at the end of the step, divided by the number of computed images.
        bytes: stored bytes of a computed image.
        reading_seconds: working time for an image that the step only reads.
    """

    seconds: float
    finish_seconds: float
    bytes: float
    reading_seconds: float = 0.0


@dataclass(frozen=True)
class TrainingPace:
    """The costs of a training.

    Attributes:
        step_seconds: seconds of an image in a step.
        pass_seconds: of an image's pass through a frozen backbone, whose features are kept; 0 if none is frozen.
        validation_seconds: of an image in a validation.
        epoch_seconds: of the report and the checkpoint at the end of an epoch.
        bytes: of the networks and the checkpoint.
        feature_bytes: of an image's kept features; 0 if none are kept.
    """

    step_seconds: float
    pass_seconds: float
    validation_seconds: float
    epoch_seconds: float
    bytes: float
    feature_bytes: int = 0


@dataclass(frozen=True)
class Paces:
    """The results of a round.

    Attributes:
        steps: by name; a step that could not be run is not among them.
        evaluation_seconds, num_measured: the evaluation, and its images; 0 if no image has a mask.
        report_seconds: of the contact sheet and the report.
        num_images: the images of the round.
        problem: the step that could not be run, and why, so later ones were not run either; "" if all were.
    """

    steps: dict[str, UnitPace | TrainingPace]
    evaluation_seconds: float = 0.0
    num_measured: int = 0
    report_seconds: float = 0.0
    num_images: int = 0
    problem: str = ""


def time_steps(run: Run, rows: Sequence[StepRow], *, on_gpu: bool, num_threads: int, with_report: bool) -> Paces:
    """Times steps on this machine; it takes about `SECONDS` at most.

    Args:
        rows: the steps, each after the steps that it reads.
        on_gpu: use this machine's GPU.
        num_threads: of the trainings; 0 for all CPUs.
        with_report: also time the evaluation and the report.
    """
    started = time.monotonic()
    number, most = _FIRST, min(_MOST, len(training_images(run.manifest(), run.config)))
    rounds: list[Paces] = []
    while True:
        begun, epochs = time.monotonic(), EPOCHS if rounds else 2
        rounds.append(_round(run, rows, on_gpu, num_threads, with_report, num_training=number, epochs=epochs))
        now = time.monotonic()
        per_image = (now - begun) / number * EPOCHS / epochs  # with everything that is slow only once
        before, number = number, min(most, int((SECONDS - (now - started)) / per_image))
        if rounds[-1].problem:
            return rounds[-2] if len(rounds) > 1 else rounds[-1]
        if len(rounds) == _ROUNDS or number < 2 * before:
            return rounds[-1] if len(rounds) == 1 else _without_fixed_evaluation(rounds[-2], rounds[-1])


def _without_fixed_evaluation(before: Paces, last: Paces) -> Paces:
    """The last round; its evaluation is only what more images than in the round before took longer.

    An evaluation of a few images takes nearly the same time as one of a hundred.
    """
    num_more = last.num_measured - before.num_measured
    if num_more <= 0:
        return last
    return replace(
        last,
        evaluation_seconds=max(0.0, last.evaluation_seconds - before.evaluation_seconds),
        num_measured=num_more,
    )


def _round(
    run: Run, rows: Sequence[StepRow], on_gpu: bool, num_threads: int, with_report: bool, num_training: int, epochs: int
) -> Paces:
    folder = tempfile.mkdtemp(prefix="ficklenet-timing-")
    connection = Connection(usable_cpus(), float(on_gpu), num_nodes=1, in_process=True)
    try:
        with _quiet(), _threads_kept():
            small = _small_run(run, Location(folder), num_training, epochs, num_threads)
            return _time_all(small, rows, connection, with_report=with_report)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _time_all(run: Run, rows: Sequence[StepRow], connection: Connection, *, with_report: bool) -> Paces:
    paces: dict[str, UnitPace | TrainingPace] = {}
    num_images = run.manifest().num_images
    for row in rows:
        try:
            launch_step(run, connection, row.name)
            is_of_units = row.kind == "units"
            paces[row.name] = _unit_pace(run, row) if is_of_units else _training_pace(run, row)
            if row.name in ("maps", "refined"):
                _draw_maps(run, row.name)
        except (ValueError, OSError, ClusterError) as error:
            return Paces(paces, problem=_problem(row.title, error, run))
    if not with_report:
        return Paces(paces)
    started = time.monotonic()
    try:
        num_measured = _evaluate(run, connection)
        evaluation_seconds = time.monotonic() - started
        started = time.monotonic()
        draw_contact_sheet(run, num_images=8)
        write_report(run)
    except (ValueError, OSError) as error:
        return Paces(paces, problem=_problem(" and ".join(END), error, run))
    return Paces(paces, evaluation_seconds, num_measured, time.monotonic() - started, num_images)


def _problem(what: str, error: Exception, run: Run) -> str:
    """The reason, without the sentences from the first one that names the temporary run, such as a command for it."""
    reason, is_named, _ = str(error).partition(Path(run.uri).name)
    if is_named:
        reason = "".join(re.findall(r".*?[.!?]\s", reason, re.DOTALL))
    return f"{what}: {reason.strip().rstrip('.') or 'it failed in the temporary run'}"


def _evaluate(run: Run, connection: Connection) -> int:
    """Measures the images that have masks; returns their number."""
    splits = sorted({row.split for row in run.manifest().iter_rows() if row.mask_uri})
    validation = [split for split in splits if split in run.config.data.val_splits]
    training = [split for split in splits if split not in validation]
    number = 0
    for group in filter(None, (training, validation)):
        measured = evaluate_labels(run, connection, group, "all", ("image",), deterministic=False)
        number += measured[0].num_images
    return number


def _unit_pace(run: Run, row: StepRow) -> UnitPace:
    ended, step, manifest = time.time(), run.step(row.name), run.manifest()
    receipts = sorted(step.receipts().values(), key=lambda receipt: receipt.unit)
    shares = computed_shares(row, manifest, run.config)
    images = {unit.index: unit for unit in units_of_step(row, manifest, run.config)}
    computed = {index: shares[unit.start : unit.stop].sum() for index, unit in images.items()}
    working = [receipt for receipt in receipts if computed[receipt.unit]] or receipts
    latest = working[len(working) // 2 :]  # the first units include what is slow only once
    num_computed = sum(computed[receipt.unit] for receipt in latest)
    num_others = sum(images[receipt.unit].num_images for receipt in latest) - num_computed
    each = _reading_seconds(run) if row.name in READING else 0.0
    seconds = max(0.0, sum(receipt.seconds for receipt in latest) - each * num_others)
    finishing = max(0.0, ended - max(receipt.finished for receipt in receipts)) if row.name == "cells" else 0.0
    return UnitPace(
        seconds=seconds / max(1.0, num_computed),
        finish_seconds=finishing / max(1.0, shares.sum()),
        bytes=step.location.usage()[1] / max(1.0, shares.sum()),
        reading_seconds=each,
    )


def _reading_seconds(run: Run) -> float:
    """The time in which a worker reads an image at the size of the network's input; the mean of the last eight."""
    num_images = run.manifest().num_images
    unit = Unit(0, max(0, num_images - 8), num_images)
    started = time.monotonic()
    read_unit_images(run, {"unit": unit, "skipped": ()})
    return (time.monotonic() - started) / unit.num_images


def _training_pace(run: Run, row: StepRow) -> TrainingPace:
    step, manifest = run.step(row.name), run.manifest()
    epochs, (num_training, num_validation) = read_epochs(step.data()), _counts(run, row, manifest)
    batch = min(getattr(run.config, row.section).batch_size, num_training)
    num_images = num_training // batch * batch
    stepping = [num_images / line["images_per_second"] for line in epochs]
    validating = [line.get("validation_seconds", 0.0) for line in epochs]
    others = [line["seconds"] - step - check for line, step, check in zip(epochs, stepping, validating, strict=True)]
    feature_bytes = kept_feature_bytes(row, manifest, run.config)
    usual = min(stepping) if feature_bytes else float(np.mean(stepping[1:]))
    num_passes = num_images * (2 - 2.0 ** (1 - len(epochs)))  # an image or its mirror image, the first time
    passes = max(0.0, sum(stepping) - len(epochs) * usual) / num_passes if feature_bytes else 0.0
    return TrainingPace(
        step_seconds=usual / num_images,
        pass_seconds=passes,
        validation_seconds=validating[-1] / num_validation if num_validation else 0.0,
        epoch_seconds=max(0.0, float(np.mean(others[1:]))),
        bytes=step.location.usage()[1],
        feature_bytes=feature_bytes,
    )


def _counts(run: Run, row: StepRow, manifest: Manifest) -> tuple[int, int]:
    """The training images, and the images of a validation; a segmentation network is validated on training images."""
    if row.name == "classifier":
        data = run.config.data
        training = image_list(manifest, data.train_splits, without=data.val_splits)
        return len(training), len(image_list(manifest, data.val_splits)) if data.val_splits else 0
    number = len(training_images(manifest, run.config))
    return number, number if row.name == "segmenter" else 0


# --- the temporary run --------------------------------------------------------------------------------------------


def _small_run(run: Run, folder: Location, num_training: int, epochs: int, num_threads: int) -> Run:
    """A run of a few images of another run, with the same settings but for the number of epochs."""
    manifest = run.manifest()
    chosen = _chosen(run.config, manifest, num_training)
    rows = [manifest.rows(number, number + 1)[0] for number in chosen]
    keeps = [row.section for row in TRAININGS if kept_feature_bytes(row, manifest, run.config)]
    small = Run(folder, _small_config(run.config, num_training, epochs, num_threads, keeps))
    write_manifest(folder / "manifest.parquet", rows, manifest.class_names, manifest.class_values)
    return small


def _draw_maps(run: Run, name: str) -> None:
    """Replaces the values of the stored maps: each class has cells with evidence, and there are cells without any."""
    step, store = run.step(name), run.maps("r+", step=name)
    rows, columns = store.grid
    places = np.linspace(0.0, 1.0, columns)
    for receipt in step.receipts(with_objects=True).values():
        unit = Unit(receipt.unit, receipt.start, receipt.stop)
        maps = store.read_unit(unit)
        num_slots = (maps.classes >= 0).sum(axis=1)[:, None, None]
        # Each class of an image has a ridge from top to bottom; the first and the last column have no evidence
        peaks = np.arange(1, store.num_slots + 1)[:, None]
        ridges = np.maximum(0.0, 1 - np.abs(places * (num_slots + 1) - peaks))
        drawn = np.repeat(ridges[:, :, None], rows, axis=2)
        objects = store.write_unit(unit, drawn, drawn, maps.score, maps.classes)
        step.write_receipt(replace(receipt, objects={**receipt.objects, **objects}))


def _chosen(config: Config, manifest: Manifest, num_training: int) -> list[int]:
    """Rows of the manifest: training images, spread evenly, and a third as many images to predict or to validate on.

    One of the training images has labels, because others have no seeds of a class.
    """
    training = training_images(manifest, config).rows
    splits = pa.array([*config.data.val_splits, *config.predicted_splits], pa.string())
    is_other = [
        pc.and_(pc.is_in(table["split"], splits), table["problem"].is_null()).to_numpy(False)
        for table in manifest.iter_tables(["split", "problem"])
    ]
    others = np.setdiff1d(np.flatnonzero(np.concatenate([np.zeros(0, bool), *is_other])), training)
    strong = [row for row in training if manifest.rows(row, row + 1)[0].split in config.segmenter.strong_splits][:1]
    has_label = [
        pc.greater(pc.list_value_length(table["labels"]), 0).to_numpy(False)
        for table in manifest.iter_tables(["labels"])
    ]
    labelled = np.intersect1d(np.flatnonzero(np.concatenate([np.zeros(0, bool), *has_label])), training)[:1]
    rows = [*_spread(training, num_training), *strong, *labelled, *_spread(others, max(1, num_training // 3))]
    return sorted({int(row) for row in rows})


def _spread(rows: np.ndarray, number: int) -> np.ndarray:
    return rows[np.linspace(0, len(rows) - 1, min(number, len(rows))).astype(int)]


def _small_config(
    config: Config, num_training: int, epochs: int, num_threads: int, keeps_features: Collection[str]
) -> Config:
    """The settings of the temporary run. Every step can be run, however little the networks have learnt.

    Args:
        keeps_features: the sections of the trainings that keep the features of a frozen backbone.
    """
    sections: dict[str, Any] = {
        "images": {"max_skipped_fraction": 1.0},
        # Drawn maps have cells of a class and of the background; the times are those of images whose cells are used
        "cells": {"max_images": 1_000_000, "theta": 0.0, "evidence_threshold": 0.5},
        "seeds": {"theta": 0.0, "priority": "foreground", "saliency_threshold": 1.0},
        "cluster": {"address": "in-process", "training_workers": 1, "cpus_per_training_worker": num_threads},
    }
    for name in ("classifier", "segmenter"):
        section = getattr(config, name)
        sections[name] = {
            "epochs": FROZEN_EPOCHS if name in keeps_features else epochs,
            "min_steps": 1,
            "learning_rate": section.learning_rate and min(section.learning_rate, _MOST_LEARNING_RATE),
            "batch_size": min(section.batch_size, num_training),
            "weights": "none" if section.weights == "imagenet" else section.weights,  # equally fast, and no download
        }
    sections["classifier"] |= {"keep": "last", "validate_every": 1}
    updated = {name: getattr(config, name).model_copy(update=values) for name, values in sections.items()}
    unit_size = max(1, min(config.unit_size, num_training // 2))
    return config.model_copy(update={**updated, "unit_size": unit_size})


@contextmanager
def _quiet() -> Iterator[None]:
    """Discards what the steps print, and their warnings: they are about a run that is thrown away."""
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


@contextmanager
def _threads_kept() -> Iterator[None]:
    """Restores torch's number of threads, which the steps' workers change."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
