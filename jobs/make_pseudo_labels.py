"""Makes pseudo-labels: a label for every pixel, densified seeds at image size refined by a dense CRF.

Reads <run>/maps, the images and the manifest's saliency maps, writes <run>/pseudo_labels/labels/<id>.png (0
background, class number + 1, in VOC colours). The same command continues an interrupted run.
"""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from cluster.connect import Connection
from cluster.fanout import Payload, Stages
from cluster.quarantine import LEFT_OUT
from ficklenet.crf import require_pydensecrf
from jobs.command_line import job_parser, run_main, underscored
from jobs.compute import connected, run_stages
from jobs.config import Config
from jobs.dry_run import Rough, print_unit_step
from jobs.evidence import Evidence, read_saliencies
from jobs.finished_maps import FinishedMaps, label_settings, maps_location, require_maps, rows_of
from jobs.label_files import encode_label_png
from jobs.run import Run, open_run, record_run
from jobs.unit_steps import Launch, Shard, book_units, finish_unit, unit_of
from storage.errors import BadImage
from storage.images import read_image, read_many
from storage.label_values import ignore_value
from storage.location import Location
from storage.manifest import Manifest, ManifestRow
from storage.map_store import MapStore, UnitMaps
from storage.names import safe_name
from storage.steps import Skipped, Step
from storage.units import parse_shard

ALGORITHM_VERSION = 1  # of all that happens between maps, images and stored pseudo-labels
MANIFEST_COLUMNS = ("image_id", "uri", "saliency_uri", "problem")

EXAMPLES = """examples:
  python jobs/make_pseudo_labels.py --run s3://bucket/voc
  python jobs/make_pseudo_labels.py --run s3://bucket/voc --set pseudo_labels.refine=false --restart pseudo_labels
"""


def main(arguments: list[str]) -> None:
    parser = job_parser("make_pseudo_labels", f"{__doc__}\n{EXAMPLES}")
    parser.add_argument("--shard", metavar="I/N", default="1/1", help="only every N-th unit, from the I-th on")
    parser.add_argument(
        "--restart", choices=["pseudo_labels"], type=underscored, help="delete this step's results and start it anew"
    )
    given = parser.parse_args(arguments)
    run = open_run(given.run, given.config, given.set)
    shard = parse_shard(given.shard)
    require_maps(run, run.manifest(), "make_pseudo_labels")  # before a Ray is started
    with connected(run.config.cluster) as connection:
        make_pseudo_labels(run, connection, shard, restart=given.restart == "pseudo_labels", dry_run=given.dry_run)


def make_pseudo_labels(
    run: Run, connection: Connection, shard: Shard = (1, 1), *, restart: bool = False, dry_run: bool = False
) -> None:
    """Makes the missing units of a run's pseudo-labels; arguments as in `aggregate_seeds.aggregate_run`."""
    if run.config.pseudo_labels.refine:
        require_pydensecrf()
    manifest = run.manifest()
    maps = require_maps(run, manifest, "make_pseudo_labels")
    job = PseudoLabelsJob(run.uri, run.config, manifest.num_classes)
    launch = Launch(
        job.step,
        job.fingerprint(manifest, maps),
        run.command("make_pseudo_labels"),
        maps.units,
        shard,
        restart,
    )
    if dry_run:
        print_unit_step("pseudo-labels", launch, run.config.cluster, connection, "cpu", Rough())
        return
    plan = launch.begin()
    record_run(run, "pseudo_labels")

    stages = Stages(partial(PseudoLabelMaker, job))
    results = run_stages(rows_of(plan, maps.receipts), stages, run.config.cluster, connection, "cpu", try_labels)
    book_units("pseudo-labels", plan, results, run.config.images.max_skipped_fraction)


def pseudo_label_location(run: Run, image_id: str) -> Location:
    """Where an image's pseudo-labels are."""
    return run.location / "pseudo_labels" / "labels" / f"{safe_name(image_id)}.png"


@dataclass(frozen=True)
class PseudoLabelsJob:
    """What every worker needs to know."""

    run_uri: str
    config: Config
    num_classes: int

    @property
    def run(self) -> Run:
        return Run(Location(self.run_uri), self.config)

    @property
    def step(self) -> Step:
        return Step(self.run.location / "pseudo_labels")

    def fingerprint(self, manifest: Manifest, maps: FinishedMaps) -> dict[str, Any]:
        """Everything that changes the pseudo-labels."""
        return {
            "algorithm_version": ALGORITHM_VERSION,
            "manifest": manifest.column_hash(MANIFEST_COLUMNS),
            "max_pixels": self.config.images.max_pixels,
            "pseudo_labels": label_settings(self.config, "pseudo_labels"),
            "maps": maps.fingerprint,
        }


def try_labels(maker: "PseudoLabelMaker", row: Payload) -> None:
    """All of a unit but the storing, for the quarantine."""
    maker.label_unit(row, keep=False)


class PseudoLabelMaker:
    """All of a unit, in an actor: the CRF takes most of the time, and a unit's images never lie in memory together."""

    def __init__(self, job: PseudoLabelsJob) -> None:
        torch.set_num_threads(1)  # the pool has an actor per CPU
        job.step.require_here()
        self.job = job

    def __call__(self, row: Payload) -> Payload:
        started = time.monotonic()
        skipped = self.label_unit(row, keep=True)
        return finish_unit(self.job.step, row, skipped, time.monotonic() - started)

    def label_unit(self, row: Payload, *, keep: bool) -> list[Skipped]:
        """Makes a unit's pseudo-labels, and stores them unless it is a trial; the images that have none."""
        run, unit = self.job.run, unit_of(row)
        maps = MapStore.open(maps_location(run)).read_unit(unit)
        entries = run.manifest().rows(unit.start, unit.stop)
        skipped = [Skipped(**skip) for skip in row["skipped"]]
        skipped += [Skipped(entries[number].image_id, reason) for number, reason in row.get(LEFT_OUT, {}).items()]
        known = {skip.image_id for skip in skipped}
        usable = [number for number, entry in enumerate(entries) if entry.image_id not in known]
        at_once = self.job.config.images.read_concurrency
        for start in range(0, len(usable), at_once):
            skipped += self.label(entries, maps, usable[start : start + at_once], keep=keep)
        return skipped

    def label(self, entries: list[ManifestRow], maps: UnitMaps, numbers: list[int], *, keep: bool) -> list[Skipped]:
        """Makes some images' pseudo-labels; returns those that could not be read."""
        config, ignore = self.job.config, ignore_value(self.job.num_classes)
        chosen = [entries[number] for number in numbers]
        saliencies = read_saliencies(chosen, config)
        images = read_many(
            [entry.uri for entry in chosen],
            lambda uri: read_image(uri, config.images.max_pixels),
            config.images.read_concurrency,
        )
        skipped = []
        for number, entry, image, saliency in zip(numbers, chosen, images, saliencies, strict=True):
            if isinstance(image, BadImage):
                skipped.append(Skipped(entry.image_id, image.reason))
            elif isinstance(saliency, BadImage):
                skipped.append(Skipped(entry.image_id, f"saliency map: {saliency.reason}"))
            else:
                labels: np.ndarray = Evidence.of(maps, number, saliency).pseudo_labels(image, config, ignore)
                png = encode_label_png(labels)
                if keep:
                    pseudo_label_location(self.job.run, entry.image_id).write_bytes(png)
        return skipped


if __name__ == "__main__":
    from jobs.make_pseudo_labels import main as imported_main  # so that workers find these classes by import

    run_main(imported_main)
