"""The stages that make a unit's maps: read and decode, compute in an actor, write."""

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cluster.fanout import Payload
from cluster.quarantine import Compute
from ficklenet.classifier import predicted_classes
from ficklenet.gpu_kernels import sent
from ficklenet.localizer import Normalization, localize
from ficklenet.masks import mask_key
from jobs.maps.backbone_passes import BackbonePasses, batches, read_unit_images
from jobs.run.directory import Run
from jobs.steps.networks import load_classifier
from jobs.steps.unit_rows import ROW_KEYS, earlier_part, finish_unit
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
            "keys": np.array([mask_key(self.run.config.seed, entry.image_id) for entry in found.entries], np.uint64),
            "to_predict": found.is_present & ~is_negative & (classes[:, 0] < 0) & predicts,
            "kept": kept,
            "skipped": (*(earlier.skipped if earlier else ()), *found.skipped),
            "seconds": time.monotonic() - started,
        }

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
                array[: len(kept.classes)] = getattr(kept, name)
        objects = store.write_unit(maps["unit"], **values)
        return finish_unit(self.step, maps, maps["skipped"], maps["seconds"] + time.monotonic() - started, objects)


class MapMaker:
    """Stage 2, an actor: runs the backbone once per image, draws N samples and folds them."""

    def __init__(self, job: MapStages) -> None:
        if job.device == "cpu":
            torch.set_num_threads(1)  # the pool has an actor per CPU
        self.job = job
        self.passes = BackbonePasses.of(job.run.config.maps, job.device)
        self.model = load_classifier(job.run).to(job.device).to(memory_format=torch.channels_last)

    def prepare(self, unit: Payload) -> Payload:
        """Sends the images to the device, while another unit is computed."""
        return {**unit, "images": sent(torch.from_numpy(unit["images"]), self.job.device)}

    def __call__(self, unit: Payload) -> Payload:
        started = time.monotonic()
        self.job.step.require_here()
        num_images, num_slots = unit["classes"].shape
        shape = (num_images, num_slots, *self.job.grid)
        results = {
            "classes": unit["classes"].copy(),
            "max": np.full(shape, np.nan, np.float16),
            "mean": np.full(shape, np.nan, np.float16),
            "score": np.full(shape[:2], np.nan, np.float32),
        }
        computed: tuple[slice, Arriving] | None = None  # the last batch that was given to the device
        for batch in batches(num_images, self.passes.batch_size):
            classes, to_predict = unit["classes"][batch], unit["to_predict"][batch]
            if (classes >= 0).any() or to_predict.any():
                found = Arriving(self.localize(unit["images"][batch], classes, to_predict, unit["keys"][batch]))
                _store(results, computed)  # while the device computes this batch
                computed = batch, found
        _store(results, computed)
        return {
            **{name: unit[name] for name in (*ROW_KEYS, "kept")},
            **results,
            "seconds": unit["seconds"] + time.monotonic() - started,
        }

    @torch.inference_mode()
    def localize(
        self, images: np.ndarray | Tensor, classes: np.ndarray, to_predict: np.ndarray, keys: np.ndarray
    ) -> dict[str, Tensor]:
        """Classes (n, slot), max and mean float16 (n, slot, h, w) and score (n, slot) of at most one batch.

        The maps and scores are on the device, which may still be computing them.
        """
        maps = self.job.run.config.maps
        features = self.features(images)
        classes_BS = torch.from_numpy(classes.astype(np.int64))  # on the CPU, so that `localize` does not wait
        if to_predict.any():
            logits = self.model.head.expected_logits(features, self.model.spec.drop_rate)
            predicted = predicted_classes(logits, maps.predicted_threshold, maps.max_classes, classes.shape[1])
            classes_BS = torch.where(torch.from_numpy(to_predict)[:, None], predicted.cpu(), classes_BS)
        found = localize(
            features,
            self.model.head,
            classes_BS,
            [int(key) for key in keys],
            num_samples=maps.num_samples,
            drop_rate=self.model.spec.drop_rate if maps.drop_rate is None else maps.drop_rate,
            normalization=Normalization(maps.normalization, maps.percentile),
        )
        return {
            "classes": classes_BS.to(torch.int16),
            "max": found.max_BSHW.half(),  # as the store keeps them
            "mean": found.mean_BSHW.half(),
            "score": found.score_BS,
        }

    def features(self, images: np.ndarray | Tensor) -> Tensor:
        """Backbone features, float32."""
        return self.passes.run(self.model.backbone, images)[: len(images)].float().contiguous()


class Arriving:
    """Tensors that are being copied from the device, while it computes the next batch."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        is_on_gpu = any(tensor.is_cuda for tensor in tensors.values())
        self._copies = {name: tensor.to("cpu", non_blocking=True) for name, tensor in tensors.items()}
        self._copied = torch.cuda.Event() if is_on_gpu else None
        if self._copied is not None:
            self._copied.record()

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays; waits until they are complete."""
        if self._copied is not None:
            self._copied.synchronize()
        return {name: copy.numpy() for name, copy in self._copies.items()}


def _store(results: dict[str, np.ndarray], computed: tuple[slice, Arriving] | None) -> None:
    if computed is not None:
        batch, found = computed
        for name, array in found.arrays().items():
            results[name][batch] = array
