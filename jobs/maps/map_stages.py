"""The stages that make a unit's maps: read and decode, compute in an actor (``jobs.maps.map_maker``), write.

The workers that read and write import this module and none of torch: an import of torch takes seconds of a core in each
process.
"""

import time
from dataclasses import dataclass

import numpy as np

from cluster.fanout import Payload
from cluster.quarantine import Compute
from jobs.maps.unit_images import read_unit_images
from jobs.run.directory import Run
from jobs.steps.unit_rows import earlier_part, finish_unit
from storage.steps import Step


@dataclass(frozen=True)
class MapStages:
    """Everything that a worker needs; its methods are stages of the fan-out."""

    run: Run
    grid: tuple[int, int]
    num_slots: int
    device: str

    @property
    def step(self) -> Step:
        return self.run.step("maps")

    def read(self, row: Payload) -> Payload:
        """Stage 1: fetches a unit's images concurrently into one tensor; unusable images are zeros, with a reason."""
        started = time.monotonic()
        self.step.require_here()
        earlier, kept = earlier_part(
            self.run, self.step, row, lambda receipt: self.run.maps(start_id=row["start_id"]).read_earlier(receipt)
        )
        found = read_unit_images(self.run, row, earlier.stop - earlier.start if earlier else 0)
        classes = np.full((len(found.entries), self.num_slots), -1, np.int16)
        for number, entry in enumerate(found.entries):
            if found.is_present[number]:
                classes[number, : len(entry.labels)] = entry.labels
        predicts = self.run.config.maps.classes == "predicted"
        is_negative = np.array([entry.negative for entry in found.entries], bool)  # known to show none of the classes
        return {
            **row,
            "images": found.images,
            "classes": classes,
            "image_ids": [entry.image_id for entry in found.entries],
            "to_predict": found.is_present & ~is_negative & (classes[:, 0] < 0) & predicts,
            "kept": kept,
            "skipped": (*(earlier.skipped if earlier else ()), *found.skipped),
            "seconds": time.monotonic() - started,
        }

    def make_compute(self) -> Compute:
        """Stage 2, made in an actor."""
        from jobs.maps.map_maker import MapMaker  # only actors import torch

        return MapMaker(self)

    def trial(self, compute: Compute, row: Payload) -> None:
        """Everything except writing, for the quarantine."""
        compute(self.read(row))

    def write(self, maps: Payload) -> Payload:
        """Stage 3: writes the unit's shard, then its receipt."""
        started = time.monotonic()
        store = self.run.maps("r+", maps["start_id"])
        values = {name: maps[name] for name in ("max", "mean", "score", "classes")}
        if kept := maps["kept"]:
            for name, array in values.items():
                values[name] = np.concatenate(
                    [getattr(kept, name), array[len(kept.classes) :]], dtype=array.dtype, casting="same_kind"
                )
        objects = store.write_unit(maps["unit"], **values)
        return finish_unit(self.step, maps, maps["skipped"], maps["seconds"] + time.monotonic() - started, objects)
