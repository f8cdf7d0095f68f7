"""The compiled CPU sampler: it draws masks in registers and sums them into maps, one image at a time in one thread;
``ficklenet.compiled_fold`` normalises and folds the maps.

The masks are those of ``ficklenet.masks``, bit for bit. The maps equal those of plain torch, except for the order of
float32 sums. This module needs numba and is imported only if numba is installed.

It works on tiles of positions and groups of samples. So data that is read again is in the cache, and every inner loop
runs over neighbouring positions in vector registers. Rows are passed as slices, because with computed indices the
compiler would gather and scatter.

Shape legend: B images, S classes, N samples, D offsets, V positions; G draws of O = 10 offsets (those besides
the centre, padded); L positions of a tile, M samples of a group, W = 4 words of a call of the generator.
"""

import math
from collections.abc import Sequence

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ficklenet.compiled_fold import normalize_and_fold
from ficklenet.folding import Normalization, SampleFold
from ficklenet.masks import (
    INFERENCE_STREAM,
    PHILOX_KEY_STEPS,
    PHILOX_MULTIPLIERS,
    PHILOX_ROUNDS,
    WORD,
    WORDS_PER_CALL,
    num_draws,
    table_entries,
    windows_inside,
)
from ficklenet.patterns import NUM_PATTERNS, OFFSETS_PER_DRAW

TILE = 64  # L, positions worked on together
GROUP = 8  # M, samples drawn and summed together; _add_kept has a variable for each

_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(PHILOX_MULTIPLIERS[0]), np.uint64(PHILOX_MULTIPLIERS[1])
_KEY_STEP_0, _KEY_STEP_1 = np.uint64(PHILOX_KEY_STEPS[0]), np.uint64(PHILOX_KEY_STEPS[1])
_WORD, _SHIFT = np.uint64(WORD), np.uint64(32)
_COLUMN, _HEIGHT_SHIFT = np.int32(NUM_PATTERNS - 1), np.int32(OFFSETS_PER_DRAW)
_STREAM = np.uint64(INFERENCE_STREAM)
_ZERO, _ONE_BIT = np.float32(0), np.uint64(1)


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
    """Draws, normalises and folds some samples, one image at a time: (B, S, H, W).

    Args:
        affinity_BSDV: float32 on the CPU, the affinity of the wanted classes.
        keys: one ``mask_key`` per image.
        samples: consecutive sample numbers of the inference stream.
        grid: (H, W).
        drop_rate: p.
        normalization: how each sample's map is scaled before the fold.
        vote_threshold: votes count the samples above this; None: no votes.
    """
    rank, is_voting = normalization.rank(grid[0] * grid[1]), vote_threshold is not None
    folds = []
    for affinity_SDV, key in zip(affinity_BSDV.numpy(), keys, strict=True):
        maps_SNV = sample_maps(affinity_SDV, key, samples, grid=grid, drop_rate=drop_rate)
        folds.append(normalize_and_fold(maps_SNV, rank, is_voting, np.float32(vote_threshold or 0.0)))
    maximum_BSHW, total_BSHW, votes_BSHW = (
        torch.from_numpy(np.stack(arrays)).unflatten(-1, grid) for arrays in zip(*folds, strict=True)
    )
    return SampleFold(maximum_BSHW, total_BSHW, len(samples), votes_BSHW if is_voting else None)


def sample_maps(
    affinity_SDV: NDArray[np.float32], key: int, samples: range, *, grid: tuple[int, int], drop_rate: float
) -> NDArray[np.float32]:
    """Every sample's Grad-CAM after ReLU, before normalisation: float32 (S, N, V)."""
    num_classes, num_offsets, num_positions = affinity_SDV.shape
    kernel_size = math.isqrt(num_offsets)
    inside_DV = windows_inside(kernel_size, grid).numpy()
    maps_SNV = np.empty((num_classes, len(samples), num_positions), np.float32)
    _sample_maps(
        np.ascontiguousarray(affinity_SDV),
        inside_DV.astype(np.float32) / np.float32(num_positions),
        np.uint64(key & WORD),
        np.uint64(key >> 32),
        samples.start,
        table_entries(drop_rate, torch.int32).numpy(),
        num_draws(kernel_size),
        maps_SNV,
    )
    return maps_SNV


