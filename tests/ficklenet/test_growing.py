"""Seeded region growing against a naive flood fill, and what it may never do."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ficklenet.growing import grow_seeds

UNKNOWN = 255


def naive_growing(seeds: np.ndarray, probabilities: np.ndarray, present: np.ndarray) -> np.ndarray:
    """One image, seed by seed: a flood over the 8 neighbours that carry the seed's label."""
    num_labels, height, width = probabilities.shape
    labels = seeds.copy()
    for row, col in np.ndindex(height, width):
        candidates = [label for label in range(num_labels) if present[label]]
        best = max(candidates, key=lambda label: (probabilities[label, row, col], -label))
        if probabilities[best, row, col] > (0.99 if best == 0 else 0.85):
            labels[row, col] = best
    grown = seeds.copy()
    for start in zip(*np.nonzero((seeds < num_labels) & (labels == seeds)), strict=True):
        to_visit, visited = [start], {start}
        while to_visit:
            row, col = to_visit.pop()
            if seeds[row, col] >= num_labels:
                grown[row, col] = seeds[start]
            for place in [(row + i, col + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]:
                is_inside = 0 <= place[0] < height and 0 <= place[1] < width
                if is_inside and place not in visited and labels[place] == seeds[start]:
                    visited.add(place)
                    to_visit.append(place)
    return grown


@st.composite
def growing_cases(draw):
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    num_labels = draw(st.integers(2, 4))
    seeds = draw(arrays(np.int64, shape, elements=st.sampled_from([*range(num_labels), UNKNOWN, UNKNOWN, UNKNOWN])))
    winner = draw(arrays(np.int64, shape, elements=st.integers(0, num_labels - 1)))
    strength = draw(arrays(np.float64, shape, elements=st.sampled_from([0.5, 0.86, 0.995])))
    probabilities = np.stack([np.where(winner == label, strength, 0.001) for label in range(num_labels)])
    present = np.array([True, *draw(st.lists(st.booleans(), min_size=num_labels - 1, max_size=num_labels - 1))])
    return seeds, probabilities, present


def grown(seeds, probabilities, present):
    """One image through the batched function."""
    given = (torch.from_numpy(np.asarray(each))[None] for each in (seeds, probabilities, present))
    return grow_seeds(*given)[0].numpy()


@given(growing_cases())
@settings(max_examples=60, deadline=None)
def test_growing_equals_a_naive_flood_fill(case):
    np.testing.assert_array_equal(grown(*case), naive_growing(*case))


def certain(labels: np.ndarray, num_labels: int) -> np.ndarray:
    return np.stack([labels == label for label in range(num_labels)]).astype(np.float64)


def test_a_seed_follows_the_longest_winding_path():
    path = np.zeros((21, 21), np.int64)
    path[::2] = 1
    path[1::4, -1] = path[3::4, 0] = 1  # a snake of 220 and more steps
    seeds = np.full(path.shape, UNKNOWN)
    seeds[0, 0] = 1
    np.testing.assert_array_equal(grown(seeds, certain(path, 2), [True, True]) == 1, path == 1)


def test_regions_without_a_seed_and_absent_labels_do_not_grow():
    labels = np.array([[1, 1, 0, 1, 1], [2, 2, 0, 2, 2]])
    seeds = np.full(labels.shape, UNKNOWN)
    seeds[0, 0] = 1
    seeds[1, 0] = 2
    expected = np.array([[1, 1, 255, 255, 255], [2, 255, 255, 255, 255]])
    np.testing.assert_array_equal(grown(seeds, certain(labels, 3), [True, True, False]), expected)


def test_seeds_are_never_changed():
    generator = np.random.default_rng(0)
    seeds = generator.choice([0, 1, 2, UNKNOWN], (12, 12))
    result = grown(seeds, certain(generator.integers(0, 3, (12, 12)), 3), [True] * 3)
    np.testing.assert_array_equal(result[seeds != UNKNOWN], seeds[seeds != UNKNOWN])


@pytest.mark.parametrize("certainty", [0.0, 1.0])
def test_images_without_seeds_stay_unknown(certainty):
    seeds = np.full((5, 5), UNKNOWN)
    probabilities = np.stack([np.full((5, 5), 1 - certainty), np.full((5, 5), certainty)])
    np.testing.assert_array_equal(grown(seeds, probabilities, [True, True]), seeds)


def test_images_of_a_batch_do_not_mix():
    generator = np.random.default_rng(1)
    seeds = generator.choice([0, 1, UNKNOWN, UNKNOWN], (3, 8, 8))
    probabilities = np.stack([certain(generator.integers(0, 2, (8, 8)), 2) for _ in range(3)])
    present = np.array([[True, True], [True, False], [True, True]])
    together = grow_seeds(*(torch.from_numpy(each) for each in (seeds, probabilities, present)))
    alone = [grown(*each) for each in zip(seeds, probabilities, present, strict=True)]
    np.testing.assert_array_equal(together.numpy(), np.stack(alone))


def test_growing_is_no_part_of_the_graph():
    probabilities = torch.rand(1, 2, 4, 4, requires_grad=True)
    seeds = torch.zeros(1, 4, 4, dtype=torch.int64)
    assert not grow_seeds(seeds, probabilities.softmax(1), torch.ones(1, 2, dtype=torch.bool)).requires_grad
