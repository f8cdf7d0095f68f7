"""Ten dropout decisions from one random draw, with a table of the 1024 patterns of ten kept or dropped offsets.

A random number for every offset would be wasteful: at drop rate 0.9, a decision has less than half a bit of
information. So ten offsets are decided together. Their *pattern* is a number below 1024; bit i says that offset i is
kept. For independent offsets with keep rate q, the probability of a pattern with k bits set is
q ** k * (1 - q) ** (10 - k). For any drop rate, a draw from the 1024 patterns takes one 31-bit random number and one
table look-up (Walker's alias method, ACM TOMS 1977, in the integer form of Vose, IEEE TSE 1991):

    column = draw & 1023, height = draw >> 10, entry = table[column]
    pattern = column if height < entry >> 10 else entry & 1023

All probabilities are multiples of 2 ** -31, and all patterns with the same number of bits have the same probability. So
all offsets are kept with exactly the same probability, ``DrawTable.keep_rate``, which differs from ``1 - drop_rate`` by
less than 1e-7. The expectation over the masks uses this number.
"""

import functools
from fractions import Fraction
from math import comb
from numbers import Real
from typing import NamedTuple

OFFSETS_PER_DRAW = 10
NUM_PATTERNS = 2**OFFSETS_PER_DRAW
DRAW_BITS = 31  # so that draws and entries are non-negative int32 in all samplers
_HEIGHT = 2 ** (DRAW_BITS - OFFSETS_PER_DRAW)  # the weight of one column


class DrawTable(NamedTuple):
    """The table that turns draws into patterns.

    Attributes:
        entries: 1024 integers in [0, 2**31): a height, shifted left by 10, plus the pattern above this height.
        keep_rate: the exact probability that an offset is kept.
    """

    entries: tuple[int, ...]
    keep_rate: float


@functools.cache
def draw_table(drop_rate: float) -> DrawTable:
    """The table for a drop rate. It is made with exact numbers only, so it is the same on every machine.

    Raises:
        ValueError: ``drop_rate`` is not in [0, 1].
    """
    if not isinstance(drop_rate, Real) or not 0.0 <= drop_rate <= 1.0:
        raise ValueError(
            f"drop_rate: {drop_rate} given; it is a probability, give a number from 0 to 1. A trained classifier has "
            "its own: classifier.spec.drop_rate."
        )
    weights = _weights_by_num_kept(1 - Fraction(drop_rate))
    num_kept = (comb(OFFSETS_PER_DRAW - 1, k - 1) * weights[k] for k in range(1, OFFSETS_PER_DRAW + 1))
    entries = _alias_entries([weights[pattern.bit_count()] for pattern in range(NUM_PATTERNS)])
    return DrawTable(tuple(entries), sum(num_kept) / 2**DRAW_BITS)


def _weights_by_num_kept(keep_rate: Fraction) -> list[int]:
    """The number of the 2**31 draws that give one pattern with k kept offsets, for k = 0 .. 10."""
    size = OFFSETS_PER_DRAW
    weights = [round(keep_rate**k * (1 - keep_rate) ** (size - k) * 2**DRAW_BITS) for k in range(size + 1)]
    missing = 2**DRAW_BITS - sum(comb(size, k) * weight for k, weight in enumerate(weights))
    # The remainder of the rounding goes to "none kept" or "all kept", whichever is likelier; each is a single pattern.
    weights[0 if weights[0] >= weights[size] else size] += missing
    return weights


def _alias_entries(weights: list[int]) -> list[int]:
    """Fills columns of equal height with at most two patterns each: its own pattern below, and an alias above."""
    left = list(weights)
    entries = [_entry(_HEIGHT - 1, pattern) for pattern in range(NUM_PATTERNS)]  # a column with only its own pattern
    small = [pattern for pattern in range(NUM_PATTERNS) if left[pattern] < _HEIGHT]
    large = [pattern for pattern in range(NUM_PATTERNS) if left[pattern] > _HEIGHT]
    while small:  # the weights sum to the size of all columns, so there is a large one for every small one
        column, alias = small.pop(), large[-1]
        entries[column] = _entry(left[column], alias)
        left[alias] -= _HEIGHT - left[column]
        if left[alias] <= _HEIGHT:
            large.pop()
        if left[alias] < _HEIGHT:
            small.append(alias)
    return entries


def _entry(height: int, alias: int) -> int:
    return height << OFFSETS_PER_DRAW | alias
