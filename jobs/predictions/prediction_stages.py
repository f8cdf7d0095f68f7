"""The stages that make a unit's predictions: read and resize, run the network in an actor, refine and write."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from cluster.fanout import Payload
from cluster.quarantine import Compute
from ficklenet.label_image import label_image
from ficklenet.resampling import resize_square
from ficklenet.segmentation_inference import enlarged_probabilities, input_sizes, predict_grid
from ficklenet.segmenter import SegmenterSpec
from jobs.run.directory import Run
from jobs.steps.compute import resolved_precision
from jobs.steps.networks import load_segmenter
from jobs.steps.unit_rows import earlier_receipt, finish_unit, known_problems
from storage.errors import BadImage
from storage.images import read_image, read_many
from storage.manifest import ManifestRow
from storage.steps import Skipped, Step

KINDS = ("labels", "unrefined")  # the folders of label images after and before the CRF
CPU_BATCH, GPU_BATCH = 1, 16  # images per pass of the network


@dataclass(frozen=True)
class PredictionStages:
    """Everything that a worker needs; its methods are stages of the fan-out."""

    run: Run
    spec: SegmenterSpec
    device: str

    @property
    def step(self) -> Step:
        return self.run.step("predictions")

    @property
    def batch_size(self) -> int:
        return GPU_BATCH if self.device == "cuda" else CPU_BATCH

    @property
    def precision(self) -> torch.dtype:
        return resolved_precision(self.run.config.predictions.precision, self.device)

    def sizes(self) -> list[int]:
        """The sizes of the square inputs whose logits are summed."""
        scales = self.run.config.predictions.scales
        return list(input_sizes(self.spec.input_size, scales, self.spec.input_geometry))

    def inputs(self, image: np.ndarray) -> list[np.ndarray]:
        """The network's inputs for an image uint8 (H, W, 3): one (3, size, size) for each input size."""
        return [resize_square(image, size) for size in self.sizes()]

    def label(self, logits: np.ndarray, image: np.ndarray, *, use_crf: bool) -> np.ndarray:
        """An image's labels (H, W), made from the logits (L, h, w) of `Predictor`."""
        probabilities_at = partial(enlarged_probabilities, logits, geometry=self.spec.geometry)
        return label_image(probabilities_at, image, use_crf=use_crf, max_side=self.run.config.predictions.max_side)

    def read(self, row: Payload) -> Payload:
        """Stage 1: reads the images of a unit's predicted splits at each input size; leaves unusable images out."""
        started = time.monotonic()
        self.step.require_here()
        earlier = earlier_receipt(self.run, self.step, row)
        row = {**row, "num_kept": earlier.stop - earlier.start if earlier else 0}
        entries, problems = self.selected(row)
        problems += earlier.skipped if earlier else ()
        config, sizes = self.run.config, self.sizes()

        def read_inputs(uri: str) -> list[np.ndarray]:
            return self.inputs(read_image(uri, **config.images.limits, target_side=max(sizes)))

        found = read_many([entry.uri for entry in entries], read_inputs, config.images.read_concurrency)
        problems += [
            Skipped(entry.image_id, image.reason)
            for entry, image in zip(entries, found, strict=True)
            if isinstance(image, BadImage)
        ]
        usable = [image for image in found if not isinstance(image, BadImage)]
        return {
            **row,
            "objects": dict(earlier.objects) if earlier else {},
            "inputs": [
                np.stack([image[number] for image in usable]) if usable else np.zeros((0, 3, size, size), np.uint8)
                for number, size in enumerate(sizes)
            ],
            "skipped": tuple(problems),
            "seconds": time.monotonic() - started,
        }

    def trial(self, compute: Compute, row: Payload) -> None:
        """Everything except writing, for the quarantine."""
        for _ in self.labelled(compute(self.read(row)), []):
            pass

    def write(self, predicted: Payload) -> Payload:
        """Stage 3: writes each image's labels at its size, refined if configured, then the unit's receipt.

        The result also tells the driver which labels occur.
        """
        started = time.monotonic()
        skipped, found = list(predicted["skipped"]), set[int]()
        objects = dict(predicted["objects"])
        folders = {kind: self.run.labels("predictions", kind, predicted["start_id"]) for kind in KINDS}
        for image_id, kind, labels in self.labelled(predicted, skipped):
            objects |= folders[kind].write(image_id, labels)
            found.update(np.flatnonzero(np.bincount(labels.ravel())).tolist())
        seconds = predicted["seconds"] + time.monotonic() - started
        return finish_unit(self.step, predicted, skipped, seconds, objects) | {"labels": sorted(found)}

    def labelled(self, predicted: Payload, skipped: list[Skipped]) -> Iterator[tuple[str, str, np.ndarray]]:
        """Id, kind and labels (H, W) of a unit's images; an image that is not readable any more goes to `skipped`."""
        config, left_out = self.run.config.predictions, {skip.image_id for skip in predicted["skipped"]}
        entries = [entry for entry in self.selected(predicted)[0] if entry.image_id not in left_out]
        for entry, logits in zip(entries, predicted["logits"], strict=True):
            try:
                # Read again: the images of a whole unit may not fit in memory
                image = read_image(entry.uri, **self.run.config.images.limits)
            except BadImage as bad:
                skipped.append(Skipped(entry.image_id, bad.reason))
                continue
            for kind, use_crf in (("labels", config.refine), *([("unrefined", False)] if config.refine else [])):
                yield entry.image_id, kind, self.label(logits, image, use_crf=use_crf)

    def selected(self, row: Payload) -> tuple[list[ManifestRow], list[Skipped]]:
        """The unit's images to predict, and the images that are skipped without a try; without the kept first ones."""
        unit, splits = row["unit"], self.run.config.predicted_splits
        entries = self.run.manifest().rows(unit.start, unit.stop)
        problems = known_problems(row, entries)
        chosen = [n for n, entry in enumerate(entries) if n >= row["num_kept"] and entry.split in splits]
        return (
            [entries[number] for number in chosen if number not in problems],
            [Skipped(entries[number].image_id, problems[number]) for number in chosen if number in problems],
        )


