"""The workers' part of an evaluation: compares a unit's label maps with its masks in confusion matrices."""

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch

from cluster.fanout import Payload
from ficklenet.backbones import backbone_geometry
from ficklenet.metrics import confusion_matrix
from jobs.evaluation.baselines import Baseline
from jobs.evaluation.counts import Counts
from jobs.maps.deterministic import DeterministicMapper
from jobs.maps.evidence import Evidence, read_saliencies
from jobs.maps.stored_geometry import stored_geometry
from jobs.run.config_keys import Config
from jobs.run.directory import Run
from jobs.run.selection import Resolution, Selection
from storage.errors import BadImage
from storage.images import read_image, read_many, read_mask
from storage.label_values import ignore_value
from storage.manifest import ManifestRow
from storage.map_store import UnitMaps

Source = Literal[
    "stored seeds",
    "stored pseudo-labels",
    "stored predictions",
    "stored unrefined",
    "maps",
    "refined maps",
    "deterministic maps",
]
MAPS_OF: dict[str, Source] = {"maps": "maps", "refined": "refined maps"}  # by the step that stores them
MADE_BY: dict[Source, tuple[str, ...]] = {  # the steps that may have skipped an image of a recipe
    "stored seeds": ("seeds",),
    "stored pseudo-labels": ("pseudo_labels",),
    "stored predictions": ("predictions",),
    "stored unrefined": ("predictions",),
    "maps": ("maps", "seeds"),  # the seeds skip an image whose saliency map cannot be read
    "refined maps": ("refined", "seeds"),
    "deterministic maps": ("maps", "seeds"),
}
LABEL_FOLDERS: dict[Source, tuple[str, str]] = {  # step and kind of the labels that are stored at image size
    "stored pseudo-labels": ("pseudo_labels", "labels"),
    "stored predictions": ("predictions", "labels"),
    "stored unrefined": ("predictions", "unrefined"),
}


@dataclass(frozen=True)
class Recipe:
    """One kind of label maps to measure.

    Attributes:
        name: the name in the results; no two recipes have the same.
        source: the stored labels, or the maps from which the labels are made.
        config: the settings for making labels from maps.
        densify: make densified seeds instead of seeds.
        baseline: replaces the maps, only at map resolution.
    """

    name: str
    source: Source
    config: Config
    densify: bool = False
    baseline: Baseline | None = None

    @property
    def resolutions(self) -> tuple[Resolution, ...]:
        return ("map",) if self.baseline else ("map", "image")


@dataclass(frozen=True)
class Measurement:
    """Everything that a worker needs."""

    run: Run
    selection: Selection
    resolutions: tuple[Resolution, ...]
    recipes: tuple[Recipe, ...]
    device: str

    def needs(self, source: Source) -> bool:
        return any(recipe.source == source for recipe in self.recipes)

    @property
    def needs_maps(self) -> bool:
        """Whether stored maps are read; the deterministic and the refined maps need them for their classes."""
        return any(self.needs(source) for source in ("maps", "deterministic maps", "refined maps"))

    @property
    def reading_config(self) -> Config:
        """The configuration for reading saliency maps: one that needs them, if a recipe has one."""
        wanting = (recipe.config for recipe in self.recipes if recipe.config.seeds.background_cue == "saliency")
        return next(wanting, self.run.config)


@dataclass(frozen=True)
class Subject:
    """One image with its truth (H, W), and its label maps or the maps from which they are made."""

    truth: np.ndarray
    stored: Mapping[Source, np.ndarray]
    evidence: Mapping[Source, Evidence]


