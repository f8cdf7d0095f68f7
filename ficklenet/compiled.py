"""The CPU sampler, compiled: masks drawn in registers and summed into maps, one image and one thread at a time;
``ficklenet.compiled_fold`` normalises and folds them.

The same masks as ``ficklenet.masks`` bit for bit; maps equal to the plain torch path up to the order of
float32 sums. Needs numba; imported only where that is installed.

Positions are worked on in tiles and samples in groups, so that what is read again lies in the cache, and every
inner loop runs over neighbouring positions in vector registers. Rows are passed as slices: with computed indices
the compiler would gather and scatter.

Shape legend: S classes, N samples, D offsets, V positions; L positions of a tile, M samples of a group; G blocks
of O = 8 offsets (D padded).
"""

import numba
import numpy as np
from numpy.typing import NDArray

from ficklenet.compiled_fold import normalize_and_fold
from ficklenet.masks import (
    INFERENCE_STREAM,
    OFFSETS_PER_BLOCK,
    PHILOX_KEY_STEPS,
    PHILOX_MULTIPLIERS,
    PHILOX_ROUNDS,
    WORD,
    keep_threshold,
    windows_inside,
)

TILE = 64  # L, positions worked on together
GROUP = 8  # M, samples drawn and summed together, as many as _add_kept names

_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(PHILOX_MULTIPLIERS[0]), np.uint64(PHILOX_MULTIPLIERS[1])
_KEY_STEP_0, _KEY_STEP_1 = np.uint64(PHILOX_KEY_STEPS[0]), np.uint64(PHILOX_KEY_STEPS[1])
_WORD, _SHIFT = np.uint64(WORD), np.uint64(32)
_LOW_HALF, _HALF = np.uint32(0xFFFF), np.uint32(16)
_STREAM = np.uint64(INFERENCE_STREAM)
_ZERO, _ONE = np.float32(0), np.float32(1)


