"""Geometry and colour of network inputs, and of maps on the way back."""

import sys

import numpy as np
import pytest
import torch
from torch.nn import functional

from ficklenet.resampling import LARGEST_CROP_SCALE, MEAN_COLOUR, _sparse, resize_square, training_crop
from ficklenet.transforms import normalize, resize_maps


def random_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def ramp(height, width):
    """Red grows with the column, green with the row, from 0 to 250: linear, so resampling keeps it."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.rint(np.linspace(0, 250, width))[None, :]
    image[..., 1] = np.rint(np.linspace(0, 250, height))[:, None]
    return image


def test_normalize_gives_imagenet_statistics():
    white = normalize(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8))
    assert white.dtype == torch.float32
    assert torch.allclose(
        white[0, :, 0, 0], (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    )
    mean = torch.tensor(MEAN_COLOUR, dtype=torch.uint8).view(1, 3, 1, 1)
    assert normalize(mean).abs().max() < 0.01


@pytest.mark.parametrize("shape", [(20, 30), (33, 33), (5, 33), (1, 7)])
def test_enlarging_equals_plain_bilinear_with_aligned_corners(shape):
    image = random_image(*shape)
    expected = functional.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None].double(), (33, 33), mode="bilinear", align_corners=True
    )[0]
    resized = resize_square(image, 33)
    assert resized.shape == (3, 33, 33) and resized.dtype == np.uint8
    assert np.abs(resized - expected.numpy()).max() <= 0.501  # rounding to a byte


def test_same_size_changes_nothing():
    image = random_image(33, 33)
    assert np.array_equal(resize_square(image, 33), image.transpose(2, 0, 1))


@pytest.mark.parametrize("shape", [(200, 300), (97, 500)])
def test_shrinking_keeps_corners_and_straight_ramps(shape):
    resized = resize_square(ramp(*shape), 33).astype(float)
    inner = slice(3, -3)  # at the border the widened triangle has one side only
    expected = np.linspace(0, 250, 33)
    assert np.abs(resized[0, :, inner] - expected[None, inner]).max() <= 1.5
    assert np.abs(resized[1, inner, :] - expected[inner, None]).max() <= 1.5


def test_shrinking_averages_fine_texture_instead_of_aliasing():
    stripes = np.zeros((330, 330, 3), np.uint8)
    stripes[:, ::2] = 255
    resized = resize_square(stripes, 33).astype(float)
    assert np.abs(resized - 127.5).max() < 15


def test_training_crop_is_a_function_of_its_generator():
    image = random_image(60, 80)
    first, again, other = (training_crop(image, 33, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert first.shape == (3, 33, 33) and first.dtype == np.uint8 and first.flags.c_contiguous
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@pytest.mark.parametrize("shape", [(60, 80), (80, 60), (20, 100), (100, 20), (10, 10)])
def test_training_crop_shows_the_image_unstretched_on_the_mean_colour(shape):
    for seed in range(20):
        crop = training_crop(np.full((*shape, 3), 255, np.uint8), 65, np.random.default_rng(seed))
        shown = (crop == 255).all(0)
        rows, cols = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
        assert shown.sum() == len(rows) * len(cols)  # one rectangle
        assert (crop[:, ~shown] == np.array(MEAN_COLOUR)[:, None]).all()
        sides = (len(rows), len(cols))
        long, short = (0, 1) if shape[0] >= shape[1] else (1, 0)
        ratio = min(shape) / max(shape)
        assert sides[long] == 65  # a crop fits along the longer side
        assert round(65 * ratio) - 1 <= sides[short] <= min(65, round(65 * ratio * LARGEST_CROP_SCALE) + 1)


def test_training_crops_vary_in_scale_place_and_direction():
    image = ramp(64, 64)
    crops = [training_crop(image, 33, np.random.default_rng(seed)).astype(float) for seed in range(60)]
    slopes = np.array([(crop[0, 0, -1] - crop[0, 0, 0]) / 32 for crop in crops])
    assert 15 < (slopes < 0).sum() < 45  # mirrored half of the time
    full = 250 / 32  # the ramp's slope per pixel when the whole image fills the crop
    assert np.abs(slopes).max() <= full * 1.05 and np.abs(slopes).min() < full / 1.5
    assert len({round(crop[1, 0, 0]) for crop in crops}) > 10  # rows start anywhere


def test_maps_resize_with_aligned_corners_and_keep_leading_dimensions():
    maps = torch.rand(2, 3, 5, 5)
    resized = resize_maps(maps, (33, 41))
    assert resized.shape == (2, 3, 33, 41)
    assert torch.allclose(resized[:, :, ::8, ::10], maps, atol=1e-6)  # cell i at pixel 8 i
    assert resize_maps(maps[0, 0], (9, 9)).shape == (9, 9)


@pytest.mark.parametrize("shape", [(200, 300), (20, 30), (1, 7)])
def test_without_scipy_the_pixels_are_the_same(shape, monkeypatch):
    image = random_image(*shape)
    expected = resize_square(image, 33), training_crop(image, 33, np.random.default_rng(0))
    _sparse.cache_clear()
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    try:
        assert _sparse(5, 3, 0, 3) is None
        found = resize_square(image, 33), training_crop(image, 33, np.random.default_rng(0))
    finally:
        _sparse.cache_clear()
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)
