"""Makes seeds from finished maps: a label map per image at map resolution, with background and unknown cells.

Reads <run>/maps and the manifest's saliency maps, writes <run>/seeds. The same command continues an interrupted
run. Another threshold needs no new maps: --restart seeds --set seeds.theta=0.5.
"""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from cluster.connect import Connection
from cluster.fanout import Payload, Stages
from jobs.command_line import job_parser, run_main
from jobs.compute import connected, run_stages
from jobs.config import Config
from jobs.dry_run import Rough, print_unit_step
from jobs.evidence import Evidence, read_saliencies
from jobs.finished_maps import FinishedMaps, label_settings, maps_location, require_maps, rows_of
from jobs.run import Run, open_run, record_run
from jobs.unit_steps import Launch, Shard, book_units, finish_unit, unit_of
from storage.errors import BadImage
from storage.label_values import ignore_value
from storage.location import Location
from storage.manifest import Manifest
from storage.map_store import MapStore
from storage.seed_store import SeedStore
from storage.steps import Skipped, Step
from storage.units import parse_shard

ALGORITHM_VERSION = 1  # of all that happens between maps and stored seeds
MANIFEST_COLUMNS = ("image_id", "saliency_uri")

EXAMPLES = """examples:
  python jobs/aggregate_seeds.py --run s3://bucket/voc
  python jobs/aggregate_seeds.py --run s3://bucket/voc --set seeds.theta=0.5 --restart seeds
"""


def main(arguments: list[str]) -> None:
    parser = job_parser("aggregate_seeds", f"{__doc__}\n{EXAMPLES}")
    parser.add_argument("--shard", metavar="I/N", default="1/1", help="only every N-th unit, from the I-th on")
    parser.add_argument("--restart", choices=["seeds"], help="delete this step's results and start it anew")
    given = parser.parse_args(arguments)
    run = open_run(given.run, given.config, given.set)
    shard = parse_shard(given.shard)
    require_maps(run, run.manifest(), "aggregate_seeds")  # before a Ray is started
    with connected(run.config.cluster) as connection:
        aggregate_run(run, connection, shard, restart=given.restart == "seeds", dry_run=given.dry_run)


def aggregate_run(
    run: Run, connection: Connection, shard: Shard = (1, 1), *, restart: bool = False, dry_run: bool = False
) -> None:
    """Makes the missing units of a run's seeds, within this launch's shard.

    Args:
        connection: where to work.
        shard: (i, n): every n-th unit from the i-th on.
        restart: delete what the step has and begin anew.
        dry_run: say what would be done, and do nothing.
    """
    # 1. Maps first
    manifest = run.manifest()
    maps = require_maps(run, manifest, "aggregate_seeds")
    job = SeedsJob(run.uri, run.config, manifest.num_classes, maps.grid)

    # 2. The step and its array are made, or joined, before any worker writes
    launch = Launch(
        job.step,
        job.fingerprint(manifest, maps),
        run.command("aggregate_seeds"),
        maps.units,
        shard,
        restart,
    )
    if dry_run:
        print_unit_step(
            "seeds", launch, run.config.cluster, connection, "cpu", Rough(bytes=maps.grid[0] * maps.grid[1])
        )
        return
    plan = launch.begin()
    names = {"class_names": list(manifest.class_names)}
    SeedStore.create(
        job.store_location, manifest.num_images, manifest.num_classes, maps.grid, run.config.unit_size, names
    )
    record_run(run, "seeds")

    # 3. The missing units
    stages = Stages(partial(SeedMaker, job))
    results = run_stages(rows_of(plan, maps.receipts), stages, run.config.cluster, connection, "cpu")
    book_units("seeds", plan, results, run.config.images.max_skipped_fraction)


@dataclass(frozen=True)
class SeedsJob:
    """What every worker needs to know."""

    run_uri: str
    config: Config
    num_classes: int
    grid: tuple[int, int]

    @property
    def run(self) -> Run:
        return Run(Location(self.run_uri), self.config)

    @property
    def step(self) -> Step:
        return Step(self.run.location / "seeds")

    @property
    def store_location(self) -> Location:
        return self.run.location / "seeds" / "seeds.zarr"

    def fingerprint(self, manifest: Manifest, maps: FinishedMaps) -> dict[str, Any]:
        """Everything that changes the seeds."""
        return {
            "algorithm_version": ALGORITHM_VERSION,
            "manifest": manifest.column_hash(MANIFEST_COLUMNS),
            "max_pixels": self.config.images.max_pixels,
            "seeds": label_settings(self.config, "seeds"),
            "maps": maps.fingerprint,
        }


class SeedMaker:
    """All of a unit, in an actor: aggregation takes a millisecond an image, less than handing maps on would."""

    def __init__(self, job: SeedsJob) -> None:
        torch.set_num_threads(1)  # the pool has an actor per CPU
        job.step.require_here()
        self.job = job

    def __call__(self, row: Payload) -> Payload:
        started = time.monotonic()
        run, unit = self.job.run, unit_of(row)
        entries = run.manifest().rows(unit.start, unit.stop)
        maps = MapStore.open(maps_location(run)).read_unit(unit)
        skipped = [Skipped(**skip) for skip in row["skipped"]]  # without slots in the maps, hence ignored below
        known = {skip.image_id for skip in skipped}
        ignore = ignore_value(self.job.num_classes)
        labels = np.full((unit.num_rows, *self.job.grid), ignore)
        for number, saliency in enumerate(read_saliencies(entries, run.config, self.job.grid)):
            if not isinstance(saliency, BadImage):
                labels[number] = Evidence.of(maps, number, saliency).seeds(run.config, ignore)
            elif entries[number].image_id not in known:
                skipped.append(Skipped(entries[number].image_id, f"saliency map: {saliency.reason}"))
        SeedStore.open(self.job.store_location, "r+").write_unit(unit, labels)
        return finish_unit(self.job.step, row, skipped, time.monotonic() - started)


if __name__ == "__main__":
    from jobs.aggregate_seeds import main as imported_main  # so that workers find these classes by import

    run_main(imported_main)