def fold_samples(
    affinity_SDV: NDArray[np.float32],
    key: int,
    samples: range,
    *,
    grid: tuple[int, int],
    drop_rate: float,
    rank: int,
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Maximum and sum of one image's normalised stochastic maps, each (S, H, W).

    Args:
        affinity_SDV: float32 affinity of the wanted classes.
        key: the image's ``mask_key``.
        samples: consecutive sample numbers of the inference stream.
        grid: (H, W).
        drop_rate: p.
        rank: from 1, in ascending order, of the value that a map is divided by (``Normalization.rank``).
    """
    maps_SNV = sample_maps(affinity_SDV, key, samples, grid=grid, drop_rate=drop_rate)
    maximum_SV, total_SV = normalize_and_fold(maps_SNV, rank)
    return maximum_SV.reshape(-1, *grid), total_SV.reshape(-1, *grid)


def sample_maps(
    affinity_SDV: NDArray[np.float32], key: int, samples: range, *, grid: tuple[int, int], drop_rate: float
) -> NDArray[np.float32]:
    """Every sample's Grad-CAM after ReLU, before normalisation: float32 (S, N, V)."""
    num_classes, num_offsets, num_positions = affinity_SDV.shape
    inside_DV = windows_inside(int(num_offsets**0.5 + 0.5), grid).numpy()
    maps_SNV = np.empty((num_classes, len(samples), num_positions), np.float32)
    _sample_maps(
        np.ascontiguousarray(affinity_SDV),
        inside_DV.astype(np.float32) / np.float32(num_positions),
        np.uint64(key & WORD),
        np.uint64(key >> 32),
        samples.start,
        np.uint32(keep_threshold(drop_rate)),
        maps_SNV,
    )
    return maps_SNV


# "contract" fuses a multiplication and an addition: a product by 0 or 1 is exact, so that no sum changes.
@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _sample_maps(
    affinity: NDArray[np.float32],
    scale: NDArray[np.float32],
    key_0: np.uint64,
    key_1: np.uint64,
    first_sample: int,
    threshold: np.uint32,
    maps: NDArray[np.float32],
) -> None:
    """Fills ``maps`` (S, N, V): the centre's affinity plus every kept offset's, negative sums set to zero.

    ``scale`` (D, V) multiplies the affinity: 1 / V, and 0 where the window lies off the grid.
    """
    num_classes, num_offsets, num_positions = affinity.shape
    num_samples, num_blocks = maps.shape[1], -(-num_offsets // OFFSETS_PER_BLOCK)
    blocks = np.zeros((num_classes, num_blocks, OFFSETS_PER_BLOCK, TILE), np.float32)
    centre = np.zeros((num_classes, TILE), np.float32)
    lows, products = np.empty(TILE, np.uint32), np.empty(TILE, np.uint64)
    words = np.empty((OFFSETS_PER_BLOCK // 2, TILE), np.uint32)
    kept = np.zeros((GROUP, OFFSETS_PER_BLOCK, TILE), np.float32)
    sums = np.empty((num_classes, GROUP, TILE), np.float32)
    for first in range(0, num_positions, TILE):
        width = min(TILE, num_positions - first)
        _cut_tile(blocks, centre, affinity, scale, first, width)
        _draw_positions(lows, products, first, key_1)
        for start in range(0, num_samples, GROUP):
            group = min(GROUP, num_samples - start)
            for c in range(num_classes):
                for n in range(GROUP):
                    sums[c, n] = centre[c]
            for block in range(num_blocks):
                for n in range(group):
                    sample = first_sample + start + n
                    _draw(kept[n], words, lows, products, block, sample, key_0, key_1, threshold)
                for c in range(num_classes):
                    _add_kept(sums[c], blocks[c, block], kept)
            for c in range(num_classes):
                for n in range(group):
                    _store(maps[c, start + n, first : first + width], sums[c, n])


@numba.njit(inline="always")
def _cut_tile(
    blocks: NDArray[np.float32],
    centre: NDArray[np.float32],
    affinity: NDArray[np.float32],
    scale: NDArray[np.float32],
    first: int,
    width: int,
) -> None:
    """The affinity (S, D, V) of a tile's positions, scaled: all offsets in ``blocks`` (S, G, O, L), zero in the
    padding, and the centre's in ``centre`` (S, L).

    The centre offset, which is always kept, is taken out of the blocks. A last tile that is narrower leaves the
    rest as it was: what is computed there is not stored.
    """
    num_classes, num_offsets = affinity.shape[:2]
    centre_block, centre_row = divmod(num_offsets // 2, OFFSETS_PER_BLOCK)
    for c in range(num_classes):
        for d in range(num_offsets):
            row = blocks[c, d // OFFSETS_PER_BLOCK, d % OFFSETS_PER_BLOCK]
            values, factors = affinity[c, d, first : first + width], scale[d, first : first + width]
            for i in range(width):
                row[i] = values[i] * factors[i]
        centre[c] = blocks[c, centre_block, centre_row]
        blocks[c, centre_block, centre_row] = 0


@numba.njit(inline="always")
def _draw_positions(lows: NDArray[np.uint32], products: NDArray[np.uint64], first: int, key_1: np.uint64) -> None:
    """What the first two rounds of Philox multiply for a tile's positions (L), whatever the block and sample."""
    for i in range(TILE):
        product = np.uint64(first + i) * _MULTIPLIER_0
        lows[i] = product & _WORD
        products[i] = ((product >> _SHIFT) ^ _STREAM ^ key_1) * _MULTIPLIER_1


@numba.njit(inline="always")
def _draw(
    kept: NDArray[np.float32],
    words: NDArray[np.uint32],
    lows: NDArray[np.uint32],
    products: NDArray[np.uint64],
    block: int,
    sample: int,
    key_0: np.uint64,
    key_1: np.uint64,
    threshold: np.uint32,
) -> None:
    """The masks (O, L) of one block of offsets at every position of a tile, as 0 and 1: drawn once for all classes.

    In the first two rounds of Philox either multiplication sees the position alone (``_draw_positions``) or the
    sample and block alone, so that they cost the positions no multiplication.

    ``words`` (4, L) is room for what is drawn: the decisions are made in its 32-bit lanes, twice as many at once as
    the generator's 64-bit lanes.
    """
    product_1 = np.uint64(sample) * _MULTIPLIER_1
    product_0 = ((product_1 >> _SHIFT) ^ np.uint64(block) ^ key_0) * _MULTIPLIER_0
    key_0, key_1 = (key_0 + _KEY_STEP_0) & _WORD, (key_1 + _KEY_STEP_1) & _WORD
    of_sample, of_block = (product_1 & _WORD) ^ key_0, (product_0 >> _SHIFT) ^ key_1
    for i in range(TILE):
        drawn = _last_rounds(
            (products[i] >> _SHIFT) ^ of_sample,
            products[i] & _WORD,
            np.uint64(lows[i]) ^ of_block,
            product_0 & _WORD,
            key_0,
            key_1,
        )
        for w in range(4):
            words[w, i] = drawn[w]
    for w in range(4):  # a word's low half decides first, then its high half
        for i in range(TILE):
            kept[2 * w, i] = _ONE if (words[w, i] & _LOW_HALF) < threshold else _ZERO
            kept[2 * w + 1, i] = _ONE if (words[w, i] >> _HALF) < threshold else _ZERO


@numba.njit(inline="always")
def _last_rounds(
    c0: np.uint64, c1: np.uint64, c2: np.uint64, c3: np.uint64, key_0: np.uint64, key_1: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    """Philox4x32-10 of one counter from its third round on, all in uint64 with 32 bits used."""
    for _ in range(PHILOX_ROUNDS - 2):
        key_0, key_1 = (key_0 + _KEY_STEP_0) & _WORD, (key_1 + _KEY_STEP_1) & _WORD
        product_0, product_1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0, c1 = (product_1 >> _SHIFT) ^ c1 ^ key_0, product_1 & _WORD
        c2, c3 = (product_0 >> _SHIFT) ^ c3 ^ key_1, product_0 & _WORD
    return c0, c1, c2, c3


@numba.njit(inline="always")
def _add_kept(sums: NDArray[np.float32], affinity: NDArray[np.float32], kept: NDArray[np.float32]) -> None:
    """Adds a block's eight offsets (O, L) to each sample of a group, (M, L), where it keeps them, (M, O, L)."""
    for i in range(TILE):
        # By name, so that they stay in registers while each value is read once for all of them.
        sum_0, sum_1, sum_2, sum_3 = sums[0, i], sums[1, i], sums[2, i], sums[3, i]
        sum_4, sum_5, sum_6, sum_7 = sums[4, i], sums[5, i], sums[6, i], sums[7, i]
        for d in range(OFFSETS_PER_BLOCK):
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
    """Sums (L) after ReLU: no zero is negative, and what is no number stays so and shows in the fold."""
    for i in range(len(values)):
        values[i] = _ZERO if sums[i] <= _ZERO else sums[i]
