"""The GPU sampler, in three kernels (``ficklenet.triton_kernels``): draw, sum, and normalise and fold.

The masks are those of ``ficklenet.masks``, bit for bit. The maps equal those of plain torch, except for the order of
float32 sums. This module needs Triton; see ``ficklenet.gpu_kernels``.

The memory contains, for one chunk of samples at a time, the draws of each image (16 bits for ten offsets), which all
its classes use, and the map of each sample, which is written once and read once.

Shape legend: B images, R rows (the wanted classes of all images, image by image), N samples, D offsets, V
positions, G draws of ten offsets, P parts of the samples that are folded separately.
"""

import functools
import math
from collections.abc import Sequence

import torch
import triton
from torch import Tensor
from torch.nn import functional

from ficklenet import triton_kernels
from ficklenet.folding import Normalization, SampleFold
from ficklenet.gpu_kernels import sent
from ficklenet.masks import num_draws, table_entries, windows_inside
from ficklenet.patterns import OFFSETS_PER_DRAW

BYTES_PER_CHUNK = 2**28  # for draws and maps together

# A program of the first two kernels works on some samples at TILE positions: the first on one sample in one warp, the
# second on some samples and some rows of one image. All its rows use the same draws, and all its samples the same
# values of the affinity; both are in registers. These numbers were the fastest on an H200.
TILE, MOST_ROWS = 128, 4
GROUP, GROUP_OF_ONE_ROW = 8, 16  # samples of a program of the second kernel
SAMPLES_PER_PART = 8  # for a program of the third kernel, which works on one row
FOLD_VALUES_PER_WARP = 512


