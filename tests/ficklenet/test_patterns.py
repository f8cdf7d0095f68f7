"""Ten decisions by one draw: the table's distribution, exactly."""

import hashlib
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ficklenet.patterns import DRAW_BITS, NUM_PATTERNS, draw_table

ENTRIES_VECTOR = {  # SHA-256 of the entries as little-endian int32
    0.9: "1e3a02cd4a1b5948b34a26c8fc388281d057483814f75b2644ac86a2c145d801",
    0.7: "96c095c4e27e1fb7f28c649c4c1fa16bafc79f28548892e956d3b46aa19599b2",
    0.3: "fc945416bd451e478e600eb66475f7a0e6f568ba87ea75a798d5874ecc7e0c5e",
}


def weights(drop_rate):
    """How many of the 2**31 draws give each pattern, read off the table."""
    found = Counter()
    for column, entry in enumerate(draw_table(drop_rate).entries):
        height, alias = entry >> 10, entry & 1023
        found[column] += height
        found[alias] += 2**21 - height
    return [found[pattern] for pattern in range(NUM_PATTERNS)]


@given(st.floats(0, 1))
@example(0.0)
@example(1.0)
@example(0.9)
@example(5e-324)
@settings(deadline=None, max_examples=40)
def test_patterns_have_the_probabilities_of_ten_independent_decisions(drop_rate):
    counts, keep = weights(drop_rate), 1 - Fraction(drop_rate)
    assert sum(counts) == 2**DRAW_BITS and all(0 <= entry < 2**31 for entry in draw_table(drop_rate).entries)
    for pattern, count in enumerate(counts):
        num_kept = pattern.bit_count()
        exact = keep**num_kept * (1 - keep) ** (10 - num_kept) * 2**DRAW_BITS
        assert abs(count - exact) <= (512 if num_kept in (0, 10) else 0.5)  # one of these takes the remainder


@given(st.floats(0, 1))
@example(0.9)
@settings(deadline=None, max_examples=40)
def test_every_offset_is_kept_with_exactly_the_stated_rate(drop_rate):
    counts, rate = weights(drop_rate), draw_table(drop_rate).keep_rate
    for bit in range(10):
        assert sum(count for pattern, count in enumerate(counts) if pattern >> bit & 1) == rate * 2**DRAW_BITS
    assert abs(rate - (1 - drop_rate)) < 1e-7


@pytest.mark.parametrize(("drop_rate", "digest"), ENTRIES_VECTOR.items())
def test_tables_match_committed_digests(drop_rate, digest):
    entries = np.array(draw_table(drop_rate).entries, "<i4")
    assert hashlib.sha256(entries.tobytes()).hexdigest() == digest


@pytest.mark.parametrize(("drop_rate", "rate"), [(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)])
def test_rates_that_a_draw_can_express_are_exact(drop_rate, rate):
    assert draw_table(drop_rate).keep_rate == rate
    counts = weights(drop_rate)
    assert counts == [
        rate ** pattern.bit_count() * (1 - rate) ** (10 - pattern.bit_count()) * 2**DRAW_BITS
        for pattern in range(NUM_PATTERNS)
    ]


@pytest.mark.parametrize("drop_rate", [-0.1, 1.1, float("nan")])
def test_what_is_no_probability_is_refused(drop_rate):
    with pytest.raises(ValueError, match=r"drop_rate: .* given; it is a probability"):
        draw_table(drop_rate)
