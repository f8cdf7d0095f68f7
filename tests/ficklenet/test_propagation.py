"""The walk spreads evidence within what looks alike, on grids with a known border."""

import numpy as np
import pytest

from ficklenet.propagation import Likeness, transitions, walk

SIDE = 6


def two_halves() -> np.ndarray:
    """Features (2, 6, 6): the left half has channel 0, the right half channel 1."""
    features = np.zeros((2, SIDE, SIDE), np.float16)
    features[0, :, :3] = features[1, :, 3:] = 2
    return features


def a_point() -> np.ndarray:
    maps = np.zeros((1, SIDE, SIDE), np.float32)
    maps[0, 2, 1] = 1
    return maps


def test_every_cell_takes_shares_that_sum_to_one_from_cells_within_the_radius():
    matrix = transitions([np.ones((1, SIDE, SIDE))], None, Likeness(radius=1, colour_deviation=None)).toarray()
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-6)
    np.testing.assert_array_equal(np.flatnonzero(matrix[7]), [1, 6, 7, 8, 13])  # (1, 1) and its four neighbours
    np.testing.assert_allclose(matrix[0, [0, 1, 6]], 1 / 3, rtol=1e-6)  # a corner has two neighbours


def test_diagonal_neighbours_are_joined_in_both_directions():
    matrix = transitions([np.ones((1, 4, 4))], None, Likeness(radius=2, colour_deviation=None)).toarray() > 0
    assert matrix[5, 0] and matrix[5, 2] and matrix[5, 8] and matrix[5, 10]
    np.testing.assert_array_equal(matrix, matrix.T)
    assert not matrix[0, 10]  # two down, two right lies outside a disc of radius 2


def test_evidence_does_not_cross_a_border_between_features():
    matrix = transitions([two_halves()], None, Likeness(radius=3, colour_deviation=None))
    spread = walk(matrix, a_point(), num_steps=30)[0]
    assert not spread[:, 3:].any()
    assert spread[:, :3].min() > 0.5 * spread[:, :3].max()  # and is nearly even on its own side


def test_one_stage_that_differs_is_enough_to_stop_the_walk():
    alike = np.ones((1, SIDE, SIDE), np.float32)
    matrix = transitions([alike, two_halves()], None, Likeness(radius=3, colour_deviation=None))
    assert not walk(matrix, a_point(), num_steps=5)[0, :, 3:].any()


def test_colours_hold_the_walk_back_where_features_are_alike():
    alike, colours = np.ones((1, SIDE, SIDE)), np.zeros((SIDE, SIDE, 3), np.uint8)
    colours[:, 3:] = 255
    spread = walk(transitions([alike], colours, Likeness(colour_deviation=30.0)), a_point(), num_steps=5)
    assert spread[0, :, 3:].max() < 1e-6


def test_a_map_that_is_even_stays_as_it_is_and_restart_keeps_the_given_map():
    matrix = transitions([two_halves()], None, Likeness(radius=2, colour_deviation=None))
    np.testing.assert_allclose(walk(matrix, np.ones((2, SIDE, SIDE)), 7), 1, rtol=1e-5)
    np.testing.assert_allclose(walk(matrix, a_point(), 3, restart=1.0), a_point())
    assert walk(matrix, a_point(), 3, restart=0.5)[0, 2, 1] > 0.5


def test_no_step_changes_nothing_and_classes_do_not_mix():
    matrix = transitions([two_halves()], None, Likeness(radius=2, colour_deviation=None))
    both = np.concatenate([a_point(), np.zeros_like(a_point())])
    np.testing.assert_array_equal(walk(matrix, both, 0), both)
    assert not walk(matrix, both, 4)[1].any()


def test_cells_without_features_are_joined_to_none():
    features = two_halves()
    features[:, 0, 0] = 0
    matrix = transitions([features], None, Likeness(radius=2, colour_deviation=None)).toarray()
    assert matrix[0, 0] == pytest.approx(1)
