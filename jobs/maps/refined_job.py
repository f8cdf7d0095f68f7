"""The step `refined`: maps that the network of cells makes from an image's features, stored in the format of the maps.

Each cell gets probabilities of the background and of the classes that its image has in the maps. A walk spreads them to
cells that look alike. Then the CRF moves their borders to the edges of the image.
"""

import time
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from cluster.connect import Connection
from cluster.fanout import Payload, Stages
from ficklenet.cell_classifier import cell_features, cell_probabilities
from ficklenet.crf import LIGHT_AT_MAP_SIZE, refine, require_pydensecrf
from ficklenet.propagation import Likeness, transitions, walk
from jobs.maps.backbone_passes import BackbonePasses
from jobs.maps.cell_stages import CellStages
from jobs.maps.cells_job import read_network
from jobs.maps.unit_images import read_unit_images
from jobs.run.directory import CELL_RECORD, MAPS, Run
from jobs.run.fingerprints import step_fingerprint
from jobs.steps.compute import precision_name, resolved_device
from jobs.steps.finished import require_finished
from jobs.steps.networks import require_network
from jobs.steps.unit_driver import UnitStepJob
from jobs.steps.unit_rows import earlier_part, finish_unit
from storage.errors import NotYet
from storage.map_store import MapStore, UnitMaps
from storage.steps import Skipped

ALGORITHM_VERSION = 1  # raise it when code between images and the stored refined maps changes results


def make_job(run: Run, connection: Connection) -> UnitStepJob:
    """The refined maps of all images that have maps.

    Raises:
        NotYet: the maps or the cells are incomplete.
        ValueError: they were made with settings that differ from this launch.
    """
    manifest, config = run.manifest(), run.config
    if config.refined.refine:
        require_pydensecrf()
    run = run.reading("maps", "cells")  # from here on, all reads are of these starts
    require_network(run, "classifier", "refine_maps")
    maps, store = require_finished(run, "maps", "refine_maps"), run.maps()
    require_finished(run, "cells", "refine_maps")
    if not (run.data("cells") / CELL_RECORD).exists():
        raise NotYet(f"refine_maps: the network of cells is not trained yet. Run '{run.step_command('cells')}' first.")
    device = resolved_device(config.maps.device, connection, "maps.device")
    passes = BackbonePasses.of(config.maps, device)
    return UnitStepJob(
        title="refined",
        step=run.step("refined"),
        fingerprint=step_fingerprint(
            run,
            "refined",
            algorithm_version=ALGORITHM_VERSION,
            upstream=["classifier", "maps", "cells"],
            images=config.images.limits,
            device=device,
            precision=precision_name(passes.precision),
            batch_size=passes.batch_size,
        ),
        units=maps.units,
        stages=Stages(partial(Refiner, run, device)),
        command=run.step_command("refined"),
        device=device,
        create=lambda data: MapStore.create(
            data / MAPS, manifest.num_images, store.num_slots, store.grid, config.unit_size, _attributes(store)
        ),
        skipped=maps.skipped,
        trial=Refiner.attempt,
    )


def _attributes(store: MapStore) -> dict[str, object]:
    """The attributes of the maps' store, which the store of the refined maps also gets."""
    return {key: value for key, value in store.attributes.items() if key not in ("num_images", "unit_size")}


@dataclass
class Refiner:
    """Does all work of a unit in one actor: the backbone, the walk and the CRF take most of the time."""

    run: Run
    device: str

    def __post_init__(self) -> None:
        self.run.step("refined").require_here()
        self.stages = CellStages(self.run, self.device)
        self.network = read_network(self.run)

    def __call__(self, row: Payload) -> Payload:
        started = time.monotonic()
        skipped, maps = self.refined(row)
        store = self.run.maps("r+", row["start_id"], step="refined")
        objects = store.write_unit(row["unit"], maps.max, maps.mean, maps.score, maps.classes)
        return finish_unit(self.run.step("refined"), row, skipped, time.monotonic() - started, objects)

    def attempt(self, row: Payload) -> None:
        """Everything except storing, for the quarantine."""
        self.refined(row)

    def refined(self, row: Payload) -> tuple[tuple[Skipped, ...], UnitMaps]:
        """The unreadable images, which have no maps, and the unit's maps."""
        earlier, kept = earlier_part(
            self.run,
            self.run.step("refined"),
            row,
            lambda receipt: self.run.maps(start_id=row["start_id"], step="refined").read_earlier(receipt),
        )
        found = read_unit_images(self.run, row, earlier.stop - earlier.start if earlier else 0)
        maps = self.run.maps().read_unit(row["unit"])
        classes = np.where(found.is_present[:, None], maps.classes, -1)
        is_real = classes >= 0
        refined = np.full(maps.max.shape, np.nan, np.float32)
        for number, stages in self.stages.of(found.images, is_real[:, 0]):  # slots are filled from the first on
            colours = self._colours(found.images[number])
            refined[number][is_real[number]] = self.refine(stages, colours, classes[number][is_real[number]])
        score = np.where(is_real, maps.score, np.nan)
        if kept and earlier:
            num_kept = len(kept.classes)
            classes[:num_kept], refined[:num_kept], score[:num_kept] = kept.classes, kept.max, kept.score
        return (*(earlier.skipped if earlier else ()), *found.skipped), UnitMaps(classes, refined, refined, score)

    def refine(self, stages: list[Tensor], colours_HWC: np.ndarray, classes_S: np.ndarray) -> np.ndarray:
        """An image's maps (S, H, W): probabilities; with that of the background they sum to 1."""
        settings = self.run.config.refined
        probabilities = cell_probabilities(self.network, cell_features(stages), classes_S)
        if settings.walk_steps:
            affinities = transitions([stage.numpy() for stage in stages], colours_HWC, Likeness())
            probabilities = walk(affinities, probabilities, settings.walk_steps)
        if settings.refine:
            probabilities = refine(probabilities, colours_HWC, LIGHT_AT_MAP_SIZE)
        return probabilities[1:]

    def _colours(self, image: np.ndarray) -> np.ndarray:
        """The pixels at the positions of the cells: uint8 (H, W, 3)."""
        pixels = self.stages.spec.geometry.at_cells(torch.from_numpy(image)[None])[0]
        return pixels.permute(1, 2, 0).contiguous().numpy()
