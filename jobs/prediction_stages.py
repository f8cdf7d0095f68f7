"""The stages that a unit's predictions pass through: read and resize, the network in an actor, refine and write."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from cluster.fanout import Payload
from cluster.quarantine import Compute
from ficklenet.segmentation_inference import input_sizes, label_image, predict_grid
from ficklenet.transforms import resize_square
from jobs.compute import resolved_precision
from jobs.config import Config
from jobs.label_files import encode_label_png
from jobs.run import Run
from jobs.trained_segmenter import load_segmenter
from jobs.unit_steps import finish_unit, known_problems, unit_of
from storage.errors import BadImage
from storage.images import read_image, read_many
from storage.location import Location
from storage.manifest import Manifest, ManifestRow
from storage.names import safe_name
from storage.steps import Skipped, Step

ALGORITHM_VERSION = 1  # of all that happens between an image's bytes and its stored labels
MANIFEST_COLUMNS = ("image_id", "uri", "split", "problem")
CPU_BATCH, GPU_BATCH = 1, 16  # images per pass of the network


@dataclass(frozen=True)
class PredictionsJob:
    """What every worker needs to know; its methods are the fan-out's stages."""

    run_uri: str
    config: Config
    segmenter_hash: str
    input_size: int
    num_classes: int
    device: str

    @property
    def run(self) -> Run:
        return Run(Location(self.run_uri), self.config)

    @property
    def step(self) -> Step:
        return Step(self.run.location / "predictions")

    @property
    def batch_size(self) -> int:
        return GPU_BATCH if self.device == "cuda" else CPU_BATCH

    @property
    def precision(self) -> torch.dtype:
        return getattr(torch, resolved_precision(self.config.predictions.precision, self.device))

    def fingerprint(self, manifest: Manifest) -> dict[str, Any]:
        """Everything that changes the predictions; not what merely runs them."""
        return {
            "algorithm_version": ALGORITHM_VERSION,
            "manifest": manifest.column_hash(MANIFEST_COLUMNS),
            "segmenter": self.segmenter_hash,
            "unit_size": self.config.unit_size,
            "images": {"max_pixels": self.config.images.max_pixels},
            "predictions": prediction_settings(self.config),
            "device": self.device,
            "precision": str(self.precision).removeprefix("torch."),
            "batch_size": self.batch_size,
        }

    def read(self, row: Payload) -> Payload:
        """Stage 1: the images of a unit's predicted splits at each input size; unusable ones are left out."""
        started = time.monotonic()
        self.step.require_here()
        entries, problems = self.selected(row)
        sizes = input_sizes(self.input_size, self.config.predictions.scales)

        def read_inputs(uri: str) -> list[np.ndarray]:
            image = read_image(uri, self.config.images.max_pixels)
            return [resize_square(image, size) for size in sizes]

        found = read_many([entry.uri for entry in entries], read_inputs, self.config.images.read_concurrency)
        problems += [
            Skipped(entry.image_id, image.reason)
            for entry, image in zip(entries, found, strict=True)
            if isinstance(image, BadImage)
        ]
        usable = [image for image in found if not isinstance(image, BadImage)]
        return {
            **row,
            "inputs": [
                np.stack([image[number] for image in usable]) if usable else np.zeros((0, 3, size, size), np.uint8)
                for number, size in enumerate(sizes)
            ],
            "skipped": [asdict(skip) for skip in problems],
            "seconds": time.monotonic() - started,
        }

    def trial(self, compute: Compute, row: Payload) -> None:
        """All of a unit but the writing, for the quarantine."""
        for _ in self.labelled(compute(self.read(row)), []):
            pass

    def write(self, predicted: Payload) -> Payload:
        """Stage 3: each image's labels at its own size, refined where so configured, then the unit's receipt.

        Beside the receipt the driver is told which labels occur.
        """
        started = time.monotonic()
        skipped = [Skipped(**skip) for skip in predicted["skipped"]]
        found: set[int] = set()
        for image_id, place, labels in self.labelled(predicted, skipped):
            prediction_location(self.run, image_id, place).write_bytes(encode_label_png(labels))
            found.update(np.flatnonzero(np.bincount(labels.ravel())).tolist())
        seconds = predicted["seconds"] + time.monotonic() - started
        return finish_unit(self.step, predicted, skipped, seconds) | {"labels": sorted(found)}

    def labelled(self, predicted: Payload, skipped: list[Skipped]) -> Iterator[tuple[str, str, np.ndarray]]:
        """Id, place and labels (H, W) of a unit's images; one that can be read no more is added to `skipped`."""
        config, left_out = self.config.predictions, {skip["image_id"] for skip in predicted["skipped"]}
        entries = [entry for entry in self.selected(predicted)[0] if entry.image_id not in left_out]
        for entry, probabilities in zip(entries, predicted["probabilities"], strict=True):
            try:
                image = read_image(entry.uri, self.config.images.max_pixels)  # again: a unit's may not fit in memory
            except BadImage as bad:
                skipped.append(Skipped(entry.image_id, bad.reason))
                continue
            for place, use_crf in (("labels", config.refine), *([("unrefined", False)] if config.refine else [])):
                labels = label_image(probabilities, image, use_crf=use_crf, max_side=config.max_side)
                yield entry.image_id, place, labels

    def selected(self, row: Payload) -> tuple[list[ManifestRow], list[Skipped]]:
        """The unit's images to predict, and those that are not even tried."""
        unit, splits = unit_of(row), self.config.predicted_splits
        entries = self.run.manifest().rows(unit.start, unit.stop)
        problems = known_problems(row, entries)
        chosen = [number for number, entry in enumerate(entries) if entry.split in splits]
        return (
            [entries[number] for number in chosen if number not in problems],
            [Skipped(entries[number].image_id, problems[number]) for number in chosen if number in problems],
        )


