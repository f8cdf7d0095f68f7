"""Facts about a run for the report: its settings, its data and its skipped images."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs.run.config_keys import Config, Section
from jobs.run.directory import Run
from jobs.run.steps import BY_NAME
from jobs.steps.states import StepState
from storage.manifest import Manifest
from storage.records import read_json

IDS_SHOWN = 100  # ids shown for one reason of skipping

# The settings at the top of the page; all others are in its last section.
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
    "segmenter.backbone",
    "segmenter.epochs",
    "seed",
)


@dataclass
class SkippedImages:
    """The images skipped for one reason."""

    reason: str
    steps: list[str] = field(default_factory=list)
    image_ids: list[str] = field(default_factory=list)  # without repetitions

    @property
    def num_images(self) -> int:
        return len(self.image_ids)

    @property
    def shown(self) -> list[str]:
        return self.image_ids[:IDS_SHOWN]


@dataclass(frozen=True)
class DataCounts:
    """The number of images by split, and by class and split; the name of a split may be empty.

    Attributes:
        refused: the number of images that the preparation could not use, with or without labels.
    """

    images: Mapping[str, int]
    labelled: Mapping[tuple[int, str], int]
    unlabelled: Mapping[str, int]
    refused: Mapping[str, int]

    @property
    def splits(self) -> list[str]:
        return list(self.images)


@dataclass(frozen=True)
class Setting:
    """A key of the configuration."""

    key: str
    value: Any
    meaning: str


def skipped_images(steps: Collection[StepState]) -> list[SkippedImages]:
    """Skipped images by reason, the most frequent first; an image that several steps skip counts once."""
    by_reason: dict[str, SkippedImages] = {}
    seen: set[tuple[str, str]] = set()
    for step in steps:
        for skip in step.skipped:
            found = by_reason.setdefault(skip.reason, SkippedImages(skip.reason))
            if step.name not in found.steps:
                found.steps.append(step.name)
            if (skip.reason, skip.image_id) not in seen:
                found.image_ids.append(skip.image_id)
                seen.add((skip.reason, skip.image_id))
    return sorted(by_reason.values(), key=lambda skipped: -len(skipped.image_ids))


def count_data(manifest: Manifest) -> DataCounts:
    """Counts the images of the manifest, reading one row group at a time."""
    images: Counter[str] = Counter()
    unlabelled: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    labelled: Counter[tuple[int, str]] = Counter()
    columns = ["labels", "split", "problem"]
    for batch in manifest.iter_columns(columns):
        images.update(batch["split"])
        for labels, split, problem in zip(*(batch[name] for name in columns), strict=True):
            labelled.update((label, split) for label in labels)
            unlabelled[split] += not labels and not problem
            refused[split] += bool(problem)
    return DataCounts(images, labelled, unlabelled, refused)


def settings_of(run: Run) -> list[Setting]:
    """Every setting that changes results; for started steps, the value that they recorded."""
    used = run.config.model_dump(mode="json", exclude={"cluster"})
    for name in used.keys() & BY_NAME.keys():
        used[name] |= (run.step(name).fingerprint() or {}).get(name, {})
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


def run_record(run: Run) -> Mapping[str, Any]:
    """The run's header, with the versions of Python, of packages and of the source."""
    return read_json(run.location / "run.json", "the run's header")
