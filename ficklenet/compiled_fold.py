"""From the maps of the compiled sampler to their fold: each is divided by its value of a rank, then maximum, sum and
votes.

The same as ``ficklenet.folding`` in one pass over each map. Needs numba.

Shape legend: S classes, N samples, V positions.
"""

import numba
import numpy as np
from numpy.typing import NDArray

BEYOND_INFINITY = np.int32(0x7F800001)  # above the bit pattern of every float32 that is not NaN
REACH = 2**19  # about 5 % of a value, in bit patterns: how far most samples' values of a rank lie apart


@numba.njit(cache=True, nogil=True)
def normalize_and_fold(
    maps: NDArray[np.float32], rank: int, is_voting: bool, vote_threshold: np.float32
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.int32]]:
    """Divides each of the maps (S, N, V) by its value of that rank, clips to 1, folds over samples to maximum, sum
    and the number of values above the threshold, (S, V) each; the last is (0, V) where ``is_voting`` is false.

    Non-negative floats are ordered like their bit patterns, and integers are compared and counted without regard
    to NaN: that is what the compiler turns into vector instructions.
    """
    num_classes, num_samples, num_positions = maps.shape
    maximum = np.zeros((num_classes, num_positions), np.float32)
    total = np.zeros((num_classes, num_positions), np.float64)
    votes = np.zeros((num_classes if is_voting else 0, num_positions), np.int32)
    found = np.zeros(1, np.int32)
    divisor = found.view(np.float32)  # the float of the pattern that is found
    for c in range(num_classes):
        for sample in range(num_samples):
            values = maps[c, sample]
            patterns = values.view(np.int32)
            if rank == num_positions:
                found[0] = _largest(patterns)
            else:  # the sample before gives the guess
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
    """The bit pattern of a rank, from 1, among those of non-negative floats: exact, without sorting.

    Counts how many lie below a trial, first on both sides of the guess, such as the answer for a similar map, then
    by turns where the counts so far suggest it and, so that it ends whatever the values are, in the middle.
    """
    low, below_low = 0, 0  # the answer is not below it, as fewer than rank are
    high, below_high = int(BEYOND_INFINITY), len(patterns)  # the answer is below it, as at least rank are
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
