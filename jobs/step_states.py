"""How far each step of a run is, for `status.py` and the report: read from the run's folder, changing nothing."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from jobs.parts import measurable_splits, units_of_splits
from jobs.report_curves import read_metrics
from jobs.run import Run
from storage.manifest import Manifest
from storage.steps import Receipt, Skipped, Step
from storage.units import plan_units

JOBS = {  # what makes which step, in order
    "classifier": "train_ficklenet",
    "maps": "generate_maps",
    "seeds": "aggregate_seeds",
    "pseudo_labels": "make_pseudo_labels",
    "segmenter": "train_segmentation",
    "retrained": "retrain_segmentation",  # optional: left out as long as it is not started
    "predictions": "predict_masks",
}

TRAININGS = {"classifier": "classifier", "segmenter": "segmenter", "retrained": "segmenter"}  # and their settings


@dataclass(frozen=True)
class StepState:
    """How far a step is.

    Attributes:
        state: "done", "partly done", "not started", "outdated": what it was made of has been made anew since; or
            "not possible": of the evaluation, where no image to report on has a mask.
        unit: what the counts count: "images" of a step made of units, "epochs" of a training, "figures".
        done, left: so many of them.
        skipped: the images left out, and why; ids of a table may repeat.
        seconds: of work, over all workers; 0 of a training.
        finished: when its last unit was, "" where none was.
        command: what starts it, or goes on with it; "" where nothing would.
        receipts: of its finished units.
        images: that count, by unit; of "predictions" those of the predicted splits.
    """

    name: str
    state: str
    unit: Literal["images", "epochs", "figures"]
    done: int
    skipped: tuple[Skipped, ...]
    left: int
    seconds: float
    finished: str
    command: str
    receipts: tuple[Receipt, ...] = ()
    images: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """What a training has left so far.

    Attributes:
        sha256: of the network it finished with, None as long as it has not.
        metrics: of its last epoch, or of the one that was kept.
        lines: its epochs' metrics, as far as they were kept.
    """

    sha256: str | None
    metrics: Mapping[str, Any]
    lines: tuple[Mapping[str, Any], ...]

    @property
    def epochs(self) -> int:
        """How many are finished; the one that was kept may be an earlier one."""
        return max(int(line.get("epoch", 0)) for line in (self.metrics, *self.lines[-1:]))


@dataclass(frozen=True)
class RunState:
    """The states of a run's steps by the names of their folders, in order, and what its trainings have left."""

    steps: Mapping[str, StepState]
    trainings: Mapping[str, Training]


def run_state(run: Run, manifest: Manifest) -> RunState:
    """How far every step of a run is."""
    made_by = {name: Step(run.location / name).fingerprint() for name in JOBS}
    trainings = {name: read_training(run, name) for name in TRAININGS}
    is_outdated = _outdated(made_by, {name: training.sha256 for name, training in trainings.items()})
    steps = {}
    for name, fingerprint in made_by.items():
        if name == "retrained" and fingerprint is None:
            continue
        if name in TRAININGS:
            steps[name] = _training_state(run, name, fingerprint, trainings[name], is_outdated=is_outdated[name])
        else:
            steps[name] = _unit_step_state(run, manifest, name, fingerprint, is_outdated=is_outdated[name])
    steps["evaluation"] = _evaluation_state(run, manifest, trainings)
    return RunState(steps, trainings)


def read_training(run: Run, name: str) -> Training:
    """What one of the trainings has left, by its marker and by its epochs' metrics."""
    folder = run.location / name
    marker = folder / "complete.json"
    complete = json.loads(marker.read_bytes()) if marker.exists() else {}
    lines = read_metrics(folder / "metrics.jsonl")
    metrics = complete.get("metrics") or (lines[-1] if lines else {})
    return Training(complete.get("sha256"), metrics, tuple(lines))


def _outdated(made_by: Mapping[str, Mapping[str, Any] | None], networks: Mapping[str, str | None]) -> dict[str, bool]:
    """Which steps were made of something that is another by now, or is outdated itself.

    Args:
        made_by: the steps' fingerprints.
        networks: sha256 of the finished networks.
    """
    maps, seeds = made_by["maps"], made_by["seeds"]
    found = {"classifier": False, "maps": maps is not None and maps["classifier"] != networks["classifier"]}
    for name in ("seeds", "pseudo_labels"):
        made_of = (made_by[name] or {}).get("maps")
        found[name] = made_of is not None and (found["maps"] or made_of != maps)
    learnt = (made_by["segmenter"] or {}).get("seeds")  # None: it learns masks only
    found["segmenter"] = learnt is not None and (found["seeds"] or learnt != seeds)
    teacher = (made_by["retrained"] or {}).get("teacher")
    found["retrained"] = teacher is not None and (found["segmenter"] or teacher != networks["segmenter"])
    predictions = made_by["predictions"]
    used = predictions["predictions"].get("network", "segmenter") if predictions else "segmenter"
    found["predictions"] = predictions is not None and (found[used] or predictions["segmenter"] != networks[used])
    return found


