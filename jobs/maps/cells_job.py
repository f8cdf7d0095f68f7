"""The step `cells`: some cells of each training image, labelled by its maps, and the network trained on them.

Each unit stores cells. When no unit is missing, the driver trains the network, which takes a minute of one core for
thousands of images.
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from cluster.connect import Connection
from cluster.fanout import Payload, Stages
from cluster.words import plural
from ficklenet.batches import keyed_generator
from ficklenet.cell_classifier import (
    CellSpec,
    LabelledCells,
    cell_features,
    choose_cells,
    learn_cells,
    pack_cells,
    unpack_cells,
)
from ficklenet.threads import one_thread
from jobs.maps.backbone_passes import BackbonePasses
from jobs.maps.cell_stages import CellStages, num_channels
from jobs.maps.evidence import Evidence, read_saliencies
from jobs.maps.unit_images import read_unit_images
from jobs.run.config_keys import Config
from jobs.run.directory import CELL_NETWORK, CELL_RECORD, CELLS, Run
from jobs.run.fingerprints import step_fingerprint
from jobs.run.steps import BY_NAME
from jobs.steps.compute import precision_name, resolved_device
from jobs.steps.finished import require_finished
from jobs.steps.launch import UnitPlan
from jobs.steps.networks import require_network
from jobs.steps.unit_driver import UnitStepJob
from jobs.steps.unit_rows import earlier_part, finish_unit
from storage.cell_store import CellStore
from storage.errors import BadImage
from storage.label_values import ignore_value
from storage.location import Location
from storage.manifest import Manifest, ManifestRow
from storage.records import read_json, seal
from storage.steps import ADDED, Skipped
from storage.units import Unit

ALGORITHM_VERSION = 1  # raise it when code between images and maps and the stored cells and network changes results


def make_job(run: Run, connection: Connection) -> UnitStepJob:
    """The cells of the training images that have maps.

    Raises:
        NotYet: the classifier is not trained, or the maps are incomplete.
        ValueError: they were made with settings that differ from this launch, or there is no training image.
    """
    manifest, config = run.manifest(), run.config
    run = run.reading("maps")  # from here on, all reads are of this start of the maps
    classifier = require_network(run, "classifier", "learn_cells")
    maps, store = require_finished(run, "maps", "learn_cells"), run.maps()
    device = resolved_device(config.maps.device, connection, "maps.device")
    passes = BackbonePasses.of(config.maps, device)
    share = _share(manifest, config)
    return UnitStepJob(
        title="cells",
        step=run.step("cells"),
        fingerprint=step_fingerprint(
            run,
            "cells",
            algorithm_version=ALGORITHM_VERSION,
            upstream=["classifier", "maps"],
            seed=config.seed,
            data=config.data.result_settings(),
            images=config.images.limits,
            device=device,
            precision=precision_name(passes.precision),
            batch_size=passes.batch_size,
        ),
        units=maps.units,
        stages=Stages(partial(CellMaker, run, share, device)),
        command=run.step_command("cells"),
        device=device,
        create=lambda data: CellStore.create(
            data / CELLS,
            manifest.num_images,
            manifest.num_classes,
            store.num_slots,
            (config.cells.cells_per_image, num_channels(classifier.spec)),
            config.unit_size,
        ),
        skipped=maps.skipped,
        trial=CellMaker.attempt,
        finish=partial(learn, run, maps.units),
    )


def is_learned(entry: ManifestRow, config: Config) -> bool:
    """Whether an image is in a training split and has labels or is negative."""
    chosen, validation = config.data.train_splits, config.data.val_splits
    is_of_training = entry.split not in validation and (not chosen or entry.split in chosen)
    return is_of_training and (bool(entry.labels) or entry.negative)


def _share(manifest: Manifest, config: Config) -> float:
    """The share of the possible images whose cells are used.

    Raises:
        ValueError: there are no possible images.
    """
    num_images = sum(is_learned(entry, config) for entry in manifest.iter_rows())
    if num_images == 0:
        raise ValueError("learn_cells: no labelled image in the training splits. Set data.train_splits.")
    return min(1.0, config.cells.max_images / num_images)


@dataclass
class CellMaker:
    """Does all work of a unit in one actor: the backbone takes most of the time."""

    run: Run
    share: float
    device: str

    def __post_init__(self) -> None:
        self.run.step("cells").require_here()
        self.stages = CellStages(self.run, self.device)
        cells = self.run.config.cells
        rule = {"theta": cells.theta, "evidence_threshold": cells.evidence_threshold}
        self.config = self.run.config.model_copy(update={"seeds": self.run.config.seeds.model_copy(update=rule)})

    def __call__(self, row: Payload) -> Payload:
        started = time.monotonic()
        skipped, features, labels, classes = self.cells_of(row)
        objects = self.run.cells("r+", row["start_id"]).write_unit(row["unit"], features, labels, classes)
        return finish_unit(self.run.step("cells"), row, skipped, time.monotonic() - started, objects)

    def attempt(self, row: Payload) -> None:
        """Everything except storing, for the quarantine."""
        self.cells_of(row)

    def cells_of(self, row: Payload) -> tuple[list[Skipped], np.ndarray, np.ndarray, np.ndarray]:
        """The unreadable images, which have no cells, and the features, labels and classes to store."""
        config, spec, unit = self.config, self.stages.spec, row["unit"]
        num_cells, ignore = config.cells.cells_per_image, ignore_value(len(spec.class_names))
        earlier, kept = earlier_part(
            self.run,
            self.run.step("cells"),
            row,
            lambda receipt: self.run.cells(start_id=row["start_id"]).read_earlier(receipt),
        )
        found = read_unit_images(self.run, row, earlier.stop - earlier.start if earlier else 0, self.is_chosen)
        maps, skipped = self.run.maps().read_unit(unit), [*(earlier.skipped if earlier else ()), *found.skipped]
        saliencies = read_saliencies(found.entries, config, spec.geometry, spec.grid)
        features = np.zeros((unit.num_rows, num_cells, num_channels(spec)), np.float16)
        labels = np.full((unit.num_rows, num_cells), ignore)
        for number, stages in self.stages.of(found.images, found.is_present):
            entry, saliency = found.entries[number], saliencies[number]
            if isinstance(saliency, BadImage):
                skipped.append(Skipped(entry.image_id, f"saliency map: {saliency.reason}"))
                continue
            evidence = Evidence.of(maps, number, spec.geometry, saliency)
            seeds = np.zeros(spec.grid, int) if entry.negative else evidence.seeds(config, ignore)
            generator = keyed_generator(config.seed, "cells", 0, entry.image_id)
            cells = choose_cells(seeds, ignore, num_cells, generator)
            features[number, : len(cells)] = cell_features(stages).flatten(1)[:, cells].T
            labels[number, : len(cells)] = seeds.ravel()[cells]
        if kept:
            features[: len(kept[0])], labels[: len(kept[1])] = kept[:2]
        return skipped, features, labels, maps.classes

    def is_chosen(self, entry: ManifestRow) -> bool:
        """Whether the cells of an image are used; which of the possible images are, depends only on their ids."""
        return is_learned(entry, self.config) and self._draw(entry) < self.share

    def _draw(self, entry: ManifestRow) -> float:
        return keyed_generator(self.run.config.seed, "cells of", 0, entry.image_id).random()


def learn(run: Run, units: Sequence[Unit], plan: UnitPlan) -> None:
    """Trains the network on the stored cells and writes it, unless units of another shard are missing.

    Raises:
        ValueError: the cells have fewer than two labels.
    """
    if plan.step.missing_units(units):
        print("cells: the launch that finishes the last shard trains the network.", flush=True)
        return
    folder = run.data("cells", plan.start_id)
    if (folder / CELL_RECORD).exists():  # refined maps may be made with it already; those of added images must match
        command = run.step_command("cells", "--restart", "cells")
        print(f"cells: already learned; '{command}' learns them again, of all images.", flush=True)
        return
    settings = run.config.cells
    cells = stored_cells(run, units, plan.start_id)
    names = ("background", *run.manifest().class_names)
    seen = cells.labels_N.unique().tolist()
    if len(seen) < 2:
        raise ValueError(
            f"learn_cells: {'all cells are ' + names[seen[0]] if seen else 'no cell has a label'}, so there is nothing "
            "to tell apart. Look at the maps, and set cells.theta and cells.evidence_threshold between their values."
        )
    spec = CellSpec(cells.features_NK.shape[1], len(names), settings.hidden)
    with one_thread():
        network = learn_cells(
            spec,
            cells,
            num_rounds=settings.rounds,
            num_epochs=settings.epochs,
            learning_rate=settings.learning_rate,
            seed=run.config.seed,
        )
    keep_network(folder, pack_cells(network, spec), run.manifest().part_hashes(BY_NAME["cells"].columns)[1:])
    print(f"cells: learned {plural(len(cells.labels_N), 'cell')} of {plural(len(seen), 'label')}.", flush=True)


def keep_network(folder: Location, data: bytes, added: Sequence[str]) -> None:
    """Writes the network, then its record, which says that it is complete.

    Args:
        added: the hashes of the groups of added images that it has learned from; ``step_id`` reads them.
    """
    (folder / CELL_NETWORK).write_bytes(data)
    (folder / CELL_RECORD).write_bytes(seal({"sha256": hashlib.sha256(data).hexdigest(), ADDED: [*added]}))


def read_network(run: Run) -> nn.Sequential:
    """The learned network.

    Raises:
        ValueError: its file has changed since it was written.
    """
    folder = run.data("cells")
    remedy = f"Run '{run.step_command('cells', '--restart', 'cells')}'."
    record = read_json(folder / CELL_RECORD, "the record of the network of cells", remedy)
    data = (folder / CELL_NETWORK).read_bytes()
    if hashlib.sha256(data).hexdigest() != record.get("sha256"):
        raise ValueError(f"{folder / CELL_NETWORK}: its bytes have changed since it was written. {remedy}")
    return unpack_cells(data)


def stored_cells(run: Run, units: Sequence[Unit], start_id: str) -> LabelledCells:
    """All stored cells with a label."""
    store, ignore = run.cells(start_id=start_id), ignore_value(run.manifest().num_classes)
    features, labels, present = [], [], []
    for unit in units:
        found = store.read_unit(unit)
        for cells_NK, labels_N, classes_S in zip(*found, strict=True):
            is_used = labels_N != ignore
            features.append(cells_NK[is_used])
            labels.append(labels_N[is_used].astype(np.int64))
            present.append(np.repeat(_present(classes_S, store.num_classes)[None], is_used.sum(), axis=0))
    return LabelledCells(*(torch.from_numpy(np.concatenate(part)) for part in (features, labels, present)))


def _present(classes_S: np.ndarray, num_classes: int) -> np.ndarray:
    """The labels among which a cell is classified: the background and the classes of its image.

    If the image has no class, they are all labels. Such an image is known to show no class: its cells are background.
    """
    classes = classes_S[classes_S >= 0]
    present_L = np.zeros(num_classes + 1, bool)
    present_L[[0, *(classes + 1)]] = True
    return present_L if len(classes) else np.ones(num_classes + 1, bool)
