"""Runs a backbone on images in batches of one size."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from ficklenet.gpu_kernels import sent
from ficklenet.transforms import normalize
from jobs.run.config_keys import MapsConfig
from jobs.steps.compute import resolved_precision

CPU_BATCH, GPU_BATCH = 1, 32  # images per backbone pass

Output = TypeVar("Output")


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
