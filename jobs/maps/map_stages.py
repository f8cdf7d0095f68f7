"""The stages that a unit's maps pass through: read and decode, compute in an actor, write."""

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cluster.fanout import Payload
from cluster.quarantine import Compute
from ficklenet.classifier import predicted_classes
from ficklenet.localizer import Normalization, localize
from ficklenet.masks import mask_key
from ficklenet.transforms import normalize, resize_square
from jobs.run.directory import Run
from jobs.steps.compute import resolved_precision
from jobs.steps.networks import load_classifier
from jobs.steps.unit_rows import ROW_KEYS, earlier_receipt, finish_unit, known_problems
from storage.errors import BadImage, Damaged
from storage.images import read_image, read_many
from storage.map_store import UnitMaps
from storage.receipts import Receipt
from storage.steps import Skipped, Step

CPU_BATCH, GPU_BATCH = 1, 32  # images per backbone pass


@dataclass(frozen=True)
class MapStages:
    """What every worker needs to know; its methods are stages of the fan-out."""

    run: Run
    grid: tuple[int, int]
    num_slots: int
    device: str

    @property
    def step(self) -> Step:
        return self.run.step("maps")

    @property
    def batch_size(self) -> int:
        return self.run.config.maps.batch_size or (GPU_BATCH if self.device == "cuda" else CPU_BATCH)

    @property
    def precision(self) -> torch.dtype:
        return resolved_precision(self.run.config.maps.precision, self.device)

    def read(self, row: Payload) -> Payload:
        """Stage 1: a unit's images, fetched concurrently, as one tensor; unusable ones stay zero, with a reason."""
        started = time.monotonic()
        self.step.require_here()
        config, unit = self.run.config, row["unit"]
        entries = self.run.manifest().rows(unit.start, unit.stop)
        earlier, kept = self.earlier(row)
        num_kept = earlier.stop - earlier.start if earlier else 0
        size = config.images.input_size

        def read_input(uri: str) -> np.ndarray:
            return resize_square(read_image(uri, **config.images.limits, target_side=size), size)

        images = np.zeros((len(entries), 3, size, size), np.uint8)
        is_present = np.zeros(len(entries), bool)
        problems = {number: why for number, why in known_problems(row, entries).items() if number >= num_kept}
        skipped = [*(earlier.skipped if earlier else ())]
        skipped += [Skipped(entries[number].image_id, problem) for number, problem in problems.items()]
        usable = [number for number in range(num_kept, len(entries)) if number not in problems]
        uris = [entries[number].uri for number in usable]
        for number, found in zip(usable, read_many(uris, read_input, config.images.read_concurrency), strict=True):
            if isinstance(found, BadImage):
                skipped.append(Skipped(entries[number].image_id, found.reason))
            else:
                images[number], is_present[number] = found, True

        classes = np.full((len(entries), self.num_slots), -1, np.int16)
        for number, entry in enumerate(entries):
            if is_present[number]:
                classes[number, : len(entry.labels)] = entry.labels
        predicts = config.maps.classes == "predicted"
        is_negative = np.array([entry.negative for entry in entries], bool)  # known to show none of the classes
        return {
            **row,
            "images": images,
            "classes": classes,
            "keys": np.array([mask_key(config.seed, entry.image_id) for entry in entries], np.uint64),
            "to_predict": is_present & ~is_negative & (classes[:, 0] < 0) & predicts,
            "kept": kept,
            "skipped": tuple(skipped),
            "seconds": time.monotonic() - started,
        }

    def earlier(self, row: Payload) -> tuple[Receipt | None, UnitMaps | None]:
        """The maps that the unit had before images were added to it, with their receipt; they stay as they are.

        None of both where there are no such maps, or where they are damaged: then the whole unit is computed.
        """
        receipt = earlier_receipt(self.run, self.step, row)
        try:
            return (receipt, self.run.maps(start_id=row["start_id"]).read_earlier(receipt)) if receipt else (None, None)
        except Damaged:
            return None, None

    def trial(self, compute: Compute, row: Payload) -> None:
        """Everything but the writing, for the quarantine."""
        compute(self.read(row))

    def write(self, maps: Payload) -> Payload:
        """Stage 3: the unit's shard, then its receipt."""
        started = time.monotonic()
        store = self.run.maps("r+", maps["start_id"])
        values = {name: maps[name] for name in ("max", "mean", "score", "classes")}
        if kept := maps["kept"]:
            for name, array in values.items():
                array[: len(kept.classes)] = getattr(kept, name)
        objects = store.write_unit(maps["unit"], **values)
        return finish_unit(self.step, maps, maps["skipped"], maps["seconds"] + time.monotonic() - started, objects)


