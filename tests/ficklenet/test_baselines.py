"""The maps that seeds must beat, on grids small enough to work out by hand."""

import numpy as np
import pytest

from ficklenet.baselines import all_ones, blurred, centred_gaussian, dilated

POINT = np.zeros((1, 5, 5), np.float32)
POINT[0, 2, 2] = 1


def test_all_ones_covers_every_cell_of_every_class():
    maps = all_ones(2, (3, 4))
    assert maps.shape == (2, 3, 4) and maps.dtype == np.float32 and (maps == 1).all()


def test_the_gaussian_is_one_in_the_centre_and_falls_with_the_distance_in_half_sides():
    maps = centred_gaussian(2, (5, 9), width=1.0)
    assert maps.shape == (2, 5, 9) and maps[0, 2, 4] == 1
    assert maps[1, 0, 4] == maps[1, 2, 0] == pytest.approx(np.exp(-0.5))  # the middles of two sides
    assert maps[0, 0, 0] == pytest.approx(np.exp(-1.0))


def test_a_gaussian_without_width_is_refused():
    with pytest.raises(ValueError, match="width 0"):
        centred_gaussian(1, (5, 5), 0)


def test_blurring_spreads_a_map_and_keeps_its_maximum_at_one():
    maps = blurred(POINT * 0.25, sigma=1.0)
    assert maps[0, 2, 2] == 1 and maps[0, 2, 3] == pytest.approx(np.exp(-0.5), abs=1e-6)


def test_blurring_does_not_mix_classes_and_leaves_an_empty_map_empty():
    both = np.concatenate([POINT, np.zeros_like(POINT)])
    assert not blurred(both, sigma=2.0)[1].any()


def test_dilation_takes_the_largest_value_within_a_disc():
    around = dilated(POINT, radius=1)[0]
    assert around.sum() == 5 and around[2, 1] == 1 and around[1, 1] == 0  # a disc of radius 1 has no corners
    np.testing.assert_array_equal(dilated(POINT, radius=0), POINT)


def test_dilation_does_not_mix_classes():
    both = np.concatenate([POINT, np.zeros_like(POINT)])
    assert not dilated(both, radius=2)[1].any()
