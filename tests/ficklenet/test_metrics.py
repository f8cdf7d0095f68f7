"""Figures of label maps against hand-counted pixels and torchmetrics."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_jaccard_index, multilabel_average_precision

from ficklenet.metrics import average_precision, chance_precision, confusion_matrix, label_metrics, map_mismatch

IGNORED = 255


def test_average_precision_orders_by_logits_beyond_what_float32_sigmoids_tell_apart():
    logits = torch.tensor([[30.0], [29.0], [28.0], [-1.0]])  # all but the last have sigmoid 1 in float32
    assert average_precision(logits, torch.tensor([[1], [0], [0], [1]])) == pytest.approx((1 + 2 / 4) / 2)
    assert average_precision(logits, torch.tensor([[0], [0], [1], [0]])) == pytest.approx(1 / 3)


def test_average_precision_of_equal_logits_is_the_share_and_absent_classes_do_not_count():
    logits = torch.tensor([[2.0, 1.0], [2.0, 5.0], [2.0, -3.0], [2.0, 0.5]])
    targets = torch.tensor([[1, 0], [0, 0], [0, 0], [0, 0]])
    assert average_precision(logits, targets) == pytest.approx(1 / 4)
    assert math.isnan(average_precision(logits, torch.zeros(4, 2)))


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_that_of_torchmetrics_also_with_equal_scores(seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 12, (40, 4), generator=generator) / 12  # many are equal
    targets = torch.randint(0, 2, (40, 4), generator=generator)
    expected = multilabel_average_precision(scores.double(), targets, 4, average="macro")
    assert average_precision(scores, targets) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(("num_positive", "num_images"), [(1, 1), (1, 5), (2, 6), (5, 6), (4, 4)])
def test_chance_is_the_mean_over_all_orders(num_positive, num_images):
    targets = torch.tensor([[1.0]] * num_positive + [[0.0]] * (num_images - num_positive))
    orders = [torch.tensor(order)[:, None] for order in permutations(range(num_images))]
    mean = np.mean([average_precision(scores, targets) for scores in orders])
    assert chance_precision(num_positive, num_images) == pytest.approx(mean)


def test_hand_counted_image():
    truth = np.array([[0, 0, 0, 1], [1, 1, 2, 2], [IGNORED, IGNORED, 2, 0]])
    predicted = np.array([[0, 0, 1, 1], [1, IGNORED, 1, 2], [0, 2, IGNORED, IGNORED]])
    matrix = confusion_matrix(truth, predicted, 2, IGNORED)
    assert matrix.tolist() == [[2, 1, 0, 1], [0, 2, 0, 1], [0, 1, 1, 1]]
    figures = label_metrics(matrix)
    assert figures.iou == pytest.approx((2 / 4, 2 / 5, 1 / 3))  # an ignored pixel is a miss of its true class
    assert figures.mean_iou == pytest.approx((2 / 4 + 2 / 5 + 1 / 3) / 3)
    assert figures.foreground_precision == pytest.approx(3 / 5)  # of five pixels given a class three have it
    assert figures.foreground_recall == pytest.approx(3 / 6)
    assert (figures.background_precision, figures.background_recall) == pytest.approx((2 / 2, 2 / 4))
    assert figures.coverage == pytest.approx(7 / 10)  # of the pixels whose truth is known


def test_a_class_in_neither_truth_nor_prediction_does_not_count():
    labels = np.array([[0, 1]])
    figures = label_metrics(confusion_matrix(labels, labels, 3, IGNORED))
    assert figures.iou[:2] == (1.0, 1.0) and all(map(math.isnan, figures.iou[2:]))
    assert figures.mean_iou == 1.0


def test_a_class_only_predicted_counts_as_zero():
    figures = label_metrics(confusion_matrix(np.array([0, 0]), np.array([0, 2]), 2, IGNORED))
    assert figures.iou[2] == 0.0 and figures.mean_iou == pytest.approx((0.5 + 0.0) / 2)


def test_nothing_known_gives_no_figure():
    figures = label_metrics(confusion_matrix(np.full(3, IGNORED), np.zeros(3, int), 2, IGNORED))
    assert math.isnan(figures.mean_iou) and math.isnan(figures.coverage)


@given(st.integers(0, 2**31))
def test_complete_predictions_agree_with_torchmetrics(seed):
    generator = np.random.default_rng(seed)
    truth, predicted = generator.integers(0, 4, (2, 60))
    truth[generator.random(60) < 0.2] = IGNORED
    found = label_metrics(confusion_matrix(truth, predicted, 3, IGNORED)).iou
    known = truth != IGNORED
    expected = multiclass_jaccard_index(
        torch.from_numpy(predicted[known]), torch.from_numpy(truth[known]), num_classes=4, average="none"
    )
    np.testing.assert_allclose(np.nan_to_num(found), expected.numpy(), rtol=1e-6)


def test_matrices_of_disjoint_images_add_up():
    generator = np.random.default_rng(0)
    truth, predicted = generator.integers(0, 3, (2, 4, 5, 5))
    parts = sum(confusion_matrix(t, p, 2, IGNORED) for t, p in zip(truth, predicted, strict=True))
    np.testing.assert_array_equal(parts, confusion_matrix(truth, predicted, 2, IGNORED))


def test_255_is_a_class_of_a_long_list():
    matrix = confusion_matrix(np.array([255, 255, 65535]), np.array([255, 65535, 0], np.uint16), 300, 65535)
    assert matrix[255, 255] == 1 and matrix[255, -1] == 1 and matrix.sum() == 2


@pytest.mark.parametrize(("truth", "predicted"), [([0, 3], [0, 0]), ([0, 0], [0, 3]), ([0, -1], [0, 0])])
def test_labels_outside_the_class_list_are_refused(truth, predicted):
    with pytest.raises(ValueError, match="have 0 to 2 and 255"):
        confusion_matrix(np.array(truth), np.array(predicted), 2, IGNORED)


def test_different_frames_are_refused():
    with pytest.raises(ValueError, match="resize one"):
        confusion_matrix(np.zeros((2, 2), int), np.zeros((2, 3), int), 1, IGNORED)


def test_the_mismatch_of_a_mask_with_its_maps_is_hand_counted():
    maximum = np.zeros((2, 2, 4))
    maximum[0, :, :2], maximum[1, :, 1:3] = 0.9, 0.8  # classes 4 and 7; both in the second column
    mean = maximum * np.array([0.5, 0.9])[:, None, None]  # there, class 7 has the higher mean
    classes = np.array([4, 7])
    found = np.array([[5, 8, 8, 0]] * 2)
    assert map_mismatch(found, maximum, mean, classes, 0.35, 255) == 0
    assert map_mismatch(np.where(found == 0, 255, found), maximum, mean, classes, 0.35, 255) == 0
    mask = np.array([[5, 5, 8, 0]] * 2)  # IoU 1/2 of both classes
    assert map_mismatch(mask, maximum, mean, classes, 0.35, 255) == pytest.approx(0.5)
    foreign = np.array([[5, 8, 8, 3]] * 2)  # a class without a map counts as 0
    assert map_mismatch(foreign, maximum, mean, classes, 0.35, 255) == pytest.approx(1 / 3)
    empty = np.zeros((2, 4), int)
    assert map_mismatch(empty, maximum, mean, classes, 0.35, 255) == 1
    assert map_mismatch(empty, maximum, mean, classes, 0.95, 255) == 1
