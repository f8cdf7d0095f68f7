"""Exports labels or maps in the field's formats, at the size of each image.

  png    palette PNG <id>.png with the data set's own class values, VOC colours, 255 = ignore
  npy    IRN's <id>.npy: a dictionary of keys (0-based classes), cam (stride 4) and high_res, of the maximum maps
  coco   one annotations.json with run-length masks; category ids are the data set's own class values

Reads <run>/seeds or, with --labels, <run>/pseudo_labels or <run>/predictions; for npy <run>/maps. File names are image
ids with special characters %-encoded. The same command continues an interrupted export.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch

from cluster.connect import Connection
from cluster.fanout import Payload, Stages
from ficklenet.seeds import resize_labels
from jobs.command_line import job_parser, run_main, underscored
from jobs.compute import connected, run_stages
from jobs.config import Config
from jobs.dry_run import Rough, print_unit_step
from jobs.evidence import Evidence, resized
from jobs.finished_maps import FinishedMaps, maps_location, require_labels, require_maps, rows_of
from jobs.finished_predictions import FinishedPredictions, require_predictions
from jobs.label_files import coco_annotations, coco_image, encode_cam_npy, encode_label_png
from jobs.make_pseudo_labels import pseudo_label_location
from jobs.prediction_stages import prediction_location
from jobs.run import Run, open_run
from jobs.unit_steps import Launch, book_units, finish_unit, unit_of
from storage.errors import BadImage
from storage.images import image_size, read_mask
from storage.label_values import ignore_value
from storage.location import Location
from storage.manifest import Manifest, ManifestRow
from storage.map_store import MapStore, UnitMaps
from storage.names import safe_name
from storage.seed_store import SeedStore
from storage.steps import Skipped, Step
from storage.units import Unit

ALGORITHM_VERSION = 1
IGNORED_IN_PNG = 255
PROGRESS = "ficklenet_export"  # folder of the export's own records; a name that no user's folder has

Format = Literal["png", "npy", "coco"]
Labels = Literal["seeds", "pseudo_labels", "predictions"]
Record = dict[str, Any]

EXAMPLES = """examples:
  python jobs/export_labels.py --run s3://bucket/voc --format png --out /data/seeds
  python jobs/export_labels.py --run s3://bucket/voc --format coco --labels pseudo_labels
  python jobs/export_labels.py --run s3://bucket/voc --format png --labels predictions
"""


def main(arguments: list[str]) -> None:
    parser = job_parser("export_labels", f"{__doc__}\n{EXAMPLES}")
    parser.add_argument("--format", choices=get_args(Format), required=True, help="of the files, see above")
    parser.add_argument("--labels", choices=get_args(Labels), type=underscored, default="seeds", help="default: seeds")
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="local folder or s3:// prefix; default: in <run>/exports, png-seeds for example",
    )
    parser.add_argument("--restart", choices=[PROGRESS], help="export everything anew")
    given = parser.parse_args(arguments)
    run = open_run(given.run, given.config, given.set)
    require_source(run, run.manifest(), given.format, given.labels)  # before a Ray is started
    with connected(run.config.cluster) as connection:
        export(
            run,
            connection,
            given.format,
            given.labels,
            export_folder(run, given.format, given.labels, given.out),
            restart=bool(given.restart),
            dry_run=given.dry_run,
        )


def export(
    run: Run,
    connection: Connection,
    format: Format,
    labels: Labels,
    out: Location,
    *,
    restart: bool = False,
    dry_run: bool = False,
) -> None:
    """Writes the missing files of an export.

    Args:
        labels: of no meaning to npy, which holds maps.
        out: the folder for the files; `PROGRESS` in it holds the export's own records.
        restart: begin anew.
        dry_run: say what would be done, and do nothing.
    """
    # 1. What is exported must be finished
    manifest = run.manifest()
    source = require_source(run, manifest, format, labels)
    if format == "png" and max(manifest.class_values) >= IGNORED_IN_PNG:
        raise ValueError(
            f"--format png: class values go up to {max(manifest.class_values)}, but 255 means ignore and a palette "
            "ends there. Export as coco."
        )

    # 2. The missing units' files
    job = ExportJob(run.uri, run.config, format, labels, out.uri)
    command = f"python jobs/export_labels.py --run {run.uri} --format {format} --labels {labels} --out {out}"
    launch = Launch(job.step, job.fingerprint(run, source), command, source.units, restart=restart)
    if dry_run:
        print_unit_step("export", launch, run.config.cluster, connection, "cpu", Rough())
        return
    plan = launch.begin()
    stages = Stages(partial(Exporter, job))
    results = run_stages(rows_of(plan, source.receipts), stages, run.config.cluster, connection, "cpu")
    book_units("export", plan, results, run.config.images.max_skipped_fraction)

    # 3. COCO's one file is put together of the units' parts
    if format == "coco":
        merge_coco(job, manifest, source.units)
    print(f"export: {format} files are in {out}")


def require_source(run: Run, manifest: Manifest, format: Format, labels: Labels) -> FinishedMaps | FinishedPredictions:
    """What is exported, or what the exported seeds or pseudo-labels are made of.

    Raises:
        ValueError: that or they are incomplete, or not made with this launch's settings.
    """
    if format != "npy" and labels == "predictions":
        return require_predictions(run, manifest, "export_labels")
    maps = require_maps(run, manifest, "export_labels")
    if format != "npy":
        require_labels(run, manifest, maps, labels, "export_labels")
    return maps


@dataclass(frozen=True)
class ExportJob:
    """What every worker needs to know."""

    run_uri: str
    config: Config
    format: Format
    labels: Labels
    out_uri: str

    @property
    def run(self) -> Run:
        return Run(Location(self.run_uri), self.config)

    @property
    def out(self) -> Location:
        return Location(self.out_uri)

    @property
    def step(self) -> Step:
        return Step(self.out / PROGRESS)

    def part_location(self, unit: Unit) -> Location:
        """A unit's COCO records."""
        return self.out / PROGRESS / "parts" / f"{unit.name}.json"

    def includes(self, entry: ManifestRow) -> bool:
        """Whether there is anything of this image."""
        of_all = self.format == "npy" or self.labels != "predictions"
        return of_all or entry.split in self.config.predicted_splits

    def fingerprint(self, run: Run, source: FinishedMaps | FinishedPredictions) -> dict[str, Any]:
        is_labels = self.format != "npy"
        made_by = Step(run.location / self.labels).fingerprint() if is_labels else source.fingerprint
        return {
            "algorithm_version": ALGORITHM_VERSION,
            "run": run.uri,
            "format": self.format,
            "labels": self.labels if is_labels else "maps",
            "source": made_by,
        }


