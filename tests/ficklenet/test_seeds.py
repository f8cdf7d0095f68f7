"""Aggregation, background cue and densification on grids small enough to work out by hand."""

import numpy as np
import pytest

from ficklenet.seeds import aggregate, background_cue, dense_scores, densify, resize_labels

IGNORED = 255
NOWHERE = np.zeros((1, 4), bool)


def maps(*rows: list[float]) -> np.ndarray:
    """(S, 1, W) of one row per slot."""
    return np.array(rows, np.float32)[:, None, :]


def seeds(
    max_, mean, classes, background=NOWHERE, theta=0.35, priority="background", ignore_value=IGNORED
) -> list[int]:
    labels = aggregate(
        max_, mean, np.array(classes), background, theta=theta, priority=priority, ignore_value=ignore_value
    )
    return labels[0].tolist()


def test_a_class_is_seeded_only_where_its_maximum_exceeds_theta():
    evidence = maps([0.0, 0.5, 0.51, 1.0])
    assert seeds(evidence, evidence, [2], theta=0.5) == [IGNORED, IGNORED, 3, 3]


def test_of_several_seeded_classes_the_highest_mean_wins():
    max_ = maps([1.0, 1.0, 0.4, 0.9], [0.9, 1.0, 0.9, 0.3])
    mean = maps([0.2, 0.5, 0.1, 0.1], [0.3, 0.4, 0.1, 0.9])
    assert seeds(max_, mean, [0, 4]) == [5, 1, 1, 1]  # an equal mean: the lower class; an unseeded class never


def test_background_and_foreground_meet_by_priority():
    evidence = maps([1.0, 1.0, 0.0, 0.0])
    background = np.array([[True, False, True, False]])
    assert seeds(evidence, evidence, [0], background) == [0, 1, 0, IGNORED]
    assert seeds(evidence, evidence, [0], background, priority="foreground") == [1, 1, 0, IGNORED]


def test_an_image_without_mapped_classes_is_ignored_even_where_the_cue_says_background():
    nothing = np.zeros((0, 1, 4), np.float32)
    assert seeds(nothing, nothing, [], ~NOWHERE) == [IGNORED] * 4


def test_long_class_lists_have_their_own_ignore_value():
    evidence = maps([1.0, 0.0, 0.0, 0.0])
    assert seeds(evidence, evidence, [254], ignore_value=65535) == [255, 65535, 65535, 65535]


def test_background_is_unsalient_or_without_saliency_lacks_every_class():
    max_ = maps([0.05, 0.05, 0.5, 0.0], [0.0, 0.2, 0.0, 0.0])
    thresholds = {"saliency_threshold": 0.06, "evidence_threshold": 0.1}
    saliency = np.array([[0.059, 0.06, 0.0, 1.0]])
    assert background_cue(max_, saliency, **thresholds).tolist() == [[True, False, True, False]]
    assert background_cue(max_, None, **thresholds).tolist() == [[True, False, False, True]]


def test_densified_seeds_label_every_cell_by_the_strongest_evidence():
    max_ = maps([0.9, 0.4, 0.8, 0.0], [0.0, 0.0, 1.0, 0.0])
    scores = dense_scores(max_, None, background_exponent=1.0)
    np.testing.assert_allclose(
        scores[:, 0], [[0.1, 0.6, 0.0, 1.0], [0.9, 0.4, 0.8, 0.0], [0.0, 0.0, 1.0, 0.0]], atol=1e-6
    )
    assert densify(scores, np.array([1, 3])).tolist() == [[2, 0, 4, 0]]


def test_saliency_is_the_background_of_densified_seeds():
    evidence = maps([0.9, 0.4, 1.0, 0.0])
    saliency = np.array([[0.0, 1.0, 0.5, 0.0]], np.float32)
    scores = dense_scores(evidence, saliency, background_exponent=1.0)
    assert densify(scores, np.array([0])).tolist() == [[0, 1, 1, 0]]


def test_a_smaller_exponent_grows_the_background():
    evidence = maps([0.6, 0.6, 0.6, 0.6])
    labels = [
        densify(dense_scores(evidence, None, background_exponent=power), np.array([0]))[0, 0] for power in (1.0, 0.25)
    ]
    assert labels == [1, 0]


@pytest.mark.parametrize("size", [(9, 9), (321, 321)])
def test_cell_i_takes_the_label_of_pixel_8_i_and_gives_it_back(size):
    rows, cols = np.mgrid[:321, :321]
    at_cells = resize_labels(rows // 8 + cols, (41, 41))
    np.testing.assert_array_equal(at_cells, (rows // 8 + cols)[::8, ::8])
    enlarged = resize_labels(at_cells, (321, 321))
    np.testing.assert_array_equal(enlarged[::8, ::8], at_cells)
    assert resize_labels(at_cells, size)[-1, -1] == at_cells[-1, -1]
    assert enlarged[3, 0] == at_cells[0, 0] and enlarged[5, 0] == at_cells[1, 0]  # the border lies between cells