# "contract" fuses a multiplication with an addition. Products by 0 or 1 are exact, so this changes no sum.
@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _sample_maps(
    affinity: NDArray[np.float32],
    scale: NDArray[np.float32],
    key_0: np.uint64,
    key_1: np.uint64,
    first_sample: int,
    table: NDArray[np.int32],
    num_draws: int,
    maps: NDArray[np.float32],
) -> None:
    """Fills ``maps`` (S, N, V): the affinity of the centre plus that of every kept offset; negative sums become zero.

    ``scale`` (D, V) multiplies the affinity: it is 1 / V, and 0 where the window is outside the grid.
    """
    num_classes, _, num_positions = affinity.shape
    num_samples, num_calls = maps.shape[1], -(-num_draws // WORDS_PER_CALL)
    values = np.zeros((num_classes, num_draws, OFFSETS_PER_DRAW, TILE), np.float32)
    centre = np.zeros((num_classes, TILE), np.float32)
    lows, products = np.empty(TILE, np.uint32), np.empty(TILE, np.uint64)
    draws, entries = np.empty((WORDS_PER_CALL, TILE), np.int32), np.empty(TILE, np.int32)
    patterns = np.zeros((GROUP, WORDS_PER_CALL, TILE), np.int32)
    kept = np.empty((GROUP, OFFSETS_PER_DRAW, TILE), np.float32)
    sums = np.empty((num_classes, GROUP, TILE), np.float32)
    for first in range(0, num_positions, TILE):
        width = min(TILE, num_positions - first)
        _cut_tile(values, centre, affinity, scale, first, width)
        _draw_positions(lows, products, first, key_1)
        for start in range(0, num_samples, GROUP):
            group = min(GROUP, num_samples - start)
            for c in range(num_classes):
                for n in range(GROUP):
                    sums[c, n] = centre[c]
            for call in range(num_calls):
                for n in range(group):
                    _draw(draws, lows, products, call, first_sample + start + n, key_0, key_1)
                    for w in range(WORDS_PER_CALL):
                        _look_up(patterns[n, w], entries, draws[w], table)
                for w in range(min(WORDS_PER_CALL, num_draws - WORDS_PER_CALL * call)):
                    for n in range(GROUP):
                        _unpack(kept[n], patterns[n, w])
                    for c in range(num_classes):
                        _add_kept(sums[c], values[c, WORDS_PER_CALL * call + w], kept)
            for c in range(num_classes):
                for n in range(group):
                    _store(maps[c, start + n, first : first + width], sums[c, n])


@numba.njit(inline="always")
def _cut_tile(
    values: NDArray[np.float32],
    centre: NDArray[np.float32],
    affinity: NDArray[np.float32],
    scale: NDArray[np.float32],
    first: int,
    width: int,
) -> None:
    """Copies the scaled affinity (S, D, V) of a tile's positions: of the centre into ``centre`` (S, L), of all other
    offsets into ``values`` (S, G, O, L), where the padding remains zero.

    If the last tile is narrower, the rest keeps old values; the results there are not stored.
    """
    num_classes, num_offsets = affinity.shape[:2]
    for c in range(num_classes):
        for d in range(num_offsets):
            other = d if d < num_offsets // 2 else d - 1  # the number without the centre
            row = values[c, other // OFFSETS_PER_DRAW, other % OFFSETS_PER_DRAW] if d != num_offsets // 2 else centre[c]
            given, factors = affinity[c, d, first : first + width], scale[d, first : first + width]
            for i in range(width):
                row[i] = given[i] * factors[i]


@numba.njit(inline="always")
def _draw_positions(lows: NDArray[np.uint32], products: NDArray[np.uint64], first: int, key_1: np.uint64) -> None:
    """The products of the first two rounds of Philox for a tile's positions (L), the same for all calls and samples."""
    for i in range(TILE):
        product = np.uint64(first + i) * _MULTIPLIER_0
        lows[i] = product & _WORD
        products[i] = ((product >> _SHIFT) ^ _STREAM ^ key_1) * _MULTIPLIER_1


@numba.njit(inline="always")
def _draw(
    draws: NDArray[np.int32],
    lows: NDArray[np.uint32],
    products: NDArray[np.uint64],
    call: int,
    sample: int,
    key_0: np.uint64,
    key_1: np.uint64,
) -> None:
    """The draws (W, L) of one call of the generator at every position of a tile.

    In the first two rounds of Philox, each multiplication depends either only on the position (``_draw_positions``) or
    only on the sample and call. So these rounds need no multiplication per position.
    """
    product_1 = np.uint64(sample) * _MULTIPLIER_1
    product_0 = ((product_1 >> _SHIFT) ^ np.uint64(call) ^ key_0) * _MULTIPLIER_0
    key_0, key_1 = (key_0 + _KEY_STEP_0) & _WORD, (key_1 + _KEY_STEP_1) & _WORD
    of_sample, of_call = (product_1 & _WORD) ^ key_0, (product_0 >> _SHIFT) ^ key_1
    for i in range(TILE):
        words = _last_rounds(
            (products[i] >> _SHIFT) ^ of_sample,
            products[i] & _WORD,
            np.uint64(lows[i]) ^ of_call,
            product_0 & _WORD,
            key_0,
            key_1,
        )
        for w in range(WORDS_PER_CALL):
            draws[w, i] = words[w] >> _ONE_BIT


@numba.njit(inline="always")
def _look_up(
    patterns: NDArray[np.int32], entries: NDArray[np.int32], draws: NDArray[np.int32], table: NDArray[np.int32]
) -> None:
    """Looks up the patterns (L) of some draws; ``entries`` is space for the entries of the table."""
    for i in range(TILE):
        entries[i] = table[draws[i] & _COLUMN]
    for i in range(TILE):
        is_below = (draws[i] >> _HEIGHT_SHIFT) < (entries[i] >> _HEIGHT_SHIFT)
        patterns[i] = (draws[i] if is_below else entries[i]) & _COLUMN


@numba.njit(inline="always")
def _unpack(kept: NDArray[np.float32], patterns: NDArray[np.int32]) -> None:
    """Unpacks patterns into decisions (O, L), 0 or 1, once for all classes."""
    for bit in range(OFFSETS_PER_DRAW):
        for i in range(TILE):
            kept[bit, i] = np.float32((patterns[i] >> np.int32(bit)) & np.int32(1))


@numba.njit(inline="always")
def _last_rounds(
    c0: np.uint64, c1: np.uint64, c2: np.uint64, c3: np.uint64, key_0: np.uint64, key_1: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    """The rounds of Philox4x32-10 from the third on, for one counter; 32 bits of each uint64 are used."""
    for _ in range(PHILOX_ROUNDS - 2):
        key_0, key_1 = (key_0 + _KEY_STEP_0) & _WORD, (key_1 + _KEY_STEP_1) & _WORD
        product_0, product_1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0, c1 = (product_1 >> _SHIFT) ^ c1 ^ key_0, product_1 & _WORD
        c2, c3 = (product_0 >> _SHIFT) ^ c3 ^ key_1, product_0 & _WORD
    return c0, c1, c2, c3


@numba.njit(inline="always")
def _add_kept(sums: NDArray[np.float32], affinity: NDArray[np.float32], kept: NDArray[np.float32]) -> None:
    """Adds ten offsets (O, L) to the sums (M, L) of each sample in a group, if it keeps them (M, O, L)."""
    for i in range(TILE):
        # One variable per sample, so that they stay in registers and each value is read once for all samples.
        sum_0, sum_1, sum_2, sum_3 = sums[0, i], sums[1, i], sums[2, i], sums[3, i]
        sum_4, sum_5, sum_6, sum_7 = sums[4, i], sums[5, i], sums[6, i], sums[7, i]
        for d in range(OFFSETS_PER_DRAW):
            value = affinity[d, i]
            sum_0 += value * kept[0, d, i]
            sum_1 += value * kept[1, d, i]
            sum_2 += value * kept[2, d, i]
            sum_3 += value * kept[3, d, i]
            sum_4 += value * kept[4, d, i]
            sum_5 += value * kept[5, d, i]
            sum_6 += value * kept[6, d, i]
            sum_7 += value * kept[7, d, i]
        sums[0, i], sums[1, i], sums[2, i], sums[3, i] = sum_0, sum_1, sum_2, sum_3
        sums[4, i], sums[5, i], sums[6, i], sums[7, i] = sum_4, sum_5, sum_6, sum_7


@numba.njit(inline="always")
def _store(values: NDArray[np.float32], sums: NDArray[np.float32]) -> None:
    """Stores sums (L) after ReLU. There are no negative zeros, and NaN remains NaN and is visible in the fold."""
    for i in range(len(values)):
        values[i] = _ZERO if sums[i] <= _ZERO else sums[i]