class Predictor:
    """Stage 2, an actor: the network, averaged over input sizes and mirror images."""

    def __init__(self, job: PredictionsJob) -> None:
        job.step.require_here()
        if job.device == "cpu":
            torch.set_num_threads(1)  # the pool has an actor per CPU
        self.job = job
        model, _ = load_segmenter(job.run, job.config.predictions.network)
        self.model = model.to(job.device).to(memory_format=torch.channels_last)

    def __call__(self, unit: Payload) -> Payload:
        started = time.monotonic()
        inputs, size = unit["inputs"], self.job.batch_size
        batches = [
            self.predict([images[start : start + size] for images in inputs])
            for start in range(0, len(inputs[0]), size)
        ]
        return {
            **{name: value for name, value in unit.items() if name != "inputs"},
            "probabilities": np.concatenate(batches) if batches else np.zeros((0, 1, 1, 1), np.float32),
            "seconds": unit["seconds"] + time.monotonic() - started,
        }

    def predict(self, inputs: list[np.ndarray]) -> np.ndarray:
        """Probabilities float32 (n, L, h, w). A short batch is filled up with zeros: one shape, hence the same bits."""
        num_images = len(inputs[0])
        full = [
            np.concatenate([images, np.zeros((self.job.batch_size - num_images, *images.shape[1:]), np.uint8)])
            for images in inputs
        ]
        found = predict_grid(
            self.model,
            [torch.from_numpy(images).to(self.job.device) for images in full],
            mirror=self.job.config.predictions.mirror,
            precision=self.job.precision,
        )
        return found[:num_images].cpu().numpy()


def prediction_settings(config: Config) -> dict[str, Any]:
    """The settings that change predictions, for fingerprints."""
    settings = config.predictions.model_dump(mode="json", exclude={"device", "precision"})
    return settings | {"splits": list(config.predicted_splits)}


def prediction_location(run: Run, image_id: str, place: str = "labels") -> Location:
    """Where an image's predicted labels are; `place` is "labels" or "unrefined"."""
    return run.location / "predictions" / place / f"{safe_name(image_id)}.png"
