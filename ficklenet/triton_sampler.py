# mypy: allow-untyped-defs
# (a kernel's arguments are typed by Triton)
"""The GPU sampler: masks drawn in registers and summed on the fly; no mask ever lies in memory.

The same masks as ``ficklenet.masks`` bit for bit; maps equal to the plain torch path up to the order of
float32 sums. Needs Triton, which comes with torch's CUDA builds; imported only where that is installed. Under
Triton's interpreter (``TRITON_INTERPRET=1``) it runs on a CPU, for tests.

What lies in memory is each sample's map, a chunk of samples at a time: 1 / D of the masks.

Shape legend: B images, R rows (the wanted classes of all images, image by image), N samples, D offsets, V
positions.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ficklenet.folding import Normalization, SampleFold
from ficklenet.masks import (
    INFERENCE_STREAM,
    OFFSETS_PER_BLOCK,
    PHILOX_KEY_STEPS,
    PHILOX_MULTIPLIERS,
    PHILOX_ROUNDS,
    keep_threshold,
)

MAP_ELEMENTS_PER_CHUNK = 2**26  # 256 MiB of float32 maps at a time

# One program: some rows of one image, some samples, some positions. Its decisions serve all of its rows, and its
# reads of the affinity all of its samples; both sit in the registers of the position's thread.
MOST_ROWS, GROUP, TILE = 4, 8, 128
DIVISOR_VALUES_PER_WARP = 512


def runs_on(device: torch.device) -> bool:
    """Whether the kernels can run there: on a GPU, and on a CPU under Triton's interpreter."""
    is_compiled = isinstance(_sample_maps, triton.JITFunction)
    return device.type == ("cuda" if is_compiled else "cpu")


