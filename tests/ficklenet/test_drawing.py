"""The drawn scenes: reproducible, truthful, and as hard as they claim."""

import numpy as np
import pytest

from ficklenet.drawing import DRAWN_CLASS_NAMES, draw_scene

SCENES = [draw_scene(index) for index in range(40)]


def test_scene_is_a_function_of_seed_and_index():
    first, again = draw_scene(3, seed=5), draw_scene(3, seed=5)
    assert np.array_equal(first.image, again.image) and np.array_equal(first.mask, again.mask)
    assert not np.array_equal(first.image, draw_scene(4, seed=5).image)
    assert not np.array_equal(first.image, draw_scene(3, seed=6).image)


def test_labels_and_mask_agree():
    for scene in SCENES:
        assert scene.image.shape == (120, 160, 3) and scene.image.dtype == np.uint8
        assert scene.mask.shape == (120, 160) and scene.mask.dtype == np.uint8
        assert tuple(value - 1 for value in np.unique(scene.mask) if value) == scene.labels
        assert 1 <= len(scene.labels) <= 3


def test_every_class_and_every_number_of_objects_occurs():
    assert {label for scene in SCENES for label in scene.labels} == set(range(len(DRAWN_CLASS_NAMES)))
    assert {len(scene.labels) for scene in SCENES} == {1, 2, 3}


def test_objects_are_large_and_leave_ground():
    for scene in SCENES:
        assert 0.2 < (scene.mask == 0).mean() < 0.98
        for label in scene.labels:
            assert (scene.mask == label + 1).mean() > 0.02


def test_bodies_are_plain_but_for_a_small_white_badge():
    for scene in SCENES:
        for label in scene.labels:
            pixels = scene.image[scene.mask == label + 1].astype(int)
            white = (pixels.min(1) > 215).mean()
            assert 0.02 < white < 0.25


def test_other_sizes_and_fewer_classes_are_drawn():
    scene = draw_scene(0, size=(64, 48), num_classes=2)
    assert scene.image.shape == (64, 48, 3) and set(scene.labels) <= {0, 1}
    with pytest.raises(ValueError, match="num_classes: 9 given; give 1 to 5"):
        draw_scene(0, num_classes=9)
