"""What workers do to export a unit: its maps or labels in a file format of the field, at image size."""

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from cluster.fanout import Payload
from ficklenet.geometry import GridGeometry
from jobs.exports.file_formats import coco_annotations, coco_image, encode_cam_npy
from jobs.maps.evidence import Evidence, resized
from jobs.maps.stored_geometry import stored_geometry
from jobs.run.directory import Run
from jobs.steps.unit_rows import finish_unit
from storage.errors import BadImage
from storage.images import image_size
from storage.label_folder import encode_label_png
from storage.label_values import ignore_value
from storage.location import Location
from storage.manifest import Manifest, ManifestRow
from storage.map_store import MapStore, UnitMaps
from storage.names import safe_name
from storage.seed_store import SeedStore
from storage.steps import Receipt, Skipped, Step
from storage.units import Unit

IGNORED_IN_PNG = 255
PROGRESS = "ficklenet_export"  # folder of the export's own records; a name that no user's folder has

Format = Literal["png", "npy", "coco"]
Labels = Literal["seeds", "pseudo_labels", "predictions"]
Record = dict[str, Any]


@dataclass(frozen=True)
class ExportStages:
    """What every worker needs to know."""

    run: Run
    format: Format
    labels: Labels
    out: Location

    @property
    def step(self) -> Step:
        return Step(self.out / PROGRESS)

    def part_location(self, unit: Unit, start_id: str) -> Location:
        """A unit's COCO records, of a start of the export."""
        return self.step.data(start_id) / "parts" / f"{unit.name}.json"

    def includes(self, entry: ManifestRow) -> bool:
        """Whether there is anything of this image."""
        of_all = self.format == "npy" or self.labels != "predictions"
        return of_all or entry.split in self.run.config.predicted_splits


class Exporter:
    """An actor that exports whole units, a few images at once."""

    def __init__(self, job: ExportStages) -> None:
        torch.set_num_threads(1)  # the pool has an actor per CPU
        job.step.require_here()
        self.job, self.run, self.manifest = job, job.run, job.run.manifest()
        self.num_classes = self.manifest.num_classes
        self.store = self._store()
        self.geometry = stored_geometry(self.store) if self.store else GridGeometry(8)

    def __call__(self, row: Payload) -> Payload:
        started, unit = time.monotonic(), row["unit"]
        skipped = list(row["skipped"])
        known = {skip.image_id for skip in skipped}
        stored, entries = self.read_unit(unit), self.manifest.rows(unit.start, unit.stop)
        usable = [n for n, entry in enumerate(entries) if entry.image_id not in known and self.job.includes(entry)]

        def attempt(number: int) -> Record | Skipped | None:
            try:
                return self.export_image(entries[number], unit.start + number, stored, number)
            except BadImage as bad:
                return Skipped(entries[number].image_id, bad.reason)

        with ThreadPoolExecutor(self.run.config.images.read_concurrency) as pool:
            results = list(pool.map(attempt, usable))
        if self.job.format == "coco":
            records = [result for result in results if isinstance(result, dict)]
            self.job.part_location(unit, row["start_id"]).write_bytes(json.dumps(records).encode())
        skipped += [result for result in results if isinstance(result, Skipped)]
        return finish_unit(self.job.step, row, skipped, time.monotonic() - started)

    def read_unit(self, unit: Unit) -> UnitMaps | np.ndarray | Receipt | None:
        """The unit's maps or seeds; for labels of image size, which are a file each, their receipt."""
        return self.store.read_unit(unit) if self.store else self.run.receipt(self.job.labels, unit)

    def _store(self) -> MapStore | SeedStore | None:
        if self.job.format == "npy":
            return self.run.maps()
        return self.run.seeds() if self.job.labels == "seeds" else None

    def export_image(
        self, entry: ManifestRow, row: int, stored: UnitMaps | np.ndarray | Receipt | None, number: int
    ) -> Record | None:
        """Writes one image's file; for COCO its records instead.

        Args:
            row: of the image in the manifest.
            number: of the image in the unit.
        """
        name = safe_name(entry.image_id)
        if isinstance(stored, UnitMaps):
            evidence = Evidence.of(stored, number, self.geometry)
            maps = resized(evidence.max, _size(entry), self.geometry)
            (self.job.out / f"{name}.npy").write_bytes(encode_cam_npy(maps, self._source_keys(evidence.classes)))
            return None
        if isinstance(stored, np.ndarray):
            labels = self.geometry.resize_labels(stored[number], _size(entry))
        else:
            labels = self.run.labels(self.job.labels).read(entry.image_id, stored)
        if self.job.format == "png":
            (self.job.out / f"{name}.png").write_bytes(encode_label_png(self._source_values()[labels]))
            return None
        return {
            "image": coco_image(row + 1, entry.uri.rsplit("/", 1)[-1], labels.shape),
            "annotations": coco_annotations(row + 1, labels, self.manifest.class_values),
        }

    def _source_keys(self, classes: np.ndarray) -> np.ndarray:
        """IRN's keys: 0-based classes of the data set's own masks, so VOC's cat, of value 8, is 7."""
        return np.asarray(self.manifest.class_values)[classes] - 1

    def _source_values(self) -> np.ndarray:
        """A label's value in the data set's own masks, by label."""
        table = np.full(ignore_value(self.num_classes) + 1, IGNORED_IN_PNG)
        table[: self.num_classes + 1] = [0, *self.manifest.class_values]
        return table


def merge_coco(job: ExportStages, manifest: Manifest, units: Sequence[Unit], start_id: str) -> None:
    """Writes annotations.json of the units' parts, holding one part in memory at a time."""

    def parts() -> Iterator[Record]:
        for unit in units:
            yield from json.loads(job.part_location(unit, start_id).read_bytes())

    categories = [
        {"id": value, "name": name} for value, name in zip(manifest.class_values, manifest.class_names, strict=True)
    ]
    images = (part["image"] for part in parts())
    annotations = (annotation for part in parts() for annotation in part["annotations"])
    numbered = ({"id": number, **annotation} for number, annotation in enumerate(annotations, start=1))
    with (job.out / "annotations.json").open_output() as file:
        file.write(b'{"categories": ' + json.dumps(categories).encode())
        for name, records in (("images", images), ("annotations", numbered)):
            file.write(f',\n"{name}": ['.encode())
            for number, record in enumerate(records):
                file.write((",\n" if number else "\n").encode() + json.dumps(record).encode())
            file.write(b"]")
        file.write(b"}\n")


def _size(entry: ManifestRow) -> tuple[int, int]:
    if entry.height is None or entry.width is None:
        return image_size(entry.uri)
    return entry.height, entry.width