def fold_samples(
    affinity_RDV: Tensor,
    images_R: Tensor,
    keys: Sequence[int],
    samples: range,
    *,
    grid: tuple[int, int],
    drop_rate: float,
    normalization: Normalization,
) -> SampleFold:
    """Draws, normalises and folds some samples: maxima and sums (R, H, W).

    Args:
        affinity_RDV: float32, the affinity of each row's class; at least one row.
        images_R: int64, each row's image as an index into ``keys``, ascending.
        keys: one ``mask_key`` per image.
        samples: consecutive sample numbers of the inference stream.
        grid: (H, W).
        drop_rate: p.
        normalization: how each sample's map is scaled before the fold.
    """

    def fold_chunk(chunk: range) -> SampleFold:
        maps_RNV = sample_maps(affinity_RDV, images_R, keys, chunk, grid=grid, drop_rate=drop_rate)
        divisors_RN = map_divisors(maps_RNV, normalization.rank(num_positions))
        scaled_RNV = maps_RNV.div_(divisors_RN[..., None]).clamp_(max=1.0)
        return SampleFold.of(scaled_RNV.unflatten(-1, grid), dim=1)

    num_rows, _, num_positions = affinity_RDV.shape
    size = max(1, MAP_ELEMENTS_PER_CHUNK // (num_rows * num_positions))
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
    """V times every sample's Grad-CAM after ReLU, float32 (R, N, V); normalisation removes the factor."""
    num_rows, num_offsets, num_positions = affinity_RDV.shape
    device = affinity_RDV.device
    signed_keys = [key - 2**64 if key >= 2**63 else key for key in keys]  # the same bits as int64
    first_row_B1 = torch.searchsorted(images_R, torch.arange(len(keys) + 1, device=device))
    most_rows = int(first_row_B1.diff().max())
    rows = min(MOST_ROWS, triton.next_power_of_2(most_rows))
    programs = (
        triton.cdiv(num_positions, TILE),
        triton.cdiv(len(samples), GROUP),
        len(keys) * triton.cdiv(most_rows, rows),
    )
    maps_RNV = torch.empty(num_rows, len(samples), num_positions, device=device)
    with torch.cuda.device_of(affinity_RDV):  # Triton launches on the current GPU
        _sample_maps[programs](
            maps_RNV,
            affinity_RDV.contiguous(),
            first_row_B1,
            torch.tensor(signed_keys, device=device),
            len(keys),
            samples.start,
            len(samples),
            keep_threshold(drop_rate),
            *grid,
            KERNEL_SIZE=math.isqrt(num_offsets),
            ROWS=rows,
            GROUP=GROUP,
            TILE=TILE,
        )
    return maps_RNV


def map_divisors(maps_RNV: Tensor, rank: int) -> Tensor:
    """What each map is divided by (R, N): its value of that rank, as ``Normalization`` defines it; never 0."""
    divisors_RN = maps_RNV.new_empty(maps_RNV.shape[:2])
    num_positions = maps_RNV.shape[2]
    block = triton.next_power_of_2(num_positions)
    num_warps = min(32, max(4, block // DIVISOR_VALUES_PER_WARP))
    with torch.cuda.device_of(maps_RNV):
        _find_divisor[(divisors_RN.numel(),)](
            divisors_RN, maps_RNV, rank, num_positions, BLOCK=block, num_warps=num_warps
        )
    return divisors_RN


_STREAM = tl.constexpr(INFERENCE_STREAM)
_OFFSETS_PER_BLOCK = tl.constexpr(OFFSETS_PER_BLOCK)
_ROUNDS = tl.constexpr(PHILOX_ROUNDS)
_MULTIPLIER_0, _MULTIPLIER_1 = tl.constexpr(PHILOX_MULTIPLIERS[0]), tl.constexpr(PHILOX_MULTIPLIERS[1])
_KEY_STEP_0, _KEY_STEP_1 = tl.constexpr(PHILOX_KEY_STEPS[0]), tl.constexpr(PHILOX_KEY_STEPS[1])


@triton.jit(do_not_specialize=["num_images", "first_sample", "num_samples", "threshold"])
def _sample_maps(
    maps_RNV,
    affinity_RDV,
    first_row_B1,
    keys_B,
    num_images,
    first_sample,
    num_samples,
    threshold,
    height,
    width,
    KERNEL_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
):
    """The maps of at most ROWS rows of one image, of GROUP samples, at TILE positions. Blocks are (row, sample,
    position)."""
    image = tl.program_id(2) % num_images
    first_row = tl.load(first_row_B1 + image) + tl.program_id(2) // num_images * ROWS  # 64-bit, as the maps' addresses
    last_row = tl.load(first_row_B1 + image + 1)
    if first_row >= last_row:
        return
    rows = (first_row + tl.arange(0, ROWS))[:, None, None]
    numbers = (tl.program_id(1) * GROUP + tl.arange(0, GROUP))[None, :, None]
    positions = (tl.program_id(0) * TILE + tl.arange(0, TILE))[None, None, :]
    num_offsets: tl.constexpr = KERNEL_SIZE * KERNEL_SIZE
    num_positions = height * width
    is_real = (rows < last_row) & (positions < num_positions)

    zero = tl.zeros((1, GROUP, TILE), tl.uint32)
    position_words = zero + positions.to(tl.uint32)
    sample_words = zero + (first_sample + numbers).to(tl.uint32)
    key = tl.load(keys_B + image)
    sums = tl.zeros((ROWS, GROUP, TILE), tl.float32)
    for block in range((num_offsets + _OFFSETS_PER_BLOCK - 1) // _OFFSETS_PER_BLOCK):
        # 1. The draws of 8 offsets: Philox's four words, of each the low half first.
        c0, c1, c2, c3 = position_words, zero + block, sample_words, zero + _STREAM
        key0, key1 = key.to(tl.uint32), (key >> 32).to(tl.uint32)
        for _ in tl.static_range(_ROUNDS):
            product0, product1 = c0.to(tl.uint64) * _MULTIPLIER_0, c2.to(tl.uint64) * _MULTIPLIER_1
            c0, c1 = (product1 >> 32).to(tl.uint32) ^ c1 ^ key0, product1.to(tl.uint32)
            c2, c3 = (product0 >> 32).to(tl.uint32) ^ c3 ^ key1, product0.to(tl.uint32)
            key0, key1 = key0 + _KEY_STEP_0, key1 + _KEY_STEP_1

        # 2. What each row says at the offsets that are kept.
        for i in tl.static_range(_OFFSETS_PER_BLOCK):
            word = c0 if i < 2 else c1 if i < 4 else c2 if i < 6 else c3
            draw = (word & 0xFFFF if i % 2 == 0 else word >> 16).to(tl.int32)
            offset = block * _OFFSETS_PER_BLOCK + i
            centre_rows = positions // width - (offset // KERNEL_SIZE - KERNEL_SIZE // 2)
            centre_cols = positions % width - (offset % KERNEL_SIZE - KERNEL_SIZE // 2)
            is_inside = (centre_rows >= 0) & (centre_rows < height) & (centre_cols >= 0) & (centre_cols < width)
            values = tl.load(
                affinity_RDV + (rows * num_offsets + offset) * num_positions + positions,
                mask=is_real & is_inside & (offset < num_offsets),
                other=0.0,
            )
            is_kept = (draw < threshold) | (offset == num_offsets // 2)  # the centre always
            sums = tl.where(is_kept, sums + values, sums)

    maps = maps_RNV + (rows * num_samples + numbers) * num_positions + positions
    positive = tl.where(sums < 0, 0.0, sums)  # a ReLU that lets NaN through
    tl.store(maps, positive, mask=is_real & (numbers < num_samples))


@triton.jit(do_not_specialize=["rank"])
def _find_divisor(divisors_M, maps_MV, rank, num_positions, BLOCK: tl.constexpr):
    """One map's value of a rank, from 1; its largest where that is 0, and 1 where that is 0 too.

    Non-negative floats are ordered like their bit patterns, so the bits are found from the highest down: the
    answer is the largest pattern that fewer than ``rank`` values lie below. Exact, without sorting.
    """
    number = tl.program_id(0).to(tl.int64)
    positions = tl.arange(0, BLOCK)
    is_real = positions < num_positions
    values = tl.load(maps_MV + number * num_positions + positions, mask=is_real, other=0.0)
    patterns = values.to(tl.int32, bitcast=True)
    answer = tl.program_id(0) * 0
    for step in range(31):  # the bits below the sign
        trial = answer | (1 << (30 - step))
        num_below = tl.sum((is_real & (patterns < trial)).to(tl.int32), axis=0)
        answer = tl.where(num_below < rank, trial, answer)
    divisor = answer.to(tl.float32, bitcast=True)
    divisor = tl.where(divisor > 0, divisor, tl.max(values, axis=0))
    tl.store(divisors_M + number, tl.where(divisor > 0, divisor, 1.0))