class MapMaker:
    """Stage 2, an actor: backbone once per image, N samples, fold."""

    def __init__(self, job: MapStages) -> None:
        if job.device == "cpu":
            torch.set_num_threads(1)  # the pool has an actor per CPU
        self.job = job
        self.model = load_classifier(job.run).to(job.device).to(memory_format=torch.channels_last)

    def __call__(self, unit: Payload) -> Payload:
        started = time.monotonic()
        self.job.step.require_here()
        num_images, num_slots = unit["classes"].shape
        max_maps, mean_maps = (np.full((num_images, num_slots, *self.job.grid), np.nan, np.float32) for _ in range(2))
        score = np.full((num_images, num_slots), np.nan, np.float32)
        classes = unit["classes"].copy()
        for start in range(0, num_images, self.job.batch_size):
            batch = slice(start, min(start + self.job.batch_size, num_images))
            if (classes[batch] >= 0).any() or unit["to_predict"][batch].any():
                found = self.localize(
                    unit["images"][batch], classes[batch], unit["to_predict"][batch], unit["keys"][batch]
                )
                classes[batch], max_maps[batch], mean_maps[batch], score[batch] = found
        return {
            **{name: unit[name] for name in (*ROW_KEYS, "kept")},
            "classes": classes,
            "max": max_maps,
            "mean": mean_maps,
            "score": score,
            "seconds": unit["seconds"] + time.monotonic() - started,
        }

    @torch.inference_mode()
    def localize(
        self, images: np.ndarray, classes: np.ndarray, to_predict: np.ndarray, keys: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Classes (n, slot), max and mean (n, slot, h, w) and score (n, slot) of at most one batch."""
        maps = self.job.run.config.maps
        features = self.features(images)
        classes_BS = torch.from_numpy(classes.astype(np.int64)).to(self.job.device)
        if to_predict.any():
            logits = self.model.head.expected_logits(features, self.model.spec.drop_rate)
            predicted = predicted_classes(logits, maps.predicted_threshold, maps.max_classes, classes.shape[1])
            classes_BS = torch.where(torch.from_numpy(to_predict).to(self.job.device)[:, None], predicted, classes_BS)
        found = localize(
            features,
            self.model.head,
            classes_BS,
            [int(key) for key in keys],
            num_samples=maps.num_samples,
            drop_rate=self.model.spec.drop_rate if maps.drop_rate is None else maps.drop_rate,
            normalization=Normalization(maps.normalization, maps.percentile),
        )
        arrays = (classes_BS, found.max_BSHW, found.mean_BSHW, found.score_BS)
        return tuple(array.cpu().numpy() for array in arrays)  # type: ignore[return-value]

    def features(self, images: np.ndarray) -> Tensor:
        """Backbone features, float32. A short batch is filled up with zeros: one shape, hence the same bits always."""
        job = self.job
        missing = job.batch_size - len(images)
        full = np.concatenate([images, np.zeros((missing, *images.shape[1:]), np.uint8)]) if missing else images
        inputs = normalize(torch.from_numpy(full).to(job.device)).contiguous(memory_format=torch.channels_last)
        with torch.autocast(job.device, job.precision, enabled=job.precision != torch.float32):
            features = self.model.backbone(inputs)
        return features[: len(images)].float().contiguous()
