"""The segmentation losses: small cases by hand, gradients, and what must not count."""

import math

import pytest
import torch

from ficklenet.classifier_losses import average_over_images
from ficklenet.segmentation_losses import boundary_loss, full_loss, label_probabilities, seed_loss

UNKNOWN = 255
HAND = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.25, 0.5, 0.25], [0.2, 0.3, 0.5]])  # four pixels, three labels
HAND_BLHW = HAND.T.reshape(1, 3, 2, 2)


def log(*values: float) -> float:
    return sum(math.log(value) for value in values)


def labels(*rows: list[int]) -> torch.Tensor:
    return torch.tensor([rows])


def test_probabilities_are_the_softmax_kept_from_zero():
    logits = torch.tensor([0.0, math.log(3), -100.0]).view(1, 3, 1, 1)
    expected = torch.tensor([0.2501, 0.7501, 0.0001]) / 1.0003
    torch.testing.assert_close(label_probabilities(logits).flatten(), expected)
    assert label_probabilities(logits.bfloat16()).dtype == torch.float32


def test_seed_loss_divides_background_and_foreground_by_their_own_counts():
    found = seed_loss(HAND_BLHW, labels([0, 1], [2, 0]))
    assert found.item() == pytest.approx(-log(0.7, 0.2) / 2 - log(0.6, 0.25) / 2)


def test_a_part_without_seeds_is_zero():
    assert seed_loss(HAND_BLHW, labels([0, UNKNOWN], [UNKNOWN, UNKNOWN])).item() == pytest.approx(-log(0.7))
    assert seed_loss(HAND_BLHW, labels([UNKNOWN, 1], [2, UNKNOWN])).item() == pytest.approx(-log(0.6, 0.25) / 2)
    assert seed_loss(HAND_BLHW, torch.full((1, 2, 2), UNKNOWN)).item() == 0


def test_each_image_has_its_own_counts():
    two = torch.cat([HAND_BLHW, HAND_BLHW])
    seeds = torch.cat([labels([0, 1], [2, 0]), labels([0, UNKNOWN], [UNKNOWN, UNKNOWN])])
    expected = [seed_loss(HAND_BLHW, seeds[index : index + 1]).item() for index in (0, 1)]
    assert seed_loss(two, seeds).tolist() == pytest.approx(expected)


def test_boundary_loss_is_the_clipped_divergence():
    predicted = torch.tensor([[0.5, 0.5], [0.98, 0.02]]).T.reshape(1, 2, 1, 2)
    refined = torch.tensor([[0.8, 0.2], [0.01, 0.99]]).T.reshape(1, 2, 1, 2)
    first = 0.8 * log(0.8 / 0.5) + 0.2 * log(0.2 / 0.5)
    second = 0.01 * log(0.05) + 0.99 * log(20)  # ratios of 0.0102 and 49.5
    assert boundary_loss(predicted, refined).item() == pytest.approx((first + second) / 2)


def test_boundary_loss_of_equal_probabilities_is_zero():
    assert boundary_loss(HAND_BLHW, HAND_BLHW).item() == 0
    certain = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)  # 0 log 0
    assert boundary_loss(label_probabilities(1e4 * certain), certain).item() == pytest.approx(1e-4, rel=0.01)


def test_full_loss_is_the_mean_over_known_pixels():
    assert full_loss(HAND_BLHW, labels([0, 1], [2, UNKNOWN])).item() == pytest.approx(-log(0.7, 0.6, 0.25) / 3)
    assert full_loss(HAND_BLHW, torch.full((1, 2, 2), UNKNOWN)).item() == 0


@pytest.mark.parametrize("num_labels", [2, 4, 81])
def test_gradients_are_those_of_the_losses(num_labels):
    generator = torch.Generator().manual_seed(num_labels)
    logits = torch.randn(2, num_labels, 3, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    seeds = torch.randint(0, num_labels, (2, 3, 2), generator=generator)
    seeds[:, 0] = UNKNOWN
    refined = torch.randn(2, num_labels, 3, 2, dtype=torch.float64, generator=generator).softmax(1)
    for loss in (
        lambda given: seed_loss(label_probabilities(given), seeds),
        lambda given: boundary_loss(label_probabilities(given), refined),
        lambda given: full_loss(label_probabilities(given), seeds),
    ):
        assert torch.autograd.gradcheck(loss, logits, fast_mode=True)


def test_no_gradient_flows_into_the_refined_probabilities():
    refined = HAND_BLHW.clone().requires_grad_()
    predicted = HAND_BLHW.roll(1, dims=1).clone().requires_grad_()
    boundary_loss(predicted, refined * 1.0).sum().backward()
    assert refined.grad is None and predicted.grad.abs().sum() > 0


def test_unknown_pixels_and_images_of_weight_zero_get_no_gradient():
    logits = torch.randn(2, 3, 2, 2, requires_grad=True)
    seeds = torch.cat([labels([0, 1], [UNKNOWN, 2]), labels([1, 1], [1, 1])])
    loss = seed_loss(label_probabilities(logits), seeds)
    average_over_images(loss, torch.tensor([1.0, 0.0])).backward()
    is_reached = logits.grad.abs().sum(1) > 0
    assert is_reached.tolist() == [[[True, True], [False, True]], [[False, False], [False, False]]]


def test_labels_of_16_bit_stores_are_taken():
    seeds = labels([0, 1], [65535, 2]).to(torch.int32)
    assert seed_loss(HAND_BLHW, seeds).item() == pytest.approx(-log(0.7) - log(0.6, 0.5) / 2)