def _training_state(
    run: Run, name: str, fingerprint: Mapping[str, Any] | None, training: Training, *, is_outdated: bool
) -> StepState:
    section = TRAININGS[name]
    num_epochs = (fingerprint or {}).get(section, {}).get("epochs", getattr(run.config, section).epochs)
    left = 0 if training.sha256 else max(0, num_epochs - training.epochs)
    state = "done" if training.sha256 else "not started" if fingerprint is None else "partly done"
    return StepState(
        name=name,
        state="outdated" if is_outdated else state,
        unit="epochs",
        done=training.epochs,
        skipped=_skipped_in_training(training),
        left=left,
        seconds=0.0,
        finished="",
        command=_command(run, name, is_outdated=is_outdated),
    )


def _skipped_in_training(training: Training) -> tuple[Skipped, ...]:
    reasons: dict[str, str] = {}
    for metrics in (*training.lines, training.metrics):
        reasons |= metrics.get("skipped_images", {})
    return tuple(Skipped(image_id, reason) for image_id, reason in reasons.items())


def _unit_step_state(
    run: Run, manifest: Manifest, name: str, fingerprint: Mapping[str, Any] | None, *, is_outdated: bool
) -> StepState:
    step = Step(run.location / name)
    unit_size = (fingerprint or {}).get("unit_size", run.config.unit_size)
    if name == "predictions":
        splits = fingerprint["predictions"]["splits"] if fingerprint else run.config.predicted_splits
        units = units_of_splits(manifest, splits, unit_size)
    else:
        units = plan_units(manifest.num_images, unit_size)
    images = {unit.index: unit.num_images for unit in units}
    found = step.receipts() if fingerprint is not None else {}
    missing = {unit.index for unit in step.missing_units(units, found)}
    receipts = tuple(found[unit.index] for unit in units if unit.index not in missing)
    left = sum(images[index] for index in missing)
    skipped = tuple(skip for receipt in receipts for skip in receipt.skipped)
    state = "not started" if fingerprint is None else "outdated" if is_outdated else "partly done" if left else "done"
    return StepState(
        name=name.replace("_", "-"),
        state=state,
        unit="images",
        done=sum(images.values()) - left - len(skipped),
        skipped=skipped,
        left=left,
        seconds=sum(receipt.seconds for receipt in receipts),
        finished=_when(max((receipt.finished for receipt in receipts), default=None)),
        command=_command(run, name, is_outdated=is_outdated),
        receipts=receipts,
        images=images,
    )


def _evaluation_state(run: Run, manifest: Manifest, trainings: Mapping[str, Training]) -> StepState:
    """What was measured on the tune part are trials, and no evaluation."""
    figures = [figure for figure in read_figures(run) if figure["part"] != "tune"]
    measurable, stale = measurable_splits(manifest, run.config), _stale_splits(run, figures, trainings)
    if not measurable and (stale or not figures):
        state = "not possible"
    else:
        state = "outdated" if stale else "done" if figures else "not started"
    only_validation = bool(measurable) and set(measurable[0]) <= set(run.config.classifier.val_splits)
    splits = stale or (measurable[0] if only_validation else ())
    return StepState(
        name="evaluation",
        state=state,
        unit="figures",
        done=len(figures),
        skipped=(),
        left=0,
        seconds=0.0,
        finished="",
        command=evaluate_command(run, splits) if measurable else "",
    )


def _stale_splits(run: Run, figures: Sequence[Mapping[str, Any]], trainings: Mapping[str, Training]) -> Sequence[str]:
    """Splits whose labels, of seeds or of a segmentation network, were measured of earlier ones alone.

    Seeds count by their settings too; a network's figures where its predictions would be measured again.
    """
    seeds = (Step(run.location / "seeds").fingerprint() or {}).get("seeds", {})
    predicted = ((Step(run.location / "predictions").fingerprint() or {}).get("predictions") or {}).get("splits", [])
    is_current: dict[tuple[Any, ...], bool] = {}
    for figure in figures:
        is_of_network = figure.get("segmenter") is not None
        if is_of_network and not set(figure["splits"]) <= set(predicted):
            continue
        kind = tuple(figure["splits"]), is_of_network
        is_current[kind] = is_current.get(kind, False) or (
            is_of_these_networks(figure, trainings)
            and (is_of_network or all(figure["settings"]["seeds"].get(key) == seeds[key] for key in seeds))
        )
    return next((kind[0] for kind, current in is_current.items() if not current), ())


def evaluate_command(run: Run, splits: Sequence[str]) -> str:
    """What measures some splits; without any, the training splits."""
    return shlex.join(["python", "jobs/evaluate.py", "--run", run.uri, *(f"--split={split}" for split in splits)])


def read_figures(run: Run) -> list[dict[str, Any]]:
    """What `evaluate` has measured, as `jobs.figures` records it."""
    place = run.location / "evaluation" / "metrics.json"
    return json.loads(place.read_bytes())["figures"] if place.exists() else []


def is_of_these_networks(figure: Mapping[str, Any], trainings: Mapping[str, Training]) -> bool:
    """Whether a figure is of the classifier, and of one of the segmentation networks, that the run has now."""
    networks = (None, *(trainings[name].sha256 for name in ("segmenter", "retrained")))
    return figure["classifier"] == trainings["classifier"].sha256 and figure.get("segmenter") in networks


def _command(run: Run, name: str, *, is_outdated: bool) -> str:
    return shlex.join(
        ["python", f"jobs/{JOBS[name]}.py", "--run", run.uri, *(["--restart", name] if is_outdated else [])]
    )


def _when(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
