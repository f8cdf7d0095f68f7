"""The workers' part of an export: writes a unit's maps or labels in another program's format, at image size."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import torch

from cluster.fanout import Payload
from ficklenet.geometry import GridGeometry
from jobs.exports.exported_masks import mask_digest, record_exported
from jobs.exports.format_table import FORMATS
from jobs.exports.formats.npy import encode_cam_npy
from jobs.exports.image_names import ImageNames
from jobs.exports.labelled_image import Classes, Exported, LabelledImage, WholeExport
from jobs.exports.regions import count_regions, without_small
from jobs.maps.evidence import Evidence, resized
from jobs.maps.stored_geometry import stored_geometry
from jobs.run.directory import Run
from jobs.steps.unit_rows import finish_unit
from storage.errors import BadImage
from storage.images import image_size, read_mask
from storage.label_values import ignore_value
from storage.location import Location
from storage.manifest import Manifest, ManifestRow
from storage.map_store import MapStore, UnitMaps
from storage.names import safe_name
from storage.seed_store import SeedStore
from storage.steps import Receipt, Skipped, Step
from storage.units import Unit

PROGRESS = "ficklenet_export"  # folder of the export's own records; users have no folder with this name

LABELS = ("seeds", "pseudo_labels", "predictions")  # the coarsest first


@dataclass(frozen=True)
class ExportStages:
    """Everything that a worker needs.

    Attributes:
        format: a name of `FORMATS`.
        labels: the step that is read, one of `LABELS`; "maps" for npy.
        shapes: how objects are written; "" if the format has no choice.
        splits: the splits to export; empty for all.
        min_object_pixels: smaller components become background.
        corrected: the masks to export instead of the labels of the step, by image id.
    """

    run: Run
    format: str
    labels: str
    out: Location
    shapes: str
    splits: tuple[str, ...]
    names: ImageNames
    min_object_pixels: int = 0
    corrected: Mapping[str, str] = field(default_factory=dict)

    @property
    def step(self) -> Step:
        return Step(self.out / PROGRESS)

    @property
    def module(self) -> ModuleType:
        """The format's module."""
        return import_module(f"jobs.exports.formats.{FORMATS[self.format].module}")

    def part_location(self, unit: Unit, start_id: str) -> Location:
        """The file with a unit's records, of a start of the export, for formats with one file for all images."""
        return self.step.data(start_id) / "parts" / f"{unit.name}.json"

    def includes(self, split: str) -> bool:
        """Whether the images of this split are exported."""
        if self.splits and split not in self.splits:
            return False
        return self.labels != "predictions" or split in self.run.config.predicted_splits


