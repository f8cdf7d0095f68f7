"""The CPU sampler, compiled: masks drawn in registers, summed, normalised and folded, one image and one
thread at a time.

The same masks as ``ficklenet.masks`` bit for bit; maps equal to the plain torch path up to the order of
float32 sums. Needs numba; imported only where that is installed.

Positions are worked on in tiles and samples in groups, so that what is read again lies in the cache, and every
inner loop runs over neighbouring positions in vector registers.

Shape legend: S classes, N samples, D offsets, V positions; T tiles of L positions; G blocks of O = 8
offsets (D and V padded).
"""

import numba
import numpy as np
from numpy.typing import NDArray

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
GROUP = 8  # samples drawn together, so that a block of the affinity is read once for all of them
NUM_BITS = 31  # of a non-negative float32 below its sign

_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(PHILOX_MULTIPLIERS[0]), np.uint64(PHILOX_MULTIPLIERS[1])
_KEY_STEP_0, _KEY_STEP_1 = np.uint64(PHILOX_KEY_STEPS[0]), np.uint64(PHILOX_KEY_STEPS[1])
_WORD, _SHIFT = np.uint64(WORD), np.uint64(32)
_LOW_HALF, _HALF = np.uint32(0xFFFF), np.uint32(16)
_STREAM = np.uint64(INFERENCE_STREAM)


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
    maximum_SV, total_SV = _normalize_and_fold(maps_SNV, rank)
    return maximum_SV.reshape(-1, *grid), total_SV.reshape(-1, *grid)


def sample_maps(
    affinity_SDV: NDArray[np.float32], key: int, samples: range, *, grid: tuple[int, int], drop_rate: float
) -> NDArray[np.float32]:
    """Every sample's Grad-CAM after ReLU, before normalisation: float32 (S, N, V)."""
    blocks_STGOL, centre_STL = _tile_affinity(affinity_SDV, grid)
    maps_SNV = np.empty((len(affinity_SDV), len(samples), affinity_SDV.shape[2]), np.float32)
    _sample_maps(
        blocks_STGOL,
        centre_STL,
        np.uint64(key & WORD),
        np.uint64(key >> 32),
        samples.start,
        np.uint32(keep_threshold(drop_rate)),
        maps_SNV,
    )
    return maps_SNV


