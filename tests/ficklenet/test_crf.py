"""The dense CRF on a drawn edge."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from ficklenet.crf import AT_IMAGE_SIZE, AT_MAP_SIZE, refine

SIZE = 48


def two_halves() -> tuple[np.ndarray, np.ndarray]:
    """An image with an edge in the middle, and probabilities whose edge is 6 pixels off and unsure."""
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    image[:, SIZE // 2 :] = (200, 60, 40)
    right = np.full((SIZE, SIZE), 0.4, np.float32)
    right[:, SIZE // 2 + 6 :] = 0.8
    right[:, : SIZE // 4] = 0.1
    return image, np.stack([1 - right, right])


def test_labels_move_to_the_edge_of_the_image():
    image, probabilities = two_halves()
    refined = refine(probabilities, image)
    np.testing.assert_array_equal(refined.argmax(0), np.tile(np.arange(SIZE) >= SIZE // 2, (SIZE, 1)))
    np.testing.assert_allclose(refined.sum(0), 1, atol=1e-4)


def test_images_that_may_not_be_written_to_are_taken_and_left_alone():
    image, probabilities = two_halves()
    read_only = image.copy()
    read_only.flags.writeable = False
    mirrored = np.ascontiguousarray(image[:, ::-1])[:, ::-1]  # equal pixels, another memory layout
    expected = refine(probabilities, image)
    np.testing.assert_array_equal(refine(probabilities, read_only), expected)
    np.testing.assert_array_equal(refine(probabilities, mirrored), expected)


def test_map_size_is_a_twelfth_of_image_size():
    assert AT_MAP_SIZE.bilateral_distance * 12 == pytest.approx(AT_IMAGE_SIZE.bilateral_distance)
    assert AT_MAP_SIZE.gaussian_distance * 12 == pytest.approx(AT_IMAGE_SIZE.gaussian_distance)
    image, probabilities = two_halves()
    near = refine(probabilities[:, ::4, ::4], image[::4, ::4], AT_MAP_SIZE)
    assert near.shape == (2, 12, 12) and np.isfinite(near).all()


def test_certain_probabilities_stay_finite():
    image, _ = two_halves()
    certain = np.stack([np.ones((SIZE, SIZE)), np.zeros((SIZE, SIZE))])
    assert (refine(certain, image).argmax(0) == 0).all()


def test_linear_energy_is_the_negative_probability_itself():
    image, probabilities = two_halves()
    no_neighbours = replace(AT_IMAGE_SIZE, bilateral_weight=0.0, gaussian_weight=0.0, energy="linear")
    expected = torch.from_numpy(probabilities).softmax(0)
    np.testing.assert_allclose(refine(probabilities, image, no_neighbours), expected, atol=1e-6)


def test_sizes_that_differ_are_refused():
    image, probabilities = two_halves()
    with pytest.raises(ValueError, match="same height and width"):
        refine(probabilities, image[:-1])


def test_absent_package_is_named(monkeypatch):
    image, probabilities = two_halves()
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    with pytest.raises(ValueError, match="pip install pydensecrf2"):
        refine(probabilities, image)
