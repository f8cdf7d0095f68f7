"""What a report says of a run in words and numbers: its steps, settings, data and skipped images."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from jobs.config import Config, Section
from jobs.run import Run
from storage.manifest import Manifest
from storage.steps import Receipt, Step
from storage.units import plan_units

UNIT_STEPS = {"maps": "generate_maps", "seeds": "aggregate_seeds", "pseudo_labels": "make_pseudo_labels"}
IDS_SHOWN = 100  # of the images skipped for one reason

# The settings named at a glance; all others are in the page's last section.
MATTERS = (
    "images.input_size",
    "classifier.backbone",
    "classifier.weights",
    "classifier.kernel_size",
    "classifier.drop_rate",
    "classifier.epochs",
    "maps.num_samples",
    "maps.normalization",
    "seeds.theta",
    "seeds.background_cue",
    "seeds.priority",
    "seed",
)


@dataclass(frozen=True)
class StepState:
    """How far a step is.

    Attributes:
        state: "done", "partly done", "not started", or "outdated": what it was made of has been made anew since.
        done, skipped, left: images.
        seconds: of work, over all workers.
        finished: when its last unit was, "" where none was.
        command: what starts it, or goes on with it.
        receipts: of its finished units.
    """

    name: str
    state: str
    done: int
    skipped: int
    left: int
    seconds: float
    finished: str
    command: str
    receipts: tuple[Receipt, ...]


@dataclass(frozen=True)
class TrainingState:
    """How far the classifier's training is; `metrics` are those of its last epoch, or of the one that was kept, whose
    model's hash is `sha256`."""

    state: str
    sha256: str | None
    epochs: int
    num_epochs: int
    metrics: Mapping[str, float]
    command: str


@dataclass
class SkippedImages:
    """The images skipped for one reason."""

    reason: str
    steps: list[str] = field(default_factory=list)
    image_ids: list[str] = field(default_factory=list)  # each once

    @property
    def num_images(self) -> int:
        return len(self.image_ids)

    @property
    def shown(self) -> list[str]:
        return self.image_ids[:IDS_SHOWN]


@dataclass(frozen=True)
class DataCounts:
    """Images by split, and by class and split; a split's name may be empty."""

    images: Mapping[str, int]
    labelled: Mapping[tuple[int, str], int]
    unlabelled: Mapping[str, int]

    @property
    def splits(self) -> list[str]:
        return list(self.images)


@dataclass(frozen=True)
class Setting:
    """A key of the configuration."""

    key: str
    value: Any
    meaning: str


def unit_step_states(run: Run, manifest: Manifest, classifier: str | None) -> dict[str, StepState]:
    """The states of the steps that are made of units, by name, in order.

    Args:
        classifier: sha256 of the run's classifier now, None where there is none.
    """
    maps = Step(run.location / "maps").fingerprint()
    are_maps_outdated = maps is not None and maps["classifier"] != classifier
    states = {"maps": _unit_step_state(run, manifest, "maps", is_outdated=are_maps_outdated)}
    for name in ("seeds", "pseudo_labels"):
        made_of = (Step(run.location / name).fingerprint() or {}).get("maps")
        is_outdated = made_of is not None and (are_maps_outdated or made_of != maps)
        states[name] = _unit_step_state(run, manifest, name, is_outdated=is_outdated)
    return states


def _unit_step_state(run: Run, manifest: Manifest, name: str, *, is_outdated: bool) -> StepState:
    step = Step(run.location / name)
    fingerprint = step.fingerprint()
    units = plan_units(manifest.num_images, (fingerprint or {}).get("unit_size", run.config.unit_size))
    found = step.receipts() if fingerprint is not None else {}
    missing = {unit.index for unit in step.missing_units(units, found)}
    receipts = tuple(found[unit.index] for unit in units if unit.index not in missing)
    left = sum(unit.num_images for unit in units if unit.index in missing)
    state = "not started" if fingerprint is None else "outdated" if is_outdated else "partly done" if left else "done"
    return StepState(
        name=name.replace("_", "-"),
        state=state,
        done=sum(receipt.num_done for receipt in receipts),
        skipped=sum(len(receipt.skipped) for receipt in receipts),
        left=left,
        seconds=sum(receipt.seconds for receipt in receipts),
        finished=_when(max((receipt.finished for receipt in receipts), default=None)),
        command=f"python jobs/{UNIT_STEPS[name]}.py --run {run.uri}" + (f" --restart {name}" if is_outdated else ""),
        receipts=receipts,
    )


def training_state(run: Run, lines: Sequence[Mapping[str, float]], num_epochs: int) -> TrainingState:
    """The state of the training, by its marker and by its epochs' metrics as far as they were kept."""
    folder = run.location / "classifier"
    record, marker = folder / "step.json", folder / "complete.json"
    complete = json.loads(marker.read_bytes()) if marker.exists() else {}
    metrics = complete.get("metrics") or (lines[-1] if lines else {})
    state = "done" if complete else "partly done" if record.exists() else "not started"
    command = f"python jobs/train_ficklenet.py --run {run.uri}"
    epochs = max(int(line.get("epoch", 0)) for line in (metrics, *lines[-1:]))  # the best one may be earlier
    return TrainingState(state, complete.get("sha256"), epochs, num_epochs, metrics, command)


def skipped_images(steps: Sequence[StepState]) -> list[SkippedImages]:
    """Skipped images by reason, the most frequent first; one that several steps skip is counted once."""
    by_reason: dict[str, SkippedImages] = {}
    seen: set[tuple[str, str]] = set()
    for step in steps:
        for skip in (skip for receipt in step.receipts for skip in receipt.skipped):
            found = by_reason.setdefault(skip.reason, SkippedImages(skip.reason))
            if step.name not in found.steps:
                found.steps.append(step.name)
            if (skip.reason, skip.image_id) not in seen:
                found.image_ids.append(skip.image_id)
                seen.add((skip.reason, skip.image_id))
    return sorted(by_reason.values(), key=lambda skipped: -len(skipped.image_ids))


def count_data(manifest: Manifest) -> DataCounts:
    """Counts the manifest, a row group at a time."""
    images: Counter[str] = Counter()
    unlabelled: Counter[str] = Counter()
    labelled: Counter[tuple[int, str]] = Counter()
    for batch in manifest.iter_columns(["labels", "split"]):
        images.update(batch["split"])
        for labels, split in zip(batch["labels"], batch["split"], strict=True):
            labelled.update((label, split) for label in labels)
            unlabelled[split] += not labels
    return DataCounts(images, labelled, unlabelled)


def settings_of(run: Run) -> list[Setting]:
    """Every setting that changes results, as the steps recorded it where they have been started."""
    used = run.config.model_dump(mode="json", exclude={"cluster"})
    for name in ("classifier", *UNIT_STEPS):
        used[name] |= (Step(run.location / name).fingerprint() or {}).get(name, {})
    settings = []
    for name, about in Config.model_fields.items():
        section = about.annotation
        if name not in used:
            continue
        if isinstance(section, type) and issubclass(section, Section):
            for key, described in section.model_fields.items():
                settings.append(Setting(f"{name}.{key}", used[name][key], described.description or ""))
        else:
            settings.append(Setting(name, used[name], about.description or ""))
    return settings


def _when(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def run_record(run: Run) -> Mapping[str, Any]:
    """The run's header: versions of Python, of packages and of the source."""
    return json.loads((run.location / "run.json").read_bytes())