def _tile_affinity(
    affinity_SDV: NDArray[np.float32], grid: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The affinity in tiles, divided by V: all offsets in blocks (S, T, G, O, L), and the centre's (S, T, L).

    Zero where the window lies off the grid and in the padding, so that the loops need no bounds. The centre
    offset, which is always kept, is taken out of the blocks.
    """
    num_classes, num_offsets, num_positions = affinity_SDV.shape
    num_blocks, num_tiles = -(-num_offsets // OFFSETS_PER_BLOCK), -(-num_positions // TILE)
    inside_DV = windows_inside(int(num_offsets**0.5 + 0.5), grid).numpy()
    padded = np.zeros((num_classes, num_blocks * OFFSETS_PER_BLOCK, num_tiles * TILE), np.float32)
    np.multiply(affinity_SDV, inside_DV / np.float32(num_positions), out=padded[:, :num_offsets, :num_positions])
    centre_STL = padded[:, num_offsets // 2].reshape(num_classes, num_tiles, TILE).copy()
    padded[:, num_offsets // 2] = 0
    blocks = padded.reshape(num_classes, num_blocks, OFFSETS_PER_BLOCK, num_tiles, TILE)
    return np.ascontiguousarray(blocks.transpose(0, 3, 1, 2, 4)), centre_STL


@numba.njit(inline="always")
def _philox(
    position: np.uint64,
    block: np.uint64,
    sample: np.uint64,
    stream: np.uint64,
    key_0: np.uint64,
    key_1: np.uint64,
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    """Philox4x32-10 of one counter, all in uint64 with 32 bits used."""
    c0, c1, c2, c3 = position, block, sample, stream
    for _ in range(PHILOX_ROUNDS):
        product_0, product_1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0, c1 = (product_1 >> _SHIFT) ^ c1 ^ key_0, product_1 & _WORD
        c2, c3 = (product_0 >> _SHIFT) ^ c3 ^ key_1, product_0 & _WORD
        key_0, key_1 = (key_0 + _KEY_STEP_0) & _WORD, (key_1 + _KEY_STEP_1) & _WORD
    return c0, c1, c2, c3


@numba.njit(cache=True, nogil=True)
def _sample_maps(
    blocks: NDArray[np.float32],
    centre: NDArray[np.float32],
    key_0: np.uint64,
    key_1: np.uint64,
    first_sample: int,
    threshold: np.uint32,
    maps: NDArray[np.float32],
) -> None:
    """Fills ``maps`` (S, N, V): the centre's affinity plus every kept offset's, negative sums set to zero."""
    num_classes, num_tiles, num_blocks = blocks.shape[:3]
    num_samples, num_positions = maps.shape[1:]
    words = np.empty((OFFSETS_PER_BLOCK // 2, TILE), np.uint32)
    kept = np.empty((GROUP, OFFSETS_PER_BLOCK, TILE), np.float32)
    sums = np.empty((num_classes, GROUP, TILE), np.float32)
    for tile in range(num_tiles):
        first = tile * TILE
        width = min(TILE, num_positions - first)
        for start in range(0, num_samples, GROUP):
            group = min(GROUP, num_samples - start)
            for c in range(num_classes):
                sums[c] = centre[c, tile]
            for block in range(num_blocks):
                for n in range(group):
                    _draw(kept[n], words, first, block, first_sample + start + n, key_0, key_1, threshold)
                for c in range(num_classes):
                    for n in range(group):
                        _add_kept(sums[c, n], blocks[c, tile, block], kept[n])
            for c in range(num_classes):
                for n in range(group):
                    for i in range(width):
                        maps[c, start + n, first + i] = max(sums[c, n, i], np.float32(0))


@numba.njit(inline="always")
def _draw(
    kept: NDArray[np.float32],
    words: NDArray[np.uint32],
    first: int,
    block: int,
    sample: int,
    key_0: np.uint64,
    key_1: np.uint64,
    threshold: np.uint32,
) -> None:
    """The masks (O, L) of one block of offsets at every position of a tile, as 0 and 1: drawn once for all classes.

    ``words`` (4, L) is room for what is drawn: the decisions are made in its 32-bit lanes, twice as many at once as
    the generator's 64-bit lanes.
    """
    for i in range(TILE):
        drawn = _philox(np.uint64(first + i), np.uint64(block), np.uint64(sample), _STREAM, key_0, key_1)
        for w in range(4):
            words[w, i] = drawn[w]
    for w in range(4):  # a word's low half decides first, then its high half
        for i in range(TILE):
            kept[2 * w, i] = (words[w, i] & _LOW_HALF) < threshold
            kept[2 * w + 1, i] = (words[w, i] >> _HALF) < threshold


@numba.njit(inline="always")
def _add_kept(sums: NDArray[np.float32], affinity: NDArray[np.float32], kept: NDArray[np.float32]) -> None:
    """Adds a block's eight offsets (O, L) where they are kept."""
    for i in range(TILE):
        total = sums[i]
        for d in range(OFFSETS_PER_BLOCK):
            total += affinity[d, i] * kept[d, i]
        sums[i] = total


@numba.njit(cache=True, nogil=True)
def _normalize_and_fold(maps: NDArray[np.float32], rank: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Divides each map by its value of that rank, clips to 1, folds to maximum and sum over samples."""
    num_classes, num_samples, num_positions = maps.shape
    maximum = np.zeros((num_classes, num_positions), np.float32)
    total = np.zeros((num_classes, num_positions), np.float64)
    for c in range(num_classes):
        for sample in range(num_samples):
            values = maps[c, sample]
            divisor = _largest(values) if rank == num_positions else value_of_rank(values, rank)
            if divisor == 0:
                divisor = _largest(values)
            if divisor == 0:
                continue  # an all-zero map adds nothing
            for i in range(num_positions):
                value = min(values[i] / divisor, np.float32(1))
                maximum[c, i] = max(maximum[c, i], value)
                total[c, i] += value
    return maximum, total


@numba.njit(inline="always")
def _largest(values: NDArray[np.float32]) -> np.float32:
    largest = np.float32(0)
    for i in range(len(values)):
        largest = max(largest, values[i])
    return largest


@numba.njit(inline="always")
def value_of_rank(values: NDArray[np.float32], rank: int) -> np.float32:
    """The value of a rank, from 1, among non-negative floats: exact, without sorting.

    Non-negative floats are ordered like their bit patterns, so the answer's bits are found from the highest
    down: the answer is the largest pattern that fewer than ``rank`` values lie below. Each bit costs one
    counting pass.
    """
    patterns = values.view(np.int32)
    answer = np.int32(0)
    for bit in range(NUM_BITS - 1, -1, -1):
        trial = np.int32(answer | np.int32(1 << bit))
        below = np.int32(0)
        for i in range(len(patterns)):
            below += np.int32(patterns[i] < trial)
        if below < rank:
            answer = trial
    result = np.empty(1, np.int32)
    result[0] = answer
    return result.view(np.float32)[0]
