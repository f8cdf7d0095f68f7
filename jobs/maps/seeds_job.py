"""The step `seeds`: one label map per image at map resolution, made from its maps and its saliency map."""

import time
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from cluster.connect import Connection
from cluster.fanout import Payload, Stages
from ficklenet.geometry import GridGeometry
from jobs.maps.evidence import Evidence, read_saliencies
from jobs.maps.stored_geometry import geometry_attributes, stored_geometry
from jobs.run.directory import SEEDS, Run
from jobs.run.fingerprints import step_fingerprint
from jobs.run.selection import unused_saliency
from jobs.steps.finished import require_finished
from jobs.steps.unit_driver import UnitStepJob
from jobs.steps.unit_dry_run import CostEstimate
from jobs.steps.unit_rows import finish_unit
from storage.errors import BadImage
from storage.label_values import ignore_value
from storage.seed_store import SeedStore
from storage.steps import Skipped

ALGORITHM_VERSION = 1  # raise it when code between the maps and the stored seeds changes results


def make_job(run: Run, connection: Connection) -> UnitStepJob:
    """The seeds of all images that have maps.

    Raises:
        NotYet: the maps are incomplete.
        ValueError: the maps were made with settings that differ from this launch.
    """
    manifest, config = run.manifest(), run.config
    source = run.config.seeds.maps
    run = run.reading(source)  # from here on, all reads are of this start of the maps
    maps = require_finished(run, source, "aggregate_seeds")
    store = run.maps(step=source)
    remedy = run.step_command("seeds", "--set", "seeds.background_cue=saliency", "--restart", "seeds")
    grid, geometry = store.grid, stored_geometry(store)
    return UnitStepJob(
        title="seeds",
        step=run.step("seeds"),
        fingerprint=step_fingerprint(
            run,
            "seeds",
            algorithm_version=ALGORITHM_VERSION,
            upstream=[source],
            images=config.images.limits,
        ),
        units=maps.units,
        stages=Stages(partial(SeedMaker, run, grid, geometry)),
        command=run.step_command("seeds"),
        create=lambda data: SeedStore.create(
            data / SEEDS,
            manifest.num_images,
            manifest.num_classes,
            grid,
            config.unit_size,
            {"class_names": list(manifest.class_names), **geometry_attributes(geometry)},
        ),
        skipped=maps.skipped,
        cost=CostEstimate(seconds=0.003, bytes=grid[0] * grid[1]),
        note=f"{unused}: '{remedy}'." if (unused := unused_saliency(manifest, config)) else "",
    )


@dataclass
class SeedMaker:
    """Does all work of a unit in one actor: aggregation takes 1 ms per image, which is less than sending the maps."""

    run: Run
    grid: tuple[int, int]
    geometry: GridGeometry

    def __post_init__(self) -> None:
        torch.set_num_threads(1)  # the pool has an actor per CPU
        self.run.step("seeds").require_here()

    def __call__(self, row: Payload) -> Payload:
        started, run, unit = time.monotonic(), self.run, row["unit"]
        manifest = run.manifest()
        entries, maps = manifest.rows(unit.start, unit.stop), run.maps(step=run.config.seeds.maps).read_unit(unit)
        skipped = list(row["skipped"])  # their maps have no slots, so all their seeds get the ignore value
        known = {skip.image_id for skip in skipped}
        ignore = ignore_value(manifest.num_classes)
        labels = np.full((unit.num_rows, *self.grid), ignore)
        for number, saliency in enumerate(read_saliencies(entries, run.config, self.geometry, self.grid)):
            if entries[number].negative and entries[number].image_id not in known:
                labels[number] = 0  # it shows none of the classes, so all of it is background
            elif not isinstance(saliency, BadImage):
                labels[number] = Evidence.of(maps, number, self.geometry, saliency).seeds(run.config, ignore)
            elif entries[number].image_id not in known:
                skipped.append(Skipped(entries[number].image_id, f"saliency map: {saliency.reason}"))
        objects = run.seeds("r+", row["start_id"]).write_unit(unit, labels)
        return finish_unit(run.step("seeds"), row, skipped, time.monotonic() - started, objects)