class Exporter:
    """An actor that exports whole units, a few images at once."""

    def __init__(self, job: ExportJob) -> None:
        torch.set_num_threads(1)  # the pool has an actor per CPU
        job.step.require_here()
        self.job, self.run, self.manifest = job, job.run, job.run.manifest()
        self.num_classes = self.manifest.num_classes

    def __call__(self, row: Payload) -> Payload:
        started, unit = time.monotonic(), unit_of(row)
        skipped = [Skipped(**skip) for skip in row["skipped"]]
        known = {skip.image_id for skip in skipped}
        stored, entries = self.read_unit(unit), self.manifest.rows(unit.start, unit.stop)
        usable = [n for n, entry in enumerate(entries) if entry.image_id not in known and self.job.includes(entry)]

        def attempt(number: int) -> Record | Skipped | None:
            try:
                return self.export_image(entries[number], unit.start + number, stored, number)
            except BadImage as bad:
                return Skipped(entries[number].image_id, bad.reason)

        with ThreadPoolExecutor(self.job.config.images.read_concurrency) as pool:
            results = list(pool.map(attempt, usable))
        if self.job.format == "coco":
            records = [result for result in results if isinstance(result, dict)]
            self.job.part_location(unit).write_bytes(json.dumps(records).encode())
        skipped += [result for result in results if isinstance(result, Skipped)]
        return finish_unit(self.job.step, row, skipped, time.monotonic() - started)

    def read_unit(self, unit: Unit) -> UnitMaps | np.ndarray | None:
        """The unit's maps or seeds; None for labels of image size, which are a file each."""
        if self.job.format == "npy":
            return MapStore.open(maps_location(self.run)).read_unit(unit)
        if self.job.labels == "seeds":
            return SeedStore.open(self.run.location / "seeds" / "seeds.zarr").read_unit(unit)
        return None

    def export_image(
        self, entry: ManifestRow, row: int, stored: UnitMaps | np.ndarray | None, number: int
    ) -> Record | None:
        """Writes one image's file; for COCO its records instead.

        Args:
            row: of the image in the manifest.
            number: of the image in the unit.
        """
        name = safe_name(entry.image_id)
        if isinstance(stored, UnitMaps):
            evidence = Evidence.of(stored, number)
            maps = resized(evidence.max, _size(entry))
            (self.job.out / f"{name}.npy").write_bytes(encode_cam_npy(maps, evidence.classes))
            return None
        if stored is None:
            place = prediction_location if self.job.labels == "predictions" else pseudo_label_location
            uri = place(self.run, entry.image_id).uri
            labels = read_mask(uri, range(1, self.num_classes + 1), self.job.config.images.max_pixels)
        else:
            labels = resize_labels(stored[number], _size(entry))
        if self.job.format == "png":
            (self.job.out / f"{name}.png").write_bytes(encode_label_png(self._source_values()[labels]))
            return None
        return {
            "image": coco_image(row + 1, entry.uri.rsplit("/", 1)[-1], labels.shape),
            "annotations": coco_annotations(row + 1, labels, self.manifest.class_values),
        }

    def _source_values(self) -> np.ndarray:
        """A label's value in the data set's own masks, by label."""
        table = np.full(ignore_value(self.num_classes) + 1, IGNORED_IN_PNG)
        table[: self.num_classes + 1] = [0, *self.manifest.class_values]
        return table


def merge_coco(job: ExportJob, manifest: Manifest, units: Sequence[Unit]) -> None:
    """Writes annotations.json of the units' parts, holding one part in memory at a time."""

    def parts() -> Iterator[Record]:
        for unit in units:
            yield from json.loads(job.part_location(unit).read_bytes())

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


def export_folder(run: Run, format: str, labels: str, out: str | None) -> Location:
    """Where an export goes: what was asked for, else a folder of its own for each format and source."""
    if out is None:
        return run.location / "exports" / f"{format}-{'maps' if format == 'npy' else labels}"
    if not os.path.isabs(out) and "://" not in out and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        raise ValueError(f"--out {out}: a submitted job runs in a throwaway folder; give an absolute path or s3://...")
    return Location.parse(out)


if __name__ == "__main__":
    from jobs.export_labels import main as imported_main  # so that workers find these classes by import

    run_main(imported_main)
