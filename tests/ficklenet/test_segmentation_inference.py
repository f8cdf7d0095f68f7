"""From images to label maps: sizes, mirror images, summed logits, the frame of the grid."""

from functools import partial

import numpy as np
import pytest
import torch

from ficklenet.crf import refine
from ficklenet.geometry import GridGeometry
from ficklenet.label_image import label_image
from ficklenet.segmentation_inference import enlarged_probabilities, input_sizes, predict_grid
from ficklenet.segmenter import Segmenter, SegmenterSpec
from ficklenet.transforms import normalize, resize_maps


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Segmenter(SegmenterSpec("small", ("a", "b"), input_size=33)).eval()


def images(size: int) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))


def test_input_sizes_put_cells_on_every_eighth_pixel():
    assert input_sizes(321, (0.75, 1.0, 1.25)) == (241, 321, 401)
    for scales in ((), (0.01,)):
        with pytest.raises(ValueError, match="give one or more"):
            input_sizes(321, scales)
    assert input_sizes(320, (0.75, 1.0), GridGeometry(16, "centres")) == (240, 320)


def test_one_size_gives_the_logits_of_the_network(model):
    expected = model(normalize(images(33)))
    torch.testing.assert_close(predict_grid(model, [images(33)]), expected)


def test_logits_of_sizes_and_mirror_images_are_summed_on_the_finest_grid(model):
    both = predict_grid(model, [images(33), images(65)])
    coarse, fine = (predict_grid(model, [images(size)]) for size in (33, 65))
    torch.testing.assert_close(both, resize_maps(coarse, (9, 9)) + fine)
    assert both.shape == (2, 3, 9, 9)
    mirrored = predict_grid(model, [images(33).flip(-1)], mirror=True)
    torch.testing.assert_close(mirrored.flip(-1), predict_grid(model, [images(33)], mirror=True))


def test_a_cell_lies_on_its_eighth_pixel():
    logits = np.random.default_rng(0).normal(size=(3, 5, 4))
    enlarged = enlarged_probabilities(logits, (33, 25))
    expected = np.exp(logits) / np.exp(logits).sum(0)
    np.testing.assert_allclose(enlarged[:, ::8, ::8], expected, atol=1e-6)
    np.testing.assert_allclose(enlarged.sum(0), 1, atol=1e-6)


def test_logits_are_enlarged_not_probabilities():
    logits = np.array([[[9.0, 0.0]], [[0.0, 1.0]]])  # sure of 0, then barely of 1
    middle = enlarged_probabilities(logits, (1, 3))[:, 0, 1]
    assert middle[0] == pytest.approx(1 / (1 + np.exp(-4.0)), abs=1e-5)


def test_patches_have_their_labels_on_their_own_pixels():
    logits = np.zeros((2, 2, 2))
    logits[1, 0, 0] = logits[0, 0, 1] = logits[0, 1] = 5.0
    image = np.zeros((32, 32, 3), np.uint8)
    scores_at = partial(enlarged_probabilities, logits, geometry=GridGeometry(16, "centres"))
    labels = label_image(scores_at, image, use_crf=False)
    expected = np.zeros((32, 32), int)
    expected[:16, :16] = 1
    assert (labels == expected).mean() > 0.97 and (labels[:8, :8] == 1).all()


def test_crf_moves_the_border_to_the_edge_of_the_image():
    image = np.zeros((48, 48, 3), np.uint8)
    image[:, 22:] = 200
    right = np.tile(np.linspace(0.2, 0.8, 7), (7, 1))  # its border at pixel 23.5
    logits = np.log(np.stack([1 - right, right]))
    scores_at = partial(enlarged_probabilities, logits)
    plain, refined = (label_image(scores_at, image, use_crf=use_crf) for use_crf in (False, True))
    assert plain[0].tolist() == [0] * 24 + [1] * 24
    assert refined[0].tolist() == [0] * 22 + [1] * 26


def test_labels_that_are_improbable_everywhere_do_not_slow_or_change_the_crf(monkeypatch):
    rng = np.random.default_rng(2)
    image = rng.integers(0, 256, (24, 24, 3), np.uint8)
    probabilities = np.full((40, 24, 24), 1e-4)
    probabilities[[5, 17, 31]] = rng.dirichlet(np.ones(3), (24, 24)).transpose(2, 0, 1)
    probabilities /= probabilities.sum(0)
    expected = refine(probabilities, image).argmax(0)
    assert set(np.unique(expected)) == {5, 17, 31}
    given = []
    monkeypatch.setattr(
        "ficklenet.label_image.refine", lambda found, *rest: given.append(found) or refine(found, *rest)
    )
    labels = label_image(lambda size: probabilities, image, use_crf=True)
    np.testing.assert_array_equal(labels, expected)
    assert given[0].shape == (3, 24, 24)
    np.testing.assert_allclose(given[0].sum(0), 1)


def test_of_many_equally_probable_labels_none_is_left_out():
    probabilities = np.full((300, 8, 8), 0.9 / 299)
    probabilities[7, :, :4] = probabilities[250, :, 4:] = 0.1 / 299 * 150  # below 0.06, but highest
    probabilities /= probabilities.sum(0)
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, 4:] = 255
    labels = label_image(lambda size: probabilities, image, use_crf=True)
    assert labels.shape == (8, 8) and set(np.unique(labels)) == {7, 250}


def test_long_images_are_labelled_at_a_smaller_size():
    image = np.zeros((100, 60, 3), np.uint8)
    image[:50] = 255
    logits = np.log(np.random.default_rng(1).dirichlet(np.ones(3), (4, 4)).transpose(2, 0, 1))
    for use_crf in (False, True):
        labels = label_image(partial(enlarged_probabilities, logits), image, use_crf=use_crf, max_side=50)
        whole = label_image(partial(enlarged_probabilities, logits), image, use_crf=use_crf)
        assert labels.shape == whole.shape == (100, 60)
        assert (labels == whole).mean() > 0.8 and len(np.unique(labels, axis=0)) <= 50