class Exporter:
    """An actor that exports whole units, a few images at the same time."""

    def __init__(self, job: ExportStages) -> None:
        torch.set_num_threads(1)  # the pool has an actor per CPU
        job.step.require_here()
        self.job, self.run, self.manifest = job, job.run, job.run.manifest()
        self.module, self.classes = job.module, classes_of(self.manifest)
        self.store = self._store()
        self.geometry = stored_geometry(self.store) if self.store else GridGeometry(8)

    def __call__(self, row: Payload) -> Payload:
        started, unit = time.monotonic(), row["unit"]
        skipped = list(row["skipped"])
        known = {skip.image_id for skip in skipped}
        stored, entries = self.read_unit(unit), self.manifest.rows(unit.start, unit.stop)
        wanted = [n for n, entry in enumerate(entries) if self.job.includes(entry.split)]
        usable = [n for n in wanted if entries[n].image_id not in known]

        def attempt(number: int) -> Exported | Skipped:
            try:
                exported = self.export_image(entries[number], unit.start + number, stored, number)
            except BadImage as bad:
                return Skipped(entries[number].image_id, bad.reason)
            self.write(exported)
            return replace(exported, files={})

        with ThreadPoolExecutor(self.run.config.images.read_concurrency) as pool:
            results = list(pool.map(attempt, usable))
        skipped += [result for result in results if isinstance(result, Skipped)]
        exported = [result for result in results if not isinstance(result, Skipped)]
        records = [result.record for result in exported if result.record is not None]
        if FORMATS[self.job.format].has_unit_files:
            whole = self.module.export_unit(records, unit.name, self.classes)
            self.write(whole)
            records = whole.record
        self.job.part_location(unit, row["start_id"]).write_bytes(json.dumps(records).encode())
        digests = {
            entries[number].image_id: result.digest
            for number, result in zip(usable, results, strict=True)
            if isinstance(result, Exported) and result.digest
        }
        if digests:
            record_exported(self.run, self.job.labels, self.job.out, unit.name, row["start_id"], digests)
        counts = {
            "num_exported": len(exported),
            "num_empty": sum(result.is_empty for result in exported),
            "num_dropped": sum(result.num_dropped for result in exported),
            "num_objects": sum(result.num_objects for result in exported),
            "num_specks": sum(result.num_specks for result in exported),
        }
        return finish_unit(self.job.step, row, skipped, time.monotonic() - started) | counts

    def write(self, exported: Exported) -> None:
        """Writes the files of an image or a unit."""
        for name, content in exported.files.items():
            (self.job.out / name).write_bytes(content)

    def read_unit(self, unit: Unit) -> UnitMaps | np.ndarray | Receipt | None:
        """The unit's maps or seeds; for labels at image size, which are one file per image, their receipt."""
        return self.store.read_unit(unit) if self.store else self.run.receipt(self.job.labels, unit)

    def _store(self) -> MapStore | SeedStore | None:
        if self.job.format == "npy":
            return self.run.maps()
        return self.run.seeds() if self.job.labels == "seeds" else None

    def export_image(
        self, entry: ManifestRow, row: int, stored: UnitMaps | np.ndarray | Receipt | None, number: int
    ) -> Exported:
        """One image's files and its record.

        Args:
            row: the row of the image in the manifest.
            number: the number of the image in the unit.
        """
        if isinstance(stored, UnitMaps):
            evidence = Evidence.of(stored, number, self.geometry)
            maps = resized(evidence.max, image_size_of(entry), self.geometry)
            data = encode_cam_npy(maps, self._source_keys(evidence.classes))
            return Exported({f"{safe_name(entry.image_id)}.npy": data})
        if corrected := self.job.corrected.get(entry.image_id):
            labels = read_mask(corrected, self.manifest.class_values, **self.run.config.images.limits)
        elif isinstance(stored, np.ndarray):
            labels = self.geometry.resize_labels(stored[number], image_size_of(entry))
        else:
            labels = self.run.labels(self.job.labels).read(entry.image_id, stored)
        labels, num_dropped = self._without_small(labels)
        names = self.job.names
        ignored = ignore_value(self.manifest.num_classes)
        exported = self.module.export_image(
            LabelledImage(
                number=names.number(entry, row),
                image_id=entry.image_id,
                file_name=names.file_name(entry),
                uri=entry.uri,
                split=entry.split,
                labels=labels,
                ignored=ignored,
                classes=self.classes,
                shapes=self.job.shapes,
                role=self.run.config.data.role_of(entry.split),
            )
        )
        is_empty = not ((labels > 0) & (labels != ignored)).any()
        num_objects, num_specks = count_regions(labels, self.manifest.num_classes)
        return replace(
            exported,
            is_empty=is_empty,
            num_dropped=num_dropped,
            num_objects=num_objects,
            num_specks=num_specks,
            digest=mask_digest(labels, self.manifest.num_classes),
        )

    def _without_small(self, labels: np.ndarray) -> tuple[np.ndarray, int]:
        if not self.job.min_object_pixels:
            return labels, 0
        return without_small(labels, self.manifest.num_classes, self.job.min_object_pixels)

    def _source_keys(self, classes: np.ndarray) -> np.ndarray:
        """IRN's keys: the data set's own class values, counted from 0. VOC's cat with the value 8 is 7."""
        return np.asarray(self.manifest.class_values)[classes] - 1


def classes_of(manifest: Manifest) -> Classes:
    """A manifest's class list."""
    return Classes(manifest.class_names, manifest.class_values)


def finish_export(job: ExportStages, manifest: Manifest, units: Sequence[Unit], start_id: str) -> str:
    """Writes the files for all images, from the records of the units; a sentence about them, "" if there is none."""

    def records() -> Iterator[Any]:
        for unit in units:
            yield from json.loads(job.part_location(unit, start_id).read_bytes())

    if not FORMATS[job.format].has_labels:
        return ""
    return job.module.finish(WholeExport(job.out, classes_of(manifest), job.shapes, records)) or ""


def image_size_of(entry: ManifestRow) -> tuple[int, int]:
    if entry.height is None or entry.width is None:
        return image_size(entry.uri)
    return entry.height, entry.width
