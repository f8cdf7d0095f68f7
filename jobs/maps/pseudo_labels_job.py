"""The step `pseudo_labels`: densified seeds at image size, refined by the dense CRF, as one PNG per image."""

import time
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from cluster.connect import Connection
from cluster.fanout import Payload, Stages
from ficklenet.crf import require_pydensecrf
from jobs.maps.evidence import Evidence, read_saliencies
from jobs.maps.stored_geometry import stored_geometry
from jobs.run.directory import Run
from jobs.run.fingerprints import step_fingerprint
from jobs.steps.finished import require_finished
from jobs.steps.unit_driver import UnitStepJob
from jobs.steps.unit_rows import earlier_receipt, finish_unit, known_problems
from storage.errors import BadImage
from storage.images import read_image, read_many
from storage.label_folder import LabelFolder
from storage.label_values import ignore_value
from storage.manifest import ManifestRow
from storage.map_store import MapStore, UnitMaps
from storage.steps import Skipped

ALGORITHM_VERSION = 1  # raise it when code between the maps and the stored pseudo-labels changes results


def make_job(run: Run, connection: Connection) -> UnitStepJob:
    """The pseudo-labels of all images that have maps.

    Raises:
        NotYet: the maps are incomplete.
        ValueError: the maps were made with settings that differ from this launch.
    """
    if run.config.pseudo_labels.refine:
        require_pydensecrf()
    source = run.config.seeds.maps
    run = run.reading(source)  # from here on, all reads are of this start of the maps
    maps = require_finished(run, source, "make_pseudo_labels")
    return UnitStepJob(
        title="pseudo-labels",
        step=run.step("pseudo_labels"),
        fingerprint=step_fingerprint(
            run,
            "pseudo_labels",
            algorithm_version=ALGORITHM_VERSION,
            upstream=[source],
            images=run.config.images.limits,
        ),
        units=maps.units,
        stages=Stages(partial(PseudoLabelMaker, run)),
        command=run.step_command("pseudo_labels"),
        skipped=maps.skipped,
        trial=PseudoLabelMaker.attempt,
    )


@dataclass
class PseudoLabelMaker:
    """Does all work of a unit in one actor: the CRF takes most of the time, and few images are in memory at once."""

    run: Run

    def __post_init__(self) -> None:
        torch.set_num_threads(1)  # the pool has an actor per CPU
        self.run.step("pseudo_labels").require_here()
        self.geometry = stored_geometry(self.maps())

    def maps(self) -> MapStore:
        """The maps from which the labels are made."""
        return self.run.maps(step=self.run.config.seeds.maps)

    def __call__(self, row: Payload) -> Payload:
        started = time.monotonic()
        folder = self.run.labels("pseudo_labels", start_id=row["start_id"])
        skipped, objects = self.label_unit(row, folder)
        return finish_unit(self.run.step("pseudo_labels"), row, skipped, time.monotonic() - started, objects)

    def attempt(self, row: Payload) -> None:
        """Everything except storing, for the quarantine."""
        self.label_unit(row, None)

    def label_unit(self, row: Payload, folder: LabelFolder | None) -> tuple[list[Skipped], dict[str, str]]:
        """Makes a unit's pseudo-labels, and stores them if a folder is given.

        Returns:
            The images without pseudo-labels, and the checksums of the stored objects.
        """
        unit = row["unit"]
        entries, maps = self.run.manifest().rows(unit.start, unit.stop), self.maps().read_unit(unit)
        earlier = earlier_receipt(self.run, self.run.step("pseudo_labels"), row)
        num_kept = earlier.stop - earlier.start if earlier else 0  # their files and skips stay
        problems = known_problems(row, entries)
        skipped = [*(earlier.skipped if earlier else ())]
        skipped += [Skipped(entries[number].image_id, why) for number, why in problems.items() if number >= num_kept]
        usable = [number for number in range(num_kept, len(entries)) if number not in problems]
        at_once = self.run.config.images.read_concurrency
        objects = dict(earlier.objects) if earlier else {}
        for start in range(0, len(usable), at_once):
            unreadable, stored = self.label(entries, maps, usable[start : start + at_once], folder)
            skipped += unreadable
            objects |= stored
        return skipped, objects

    def label(
        self, entries: list[ManifestRow], maps: UnitMaps, numbers: list[int], folder: LabelFolder | None
    ) -> tuple[list[Skipped], dict[str, str]]:
        """Makes the pseudo-labels of some images; returns unreadable images and checksums, as `label_unit` does."""
        config, ignore = self.run.config, ignore_value(self.run.manifest().num_classes)
        chosen = [entries[number] for number in numbers]
        saliencies = read_saliencies(chosen, config, self.geometry)
        images = read_many(
            [entry.uri for entry in chosen],
            lambda uri: read_image(uri, **config.images.limits),
            config.images.read_concurrency,
        )
        skipped: list[Skipped] = []
        objects: dict[str, str] = {}
        for number, entry, image, saliency in zip(numbers, chosen, images, saliencies, strict=True):
            if isinstance(image, BadImage):
                skipped.append(Skipped(entry.image_id, image.reason))
            elif isinstance(saliency, BadImage):
                skipped.append(Skipped(entry.image_id, f"saliency map: {saliency.reason}"))
            else:
                evidence = Evidence.of(maps, number, self.geometry, saliency)
                is_background = entry.negative  # it shows none of the classes
                labels = (
                    np.zeros(image.shape[:2], int) if is_background else evidence.pseudo_labels(image, config, ignore)
                )
                if folder:
                    objects |= folder.write(entry.image_id, labels)
        return skipped, objects