class UnitMeter:
    """An actor that measures whole units; only a few masks and images are in memory at a time."""

    def __init__(self, measurement: Measurement) -> None:
        if measurement.device == "cpu":
            torch.set_num_threads(1)  # the pool has an actor per CPU
        self.measurement, self.run = measurement, measurement.run
        self.manifest = self.run.manifest()
        self.ignore = ignore_value(self.manifest.num_classes)
        settings = self.run.config.segmenter
        self.geometry = (
            stored_geometry(self.run.maps())
            if measurement.needs_maps
            else backbone_geometry(settings.backbone, settings.output_stride)
        )
        is_sampled = not measurement.needs("deterministic maps")
        self.mapper = None if is_sampled else DeterministicMapper(self.run, measurement.device)

    def __call__(self, row: Payload) -> Payload:
        unit, selection = row["unit"], self.measurement.selection
        entries = self.manifest.rows(unit.start, unit.stop)
        selected = [n for n, entry in enumerate(entries) if selection.includes(entry.image_id, entry.split)]
        with_mask = [n for n in selected if entries[n].mask_uri]
        counts = Counts(left_out=Counter({"no mask": len(selected) - len(with_mask)}))
        maps = {
            source: self.run.maps(step=step).read_unit(unit)
            for step, source in MAPS_OF.items()
            if self.measurement.needs(source) or (step == "maps" and self.measurement.needs_maps)
        }
        seeds = None
        if self.measurement.needs("stored seeds"):
            seeds = self.run.seeds().read_unit(unit)

        at_once = self.run.config.images.read_concurrency
        for start in range(0, len(with_mask), at_once):
            numbers = with_mask[start : start + at_once]
            for number, subject in zip(
                numbers, self.read(row, [entries[n] for n in numbers], maps, seeds, numbers), strict=True
            ):
                if isinstance(subject, str):
                    counts.left_out[subject] += 1
                    continue
                counts.add(self.measure(subject))
                labels = [label + 1 for label in entries[number].labels]
                if labels and not np.isin(subject.truth, labels).any():
                    counts.add(Counts(num_foreign=1, first_foreign=entries[number].image_id))
                for recipe in self.measurement.recipes:
                    reasons = (row["skipped_by"][step].get(entries[number].image_id) for step in MADE_BY[recipe.source])
                    if reason := next(filter(None, reasons), None):
                        counts.skipped[recipe.name][reason] += 1
        return {"counts": counts, "num_images": len(selected)}

    def read(
        self,
        row: Payload,
        entries: Sequence[ManifestRow],
        maps: Mapping[Source, UnitMaps],
        seeds: np.ndarray | None,
        numbers: Sequence[int],
    ) -> list[Subject | str]:
        """Some images of a unit; for an image with an unreadable mask, the reason instead.

        Args:
            maps: the unit's maps that are measured. If there are any, the maps of the samples are among them.
        """
        side = self.geometry.grid_size(self.run.config.images.input_size)
        grid = (side, side) if not maps else (maps["maps"].max.shape[2], maps["maps"].max.shape[3])
        truths = self._read_truths(entries)
        only_maps = self.measurement.resolutions == ("map",)
        saliencies = read_saliencies(
            entries, self.measurement.reading_config, self.geometry, grid if only_maps else None
        )
        stored = self._read_stored(entries, row)
        subjects: list[Subject | str] = []
        for index, (number, entry, truth, saliency) in enumerate(
            zip(numbers, entries, truths, saliencies, strict=True)
        ):
            if isinstance(truth, BadImage):
                subjects.append(f"mask: {truth.reason}")
                continue
            if None not in (entry.height, entry.width) and truth.shape != (entry.height, entry.width):
                subjects.append("mask: its size differs from the image's")
                continue
            nothing = np.full(truth.shape, self.ignore)
            labels: dict[Source, np.ndarray] = {
                source: nothing if (one := found[index]) is None else one for source, found in stored.items()
            }
            if seeds is not None:
                labels["stored seeds"] = seeds[number]
            nothing_known = Evidence.none(grid, self.geometry)
            evidence: dict[Source, Evidence] = {"maps": nothing_known}
            for source, unit_maps in maps.items():
                evidence[source] = (
                    nothing_known
                    if isinstance(saliency, BadImage)
                    else Evidence.of(unit_maps, number, self.geometry, saliency)
                )
            if self.mapper is not None:
                evidence["deterministic maps"] = self._deterministic(self.mapper, entry, evidence["maps"])
            subjects.append(Subject(truth, labels, evidence))
        return subjects

    def measure(self, subject: Subject) -> Counts:
        """Compares the labels of every recipe with an image's truth, at every resolution."""
        classes = np.unique(subject.truth)
        has_several = bool(((classes > 0) & (classes != self.ignore)).sum() > 1)
        counts = Counts(num_images=1, num_several=int(has_several))
        for resolution in self.measurement.resolutions:
            height, width = subject.evidence["maps"].max.shape[1:] if resolution == "map" else subject.truth.shape
            truth = self.geometry.resize_labels(subject.truth, (height, width))
            for recipe in self.measurement.recipes:
                if resolution not in recipe.resolutions:
                    continue
                labels = self.labels(recipe, subject, (height, width))
                matrix = confusion_matrix(truth, labels, self.manifest.num_classes, self.ignore)
                counts.matrices[recipe.name, resolution] = matrix
        if has_several:
            counts.several = dict(counts.matrices)
        return counts

    def labels(self, recipe: Recipe, subject: Subject, size: tuple[int, int]) -> np.ndarray:
        """A recipe's labels (*size). Stored labels are resized by nearest neighbour; maps before labels are made."""
        if recipe.source in subject.stored:
            return self.geometry.resize_labels(subject.stored[recipe.source], size)
        evidence = subject.evidence[recipe.source]
        if recipe.baseline is not None:
            evidence = recipe.baseline.applied(evidence)
        if recipe.densify:
            return evidence.densified(size, recipe.config, self.ignore)
        return self.geometry.resize_labels(evidence.seeds(recipe.config, self.ignore), size)

    def _deterministic(self, mapper: DeterministicMapper, entry: ManifestRow, known: Evidence) -> Evidence:
        """The deterministic maps of the same classes; each is used as the maximum and as the mean."""
        if len(known.classes) == 0:
            return known
        try:
            image = read_image(
                entry.uri, **self.run.config.images.limits, target_side=self.run.config.images.input_size
            )
        except BadImage:  # it was readable when its maps were made
            return Evidence.none((known.max.shape[1], known.max.shape[2]), self.geometry)
        maps = mapper(image, known.classes)
        return Evidence(maps, maps, known.classes, known.saliency, self.geometry)

    def _read_stored(self, entries: Sequence[ManifestRow], row: Payload) -> dict[Source, list[np.ndarray | None]]:
        """The stored label maps at image size that the recipes measure; None for an image that their step skipped."""

        def read(source: Source, entry: ManifestRow) -> np.ndarray | None:
            step, _ = LABEL_FOLDERS[source]
            is_skipped = entry.image_id in row["skipped_by"][step]
            return None if is_skipped else folders[source].read(entry.image_id, receipts[source])

        sources = [source for source in LABEL_FOLDERS if self.measurement.needs(source)]
        folders = {source: self.run.labels(*LABEL_FOLDERS[source]) for source in sources}
        receipts = {source: self.run.receipt(LABEL_FOLDERS[source][0], row["unit"]) for source in sources}
        with ThreadPoolExecutor(self.run.config.images.read_concurrency) as pool:
            return {source: list(pool.map(partial(read, source), entries)) for source in sources}

    def _read_truths(self, entries: Sequence[ManifestRow]) -> list[np.ndarray | BadImage]:
        images, values = self.run.config.images, self.manifest.class_values
        uris = [str(entry.mask_uri) for entry in entries]
        return read_many(uris, lambda uri: read_mask(uri, values, **images.limits), images.read_concurrency)