class Predictor:
    """Stage 2, an actor: computes the network's logits, summed over input sizes and mirror images."""

    def __init__(self, job: PredictionStages) -> None:
        if job.device == "cpu":
            torch.set_num_threads(1)  # the pool has an actor per CPU
        self.job = job
        model = load_segmenter(job.run, job.run.config.predictions.network)
        self.model = model.to(job.device).to(memory_format=torch.channels_last)

    def __call__(self, unit: Payload) -> Payload:
        started = time.monotonic()
        self.job.step.require_here()
        inputs, size = unit["inputs"], self.job.batch_size
        batches = [
            self.predict([images[start : start + size] for images in inputs])
            for start in range(0, len(inputs[0]), size)
        ]
        return {
            **{name: value for name, value in unit.items() if name != "inputs"},
            "logits": np.concatenate(batches) if batches else np.zeros((0, 1, 1, 1), np.float32),
            "seconds": unit["seconds"] + time.monotonic() - started,
        }

    def predict(self, inputs: list[np.ndarray]) -> np.ndarray:
        """Summed logits float32 (n, L, h, w). Short batches are padded with zeros: the same shape gives equal bits."""
        num_images = len(inputs[0])
        full = [
            np.concatenate([images, np.zeros((self.job.batch_size - num_images, *images.shape[1:]), np.uint8)])
            for images in inputs
        ]
        found = predict_grid(
            self.model,
            [torch.from_numpy(images).to(self.job.device) for images in full],
            mirror=self.job.run.config.predictions.mirror,
            precision=self.job.precision,
        )
        return found[:num_images].cpu().numpy()
