"""What the figures of the report's page mean."""

import numpy as np
import pytest

from ficklenet.metrics import disagreement, seed_error
from jobs.reporting.curves import training_curves
from jobs.reporting.gallery import spread
from jobs.reporting.palette import label_palette
from jobs.reporting.segmentation import most_telling
from jobs.reporting.templates import environment
from jobs.reporting.thumbnails import DOUBT, MISSED


def test_disagreement_is_the_share_of_seeded_cells_that_the_mean_does_not_seed():
    maximum, mean = np.array([0.9, 0.8, 0.5, 0.4, 0.1]), np.array([0.6, 0.35, 0.2, 0.1, 0.1])

    assert disagreement(maximum, mean, 0.35) == pytest.approx(3 / 4)
    assert disagreement(maximum, maximum, 0.35) == 0
    assert disagreement(maximum, mean, 0.95) is None


def test_seed_error_is_one_minus_the_intersection_over_union():
    seed, truth = np.array([1, 1, 1, 0, 0], bool), np.array([0, 1, 1, 1, 0], bool)

    assert seed_error(seed, truth) == pytest.approx(1 - 2 / 4)
    assert seed_error(~seed & ~truth & False, truth & False) is None


def test_sample_is_spread_evenly_and_holds_every_image_where_there_are_few():
    assert spread(np.arange(100, 1100), 3) == [100, 599, 1099]
    assert spread(np.array([4, 8, 9]), 200) == [4, 8, 9]
    assert spread(np.array([4, 8, 9]), 0) == []


def test_worst_images_come_first_and_images_without_a_mask_are_spread_evenly():
    errors = {0: 0.2, 1: 0.9} | dict.fromkeys(range(2, 102))
    assert most_telling(errors, 5) == [1, 0, 2, 51, 101]
    assert most_telling(errors, 1) == [1]
    assert most_telling({0: 0.2}, 5) == [0]


def test_a_small_score_keeps_the_sign_that_decides():
    template = environment().from_string("{% for value in values %}{{ value | signed }} {% endfor %}")
    assert template.render(values=[-0.004, 0.03, 2.34, -1.0]) == "-0.004 +0.03 +2.3 -1.0 "


def test_doubtful_cells_have_a_colour_far_from_those_of_the_classes():
    def apart(colour: tuple[int, int, int]) -> float:
        return float(np.linalg.norm(label_palette()[1:21].astype(float) - colour, axis=1).min())

    assert apart(DOUBT) > 1.3 * apart(MISSED)


def test_curves_leave_out_what_was_not_measured():
    lines = [{"epoch": 1, "loss": 0.5, "val_map": float("nan")}, {"epoch": 2, "loss": 0.25, "val_map": 0.75}]

    loss, val_map = training_curves(lines)

    assert [point.value for point in loss.points] == [0.5, 0.25]
    assert loss.points[0].y < loss.points[1].y  # downwards
    assert [point.epoch for point in val_map.points] == [2]
    assert training_curves([]) == []
