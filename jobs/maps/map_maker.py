"""Computes a unit's maps in an actor: the backbone, the samples and their folds."""

import time
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cluster.fanout import Payload
from ficklenet.classifier import predicted_classes
from ficklenet.gpu_kernels import sent
from ficklenet.localizer import Normalization, localize
from ficklenet.masks import mask_key
from jobs.maps.backbone_passes import BackbonePasses, batches
from jobs.maps.map_stages import MapStages
from jobs.steps.networks import load_classifier
from jobs.steps.unit_rows import ROW_KEYS

# Images that a worker has read are read-only in the actor, and no tensor of them is changed
warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)


class MapMaker:
    """Stage 2, in an actor: runs the backbone once per image, draws N samples and folds them."""

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
        keys = [mask_key(self.job.run.config.seed, image_id) for image_id in unit["image_ids"]]
        computed: tuple[slice, Arriving] | None = None  # the last batch that was given to the device
        for batch in batches(num_images, self.passes.batch_size):
            classes, to_predict = unit["classes"][batch], unit["to_predict"][batch]
            if (classes >= 0).any() or to_predict.any():
                found = Arriving(self.localize(unit["images"][batch], classes, to_predict, keys[batch]))
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
        self, images: np.ndarray | Tensor, classes: np.ndarray, to_predict: np.ndarray, keys: Sequence[int]
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
            keys,
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
