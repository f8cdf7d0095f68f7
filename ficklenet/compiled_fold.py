"""Folds the maps of the compiled sampler: each is divided by its value of a given rank, then maximum, sum and votes.

It does the same as ``ficklenet.folding``, in one pass over each map. It needs numba.

Shape legend: S classes, N samples, V positions.
"""

import numba
import numpy as np
from numpy.typing import NDArray

BEYOND_INFINITY = np.int32(0x7F800001)  # above the bit pattern of every float32 that is not NaN
REACH = 2**19  # about 5 % of a value, in bit patterns: most samples' values of a rank differ by less


@numba.njit(cache=True, nogil=True)
def normalize_and_fold(
    maps: NDArray[np.float32], rank: int, is_voting: bool, vote_threshold: np.float32
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.int32]]:
    """Divides each of the maps (S, N, V) by its value of this rank, clips to 1 and folds over the samples: maximum, sum
    and number of values above the threshold, each (S, V). The last is (0, V) if ``is_voting`` is false.

    Non-negative floats have the same order as their bit patterns. The compiler makes vector instructions from
    comparisons of integers, because integers have no NaN.
    """
    num_classes, num_samples, num_positions = maps.shape
    maximum = np.zeros((num_classes, num_positions), np.float32)
    total = np.zeros((num_classes, num_positions), np.float64)
    votes = np.zeros((num_classes if is_voting else 0, num_positions), np.int32)
    found = np.zeros(1, np.int32)
    divisor = found.view(np.float32)  # the found pattern as a float
    for c in range(num_classes):
        for sample in range(num_samples):
            values = maps[c, sample]
            patterns = values.view(np.int32)
            if rank == num_positions:
                found[0] = _largest(patterns)
            else:  # the previous sample's value is the guess
                found[0] = pattern_of_rank(patterns, rank, found[0])
            if found[0] == 0:
                found[0] = _largest(patterns)
            if found[0] == 0:
                continue  # an all-zero map adds nothing
            _fold(maximum[c], total[c], values, divisor[0])
            if is_voting:
                _vote(votes[c], values, divisor[0], vote_threshold)
    return maximum, total, votes


@numba.njit(inline="always")
def _fold(
    maximum: NDArray[np.float32], total: NDArray[np.float64], values: NDArray[np.float32], divisor: np.float32
) -> None:
    for i in range(len(values)):
        value = min(values[i] / divisor, np.float32(1))
        maximum[i] = max(maximum[i], value)
        total[i] += value


@numba.njit(inline="always")
def _vote(
    votes: NDArray[np.int32], values: NDArray[np.float32], divisor: np.float32, vote_threshold: np.float32
) -> None:
    for i in range(len(values)):
        votes[i] += np.int32(values[i] / divisor > vote_threshold)


@numba.njit(cache=True, nogil=True)
def pattern_of_rank(patterns: NDArray[np.int32], rank: int, guess: int) -> int:
    """The bit pattern with a given rank (from 1) among those of non-negative floats, exact and without sorting.

    It counts the patterns below a limit. The first limits are on both sides of the guess, which is the result for a
    similar map. Then limits alternate between the place that the counts suggest and the middle of the remaining range,
    so that the search ends for all values.
    """
    low, below_low = 0, 0  # the result is not below it, because fewer than rank patterns are
    high, below_high = int(BEYOND_INFINITY), len(patterns)  # the result is below it, because at least rank patterns are
    passes = 0
    while below_low < rank - 1 and below_high > rank and high - low > 1:
        if passes == 0:
            trial = guess - REACH
        elif passes == 1:
            trial = guess + REACH
        elif passes % 3 == 1:
            trial = (low + high) // 2
        else:
            share = (rank - 0.5 - below_low) / (below_high - below_low)
            trial = low + int(share * (high - low))
        trial = min(max(trial, low + 1), high - 1)
        below = int(_count_below(patterns, np.int32(trial)))
        if below < rank:
            low, below_low = trial, below
        else:
            high, below_high = trial, below
        passes += 1
    if high - low == 1:
        return low
    if below_low == rank - 1:
        return int(_smallest_from(patterns, np.int32(low)))
    return int(_largest_below(patterns, np.int32(high)))


@numba.njit(inline="always")
def _count_below(patterns: NDArray[np.int32], limit: np.int32) -> np.int32:
    count = np.int32(0)
    for i in range(len(patterns)):
        count = np.int32(count + np.int32(patterns[i] < limit))  # numba would widen the sum to 64 bits
    return count


@numba.njit(inline="always")
def _smallest_from(patterns: NDArray[np.int32], limit: np.int32) -> np.int32:
    smallest = BEYOND_INFINITY
    for i in range(len(patterns)):
        smallest = min(smallest, patterns[i] if patterns[i] >= limit else BEYOND_INFINITY)
    return smallest


@numba.njit(inline="always")
def _largest_below(patterns: NDArray[np.int32], limit: np.int32) -> np.int32:
    largest = np.int32(0)
    for i in range(len(patterns)):
        largest = max(largest, patterns[i] if patterns[i] < limit else np.int32(0))
    return largest


@numba.njit(inline="always")
def _largest(patterns: NDArray[np.int32]) -> np.int32:
    largest = np.int32(0)
    for i in range(len(patterns)):
        largest = max(largest, patterns[i])
    return largest