def fold_samples(
    affinity_RDV: Tensor,
    images_R: Tensor,
    keys: Sequence[int],
    samples: range,
    *,
    grid: tuple[int, int],
    drop_rate: float,
    normalization: Normalization,
    vote_threshold: float | None = None,
) -> SampleFold:
    """Draws, normalises and folds some samples: (R, H, W).

    Args:
        affinity_RDV: float32, the affinity of each row's class; at least one row.
        images_R: int64 on the CPU, each row's image as an index into ``keys``, ascending.
        keys: one ``mask_key`` per image.
        samples: consecutive sample numbers of the inference stream.
        grid: (H, W).
        drop_rate: p.
        normalization: how each sample's map is scaled before the fold.
        vote_threshold: votes count the samples above this; None: no votes.
    """
    num_rows, num_offsets, num_positions = affinity_RDV.shape
    rank = normalization.rank(num_positions)

    def fold_chunk(chunk: range) -> SampleFold:
        maps_RNV = sample_maps(affinity_RDV, images_R, keys, chunk, grid=grid, drop_rate=drop_rate)
        fold = normalize_and_fold(maps_RNV, rank, vote_threshold)
        votes_RHW = None if fold.votes is None else fold.votes.unflatten(-1, grid)
        return SampleFold(fold.maximum.unflatten(-1, grid), fold.total.unflatten(-1, grid), fold.count, votes_RHW)

    bytes_per_position = 4 * num_rows + 2 * len(keys) * num_draws(math.isqrt(num_offsets))
    size = max(1, BYTES_PER_CHUNK // (bytes_per_position * num_positions))
    fold = fold_chunk(samples[:size])
    for start in range(size, len(samples), size):
        fold = fold.merge(fold_chunk(samples[start : start + size]))
    return fold


def sample_maps(
    affinity_RDV: Tensor,
    images_R: Tensor,
    keys: Sequence[int],
    samples: range,
    *,
    grid: tuple[int, int],
    drop_rate: float,
) -> Tensor:
    """Every sample's Grad-CAM after ReLU, times V: float32 (R, N, V); normalisation removes this factor.

    Arguments as in ``fold_samples``.
    """
    num_rows, num_offsets, num_positions = affinity_RDV.shape
    device, kernel_size = affinity_RDV.device, math.isqrt(num_offsets)
    patterns_BNGV = drawn_patterns(
        keys, samples, kernel_size=kernel_size, grid=grid, drop_rate=drop_rate, device=device
    )
    first_row_B1 = torch.searchsorted(images_R, torch.arange(len(keys) + 1))
    most_rows = int(first_row_B1.diff().max())
    rows = min(MOST_ROWS, triton.next_power_of_2(most_rows))
    group = GROUP_OF_ONE_ROW if rows == 1 else GROUP
    programs = (
        triton.cdiv(num_positions, TILE),
        triton.cdiv(len(samples), group),
        len(keys) * triton.cdiv(most_rows, rows),
    )
    maps_RNV = torch.empty(num_rows, len(samples), num_positions, device=device)
    with torch.cuda.device_of(affinity_RDV):  # Triton launches on the current GPU
        triton_kernels.sum_maps[programs](
            maps_RNV,
            affinity_RDV.contiguous(),
            patterns_BNGV,
            sent(first_row_B1, device),
            len(keys),
            len(samples),
            num_positions,
            KERNEL_SIZE=kernel_size,
            NUM_DRAWS=num_draws(kernel_size),
            ROWS=rows,
            GROUP=group,
            TILE=TILE,
        )
    return maps_RNV


def drawn_patterns(
    keys: Sequence[int],
    samples: range,
    *,
    kernel_size: int,
    grid: tuple[int, int],
    drop_rate: float,
    device: torch.device,
) -> Tensor:
    """``ficklenet.masks.drawn_patterns`` of the inference stream, as int16 (B, N, G, V).

    The bits of offsets whose window has its centre outside the grid are 0.
    """
    num_positions = grid[0] * grid[1]
    patterns_BNGV = torch.empty(
        len(keys), len(samples), num_draws(kernel_size), num_positions, dtype=torch.int16, device=device
    )
    programs = (triton.cdiv(num_positions, TILE), len(samples), len(keys))
    with torch.cuda.device_of(patterns_BNGV):
        triton_kernels.draw_patterns[programs](
            patterns_BNGV,
            triton_kernels.keys_on(device, keys),
            table_entries(drop_rate, torch.int32, device),
            inside_patterns(kernel_size, grid, device),
            samples.start,
            len(samples),
            num_positions,
            NUM_DRAWS=num_draws(kernel_size),
            GROUP=1,
            TILE=TILE,
            num_warps=1,
        )
    return patterns_BNGV


@functools.cache
@torch.inference_mode(False)  # the cached tensor must also be usable in training
def inside_patterns(kernel_size: int, grid: tuple[int, int], device: torch.device) -> Tensor:
    """int16 (G, V): as a pattern, which offsets have the centre of their window on the grid; do not change it."""
    inside_DV, centre = windows_inside(kernel_size, grid).int(), kernel_size**2 // 2
    others = torch.cat([inside_DV[:centre], inside_DV[centre + 1 :]])
    missing = num_draws(kernel_size) * OFFSETS_PER_DRAW - len(others)
    bits = functional.pad(others, (0, 0, 0, missing)).unflatten(0, (-1, OFFSETS_PER_DRAW))
    return (bits << torch.arange(OFFSETS_PER_DRAW)[:, None]).sum(1).to(device, torch.int16)


def normalize_and_fold(maps_RNV: Tensor, rank: int, vote_threshold: float | None = None) -> SampleFold:
    """Divides each map by its value of this rank (see ``Normalization``), clips to 1 and folds: (R, V)."""
    num_rows, num_samples, num_positions = maps_RNV.shape
    num_parts, is_voting = triton.cdiv(num_samples, SAMPLES_PER_PART), vote_threshold is not None
    maximum_RPV = maps_RNV.new_empty(num_rows, num_parts, num_positions)
    total_RPV = torch.empty_like(maximum_RPV, dtype=torch.float64)
    votes_RPV = torch.empty_like(maximum_RPV if is_voting else maximum_RPV[:0], dtype=torch.int32)
    block = triton.next_power_of_2(num_positions)
    with torch.cuda.device_of(maps_RNV):
        triton_kernels.normalize_and_fold[(num_parts, num_rows)](
            maximum_RPV,
            total_RPV,
            votes_RPV,
            maps_RNV,
            rank,
            vote_threshold or 0.0,
            num_samples,
            num_positions,
            IS_VOTING=is_voting,
            SAMPLES=SAMPLES_PER_PART,
            BLOCK=block,
            num_warps=min(32, max(4, block // FOLD_VALUES_PER_WARP)),
        )
    votes_RV = votes_RPV.sum(1, dtype=torch.int32) if is_voting else None
    return SampleFold(maximum_RPV.amax(1), total_RPV.sum(1), num_samples, votes_RV)
