"""Reads a unit's images as inputs of the backbone, and runs the backbone on them in batches of one size."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from cluster.fanout import Payload
from ficklenet.gpu_kernels import sent
from ficklenet.transforms import normalize, resize_square
from jobs.run.config_keys import MapsConfig
from jobs.run.directory import Run
from jobs.steps.compute import resolved_precision
from jobs.steps.unit_rows import known_problems
from storage.errors import BadImage
from storage.images import read_image, read_many
from storage.manifest import ManifestRow
from storage.steps import Skipped

CPU_BATCH, GPU_BATCH = 1, 32  # images per backbone pass

Output = TypeVar("Output")


@dataclass(frozen=True)
class UnitImages:
    """The images of a unit.

    Attributes:
        entries: the rows of the manifest.
        images: uint8 (n, 3, side, side); zeros for unusable images.
        is_present: bool (n,), whether an image is usable.
        skipped: the unusable images, with the reasons.
    """

    entries: list[ManifestRow]
    images: np.ndarray
    is_present: np.ndarray
    skipped: tuple[Skipped, ...]


def read_unit_images(run: Run, row: Payload, num_kept: int = 0) -> UnitImages:
    """A unit's images, fetched concurrently, at the size of the network's input.

    Args:
        row: a `jobs.steps.unit_rows.UnitRow`.
        num_kept: so many first images are left out: neither present nor skipped.
    """
    config, unit = run.config, row["unit"]
    entries = run.manifest().rows(unit.start, unit.stop)
    size = config.images.input_size

    def read_input(uri: str) -> np.ndarray:
        return resize_square(read_image(uri, **config.images.limits, target_side=size), size)

    images = np.zeros((len(entries), 3, size, size), np.uint8)
    is_present = np.zeros(len(entries), bool)
    problems = {number: why for number, why in known_problems(row, entries).items() if number >= num_kept}
    skipped = [Skipped(entries[number].image_id, problem) for number, problem in problems.items()]
    usable = [number for number in range(num_kept, len(entries)) if number not in problems]
    uris = [entries[number].uri for number in usable]
    for number, found in zip(usable, read_many(uris, read_input, config.images.read_concurrency), strict=True):
        if isinstance(found, BadImage):
            skipped.append(Skipped(entries[number].image_id, found.reason))
        else:
            images[number], is_present[number] = found, True
    return UnitImages(entries, images, is_present, tuple(skipped))


@dataclass(frozen=True)
class BackbonePasses:
    """How images run through a backbone: the device, the precision, and the number of images at a time."""

    device: str
    precision: torch.dtype
    batch_size: int

    @classmethod
    def of(cls, config: MapsConfig, device: str) -> "BackbonePasses":
        """The configured passes on a device, "cpu" or "cuda"."""
        batch_size = config.batch_size or (GPU_BATCH if device == "cuda" else CPU_BATCH)
        return cls(device, resolved_precision(config.precision, device), batch_size)

    def run(self, network: Callable[[torch.Tensor], Output], images: np.ndarray | torch.Tensor) -> Output:
        """The network's output for at most one batch of images uint8 (n, 3, H, W), after normalising them.

        A short batch is padded with zeros, and the output has rows for the padding too: the same shape always gives the
        same bits.
        """
        pixels = sent(torch.as_tensor(images), self.device)
        if missing := self.batch_size - len(pixels):
            pixels = torch.cat([pixels, pixels.new_zeros(missing, *pixels.shape[1:])])
        inputs = normalize(pixels).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device, self.precision, enabled=self.precision != torch.float32):
            return network(inputs)


def batches(num_images: int, batch_size: int) -> Iterator[slice]:
    """The images of a unit in batches; the last batch may be shorter."""
    for start in range(0, num_images, batch_size):
        yield slice(start, min(start + batch_size, num_images))
