"""The sampler in plain torch, for any device and precision: the fallback, and the reference for the other samplers.

Shape legend: B images, S slots (an image's wanted classes), N samples, D offsets, H W feature grid, V = H * W
positions.
"""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ficklenet.folding import Normalization, SampleFold
from ficklenet.masks import INFERENCE_STREAM, dropout_masks, expected_mask

MASK_ELEMENTS_PER_CHUNK = 2**24  # limits the memory to 64 MiB of float32 masks at a time


def fold_samples(
    affinity_BSDV: Tensor,
    keys: Sequence[int],
    samples: range,
    *,
    grid: tuple[int, int],
    drop_rate: float,
    normalization: Normalization,
    vote_threshold: float | None = None,
) -> SampleFold:
    """Draws, normalises and folds some samples, a chunk of samples at a time: (B, S, H, W)."""
    kernel_size = math.isqrt(affinity_BSDV.shape[2])

    def fold_chunk(chunk: range) -> SampleFold:
        masks_BNDV = dropout_masks(
            keys,
            chunk,
            kernel_size=kernel_size,
            grid=grid,
            drop_rate=drop_rate,
            stream=INFERENCE_STREAM,
            device=affinity_BSDV.device,
        )
        maps_NBSHW = normalization.apply(sample_evidence(affinity_BSDV, masks_BNDV, grid).relu())
        return SampleFold.of(maps_NBSHW, vote_threshold=vote_threshold)

    elements_per_sample = len(keys) * kernel_size**2 * grid[0] * grid[1]
    size = max(1, MASK_ELEMENTS_PER_CHUNK // elements_per_sample)
    chunks = (samples[start : start + size] for start in range(0, len(samples), size))
    return functools.reduce(SampleFold.merge, map(fold_chunk, chunks))


def sample_evidence(affinity_BSDV: Tensor, masks_BNDV: Tensor, grid: tuple[int, int]) -> Tensor:
    """Each sample's Grad-CAM before ReLU, (N, B, S, H, W); its sum is the sample's logit minus the bias."""
    masks_BNDV = masks_BNDV.to(affinity_BSDV.dtype)
    evidence = torch.einsum("bndv,bsdv->nbsv", masks_BNDV, affinity_BSDV) / affinity_BSDV.shape[-1]
    return evidence.unflatten(-1, grid)


def expected_evidence(affinity_BSDV: Tensor, grid: tuple[int, int], drop_rate: float) -> Tensor:
    """The expectation of the Grad-CAM before ReLU over the masks, (B, S, H, W)."""
    mask_DV = _expected_mask_for(affinity_BSDV, grid, drop_rate)
    return ((affinity_BSDV * mask_DV).sum(2) / affinity_BSDV.shape[-1]).unflatten(-1, grid)


def expected_score(affinity_BSDV: Tensor, bias_BS: Tensor, grid: tuple[int, int], drop_rate: float) -> Tensor:
    """The expected logit (B, S): the bias plus the sum of the expected evidence."""
    mask_DV = _expected_mask_for(affinity_BSDV, grid, drop_rate)
    return bias_BS + (affinity_BSDV * mask_DV).sum((2, 3)) / affinity_BSDV.shape[-1]


def _expected_mask_for(affinity_BSDV: Tensor, grid: tuple[int, int], drop_rate: float) -> Tensor:
    kernel_size = math.isqrt(affinity_BSDV.shape[2])
    return expected_mask(kernel_size, grid, drop_rate, dtype=affinity_BSDV.dtype, device=affinity_BSDV.device)
