"""From images to label maps: sizes, mirroring, the frame of the grid."""

from functools import partial

import numpy as np
import pytest
import torch

from ficklenet.label_image import label_image
from ficklenet.segmentation_inference import enlarge, input_sizes, predict_grid
from ficklenet.segmenter import Segmenter, SegmenterSpec
from ficklenet.transforms import normalize


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


def test_one_size_is_the_softmax_of_the_network(model):
    expected = model(normalize(images(33))).softmax(1)
    torch.testing.assert_close(predict_grid(model, [images(33)]), expected)


def test_sizes_and_mirror_images_are_averaged_on_the_trained_grid(model):
    both = predict_grid(model, [images(33), images(65)])
    alone = [predict_grid(model, [images(size)]) for size in (33, 65)]
    torch.testing.assert_close(both, (alone[0] + alone[1]) / 2)
    assert both.shape == (2, 3, 5, 5)
    mirrored = predict_grid(model, [images(33).flip(-1)], mirror=True)
    torch.testing.assert_close(mirrored.flip(-1), predict_grid(model, [images(33)], mirror=True))


def test_a_cell_lies_on_its_eighth_pixel():
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), (5, 4)).transpose(2, 0, 1)
    enlarged = enlarge(probabilities, (33, 25))
    np.testing.assert_allclose(enlarged[:, ::8, ::8], probabilities, atol=1e-6)
    np.testing.assert_allclose(enlarged.sum(0), 1, atol=1e-6)


def test_crf_moves_the_border_to_the_edge_of_the_image():
    image = np.zeros((48, 48, 3), np.uint8)
    image[:, 22:] = 200
    right = np.tile(np.linspace(0.2, 0.8, 7), (7, 1))  # its border at pixel 23.5
    probabilities = np.stack([1 - right, right])
    plain, refined = (label_image(partial(enlarge, probabilities), image, use_crf=use_crf) for use_crf in (False, True))
    assert plain[0].tolist() == [0] * 24 + [1] * 24
    assert refined[0].tolist() == [0] * 22 + [1] * 26


def test_long_images_are_labelled_at_a_smaller_size():
    image = np.zeros((100, 60, 3), np.uint8)
    image[:50] = 255
    probabilities = np.random.default_rng(1).dirichlet(np.ones(3), (4, 4)).transpose(2, 0, 1)
    for use_crf in (False, True):
        labels = label_image(partial(enlarge, probabilities), image, use_crf=use_crf, max_side=50)
        whole = label_image(partial(enlarge, probabilities), image, use_crf=use_crf)
        assert labels.shape == whole.shape == (100, 60)
        assert (labels == whole).mean() > 0.8 and len(np.unique(labels, axis=0)) <= 50
