"""Thresholds that are chosen without masks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ficklenet.calibration import theta_without_masks


def test_the_given_share_of_cells_lies_above_theta():
    evidence = [np.arange(60).reshape(6, 10), np.arange(60, 100)]  # images of other sizes count cell by cell
    theta = theta_without_masks(evidence, 0.05)
    assert theta == 94 and sum((maps > theta).sum() for maps in evidence) == 5


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.floats(0, 0.99))
def test_never_more_than_the_share_lies_above_and_no_lower_theta_would_do(values, rate):
    maps = np.array(values, float)
    theta = theta_without_masks([maps], rate)
    assert (maps > theta).mean() <= rate
    lower = maps[maps < theta]
    if lower.size:
        assert (maps > lower.max()).mean() > rate


def test_without_an_image_that_lacks_the_class_there_is_no_theta():
    with pytest.raises(ValueError, match="no image without"):
        theta_without_masks([], 0.05)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_rate_that_is_no_share_is_refused(rate):
    with pytest.raises(ValueError, match="false_positive_rate"):
        theta_without_masks([np.ones(3)], rate)
