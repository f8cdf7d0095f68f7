"""The identity the project rests on, in float64: literal expansion and the expansion-free form agree."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ficklenet.classifier_losses import multilabel_loss
from ficklenet.dense_sampler import expected_evidence, sample_evidence
from ficklenet.expansion import expand, expand_masks, expanded_map, literal_logits, literal_maps
from ficklenet.head import StochasticHead
from ficklenet.masks import INFERENCE_STREAM, dropout_masks, expected_mask, mask_key

TOLERANCE = 1e-10


@st.composite
def cases(draw):
    """A random head, features, masks of two images, drop rate."""
    kernel_size = draw(st.sampled_from([1, 3, 5, 7, 9]))
    grid = draw(st.tuples(st.integers(1, 8), st.integers(1, 8)))
    channels, num_classes = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    drop_rate = draw(st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]))
    torch.manual_seed(draw(st.integers(0, 2**32)))
    head = StochasticHead(channels, num_classes, kernel_size).double()
    torch.nn.init.normal_(head.weight)
    torch.nn.init.normal_(head.bias)
    features = torch.randn(2, channels, *grid, dtype=torch.float64)
    masks = draw_masks(kernel_size, grid, drop_rate, num_samples=1)[:, 0]
    return head, features, masks, drop_rate


def draw_masks(kernel_size, grid, drop_rate, num_samples):
    return dropout_masks(
        [mask_key(0, "a"), mask_key(0, "b")],
        range(num_samples),
        kernel_size=kernel_size,
        grid=grid,
        drop_rate=drop_rate,
        stream=INFERENCE_STREAM,
    )


def every_class(head, num_images=2):
    return torch.arange(head.num_classes).expand(num_images, -1)


def example(kernel_size=5, grid=(6, 7), channels=4, num_classes=3):
    torch.manual_seed(0)
    head = StochasticHead(channels, num_classes, kernel_size).double()
    torch.nn.init.normal_(head.weight)
    return head, torch.randn(2, channels, *grid, dtype=torch.float64)


@given(cases())
@settings(deadline=None, max_examples=60)
def test_identity_equals_literal_expansion_with_autograd(case):
    head, features, masks, _ = case
    grid = features.shape[2:]
    logits, literal = head(features, masks), literal_logits(features, head.weight, head.bias, masks)
    assert (logits - literal).abs().max() < TOLERANCE

    affinity = head.affinity(features, every_class(head))
    evidence = sample_evidence(affinity, masks[:, None], grid)[0]
    literal_evidence = literal_maps(features, head.weight, head.bias, masks)
    assert (evidence.relu() - literal_evidence.relu()).abs().max() < TOLERANCE
    assert (evidence - literal_evidence).abs().max() < TOLERANCE
    assert (evidence.sum((2, 3)) + head.bias - logits).abs().max() < TOLERANCE  # a sample's logit is free


@given(cases())
@settings(deadline=None, max_examples=30)
def test_deterministic_map_equals_the_literal_form_under_the_expected_mask(case):
    head, features, _, drop_rate = case
    grid = tuple(features.shape[2:])
    mask = expected_mask(head.kernel_size, grid, drop_rate, dtype=torch.float64).expand(2, -1, -1)
    literal = literal_maps(features, head.weight, head.bias, mask)
    evidence = expected_evidence(head.affinity(features, every_class(head)), grid, drop_rate)
    assert (evidence - literal).abs().max() < TOLERANCE
    logits = head.expected_logits(features, drop_rate)
    assert (logits - literal_logits(features, head.weight, head.bias, mask)).abs().max() < TOLERANCE
    assert (logits - head.bias - evidence.sum((2, 3))).abs().max() < TOLERANCE


@given(cases())
@settings(deadline=None, max_examples=20)
def test_training_gradients_agree_with_the_literal_form(case):
    head, features, masks, _ = case
    targets = (torch.rand(2, head.num_classes) < 0.5).double()
    features.requires_grad_()
    leaves = [features, head.weight, head.bias]
    weights = torch.ones(2)
    loss = multilabel_loss(head(features, masks), targets, weights)
    literal = multilabel_loss(literal_logits(features, head.weight, head.bias, masks), targets, weights)
    pairs = zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(literal, leaves), strict=True)
    assert max(float((mine - theirs).abs().max()) for mine, theirs in pairs) < TOLERANCE


@pytest.mark.parametrize(("kernel_size", "grid"), [(1, (3, 4)), (5, (6, 7)), (9, (4, 5))])
def test_map_from_an_expanded_map_equals_the_literal_one(kernel_size, grid):
    head, features = example(kernel_size=kernel_size, grid=grid)
    masks = draw_masks(kernel_size, grid, 0.5, num_samples=1)[:, 0].double()
    literal = literal_maps(features, head.weight, head.bias, masks)
    expanded, mask = expand(features, kernel_size), expand_masks(masks, grid, kernel_size)
    for number in range(head.num_classes):
        one = slice(number, number + 1)
        found = expanded_map(expanded, head.weight[one], head.bias[one], mask)
        assert (found - literal[:, number]).abs().max() < TOLERANCE


def test_literal_form_equals_the_definition_written_as_loops():
    head, features = example(kernel_size=3, grid=(3, 4), channels=2, num_classes=2)
    (height, width), radius = features.shape[2:], 1
    masks = draw_masks(3, (height, width), 0.5, num_samples=1)[:, 0].double()
    logits = head.bias.detach().repeat(2, 1)
    for row in range(height):  # u = (row, col): window centres
        for col in range(width):
            for dy in range(-radius, radius + 1):
                for dx in range(-radius, radius + 1):
                    y, x = row + dy, col + dx  # v = u + d
                    if 0 <= y < height and 0 <= x < width:
                        kept = masks[:, (dy + 1) * 3 + dx + 1, y * width + x, None]
                        weight = head.weight.detach()[:, :, dy + 1, dx + 1]
                        logits += kept * (features[:, :, y, x] @ weight.T) / (height * width)
    literal = literal_logits(features, head.weight, head.bias, masks)
    assert torch.allclose(literal, logits, atol=1e-12, rtol=0)


def test_expanded_map_lays_padded_windows_side_by_side():
    features = torch.arange(1.0, 7.0).view(1, 1, 2, 3)
    top_left = expand(features, 3)[0, 0, :3, :3]
    assert top_left.tolist() == [[0, 0, 0], [0, 1, 2], [0, 4, 5]]
    assert expand(features, 3).shape == (1, 1, 6, 9)


def test_literal_masks_keep_every_window_centre_and_drop_padding():
    masks = expand_masks(draw_masks(3, (4, 5), 0.0, num_samples=1)[:, 0].double(), (4, 5), 3)
    expected = expand(torch.ones(2, 1, 4, 5, dtype=torch.float64), 3)  # at drop rate 0: all but the padding
    assert torch.equal(masks, expected)
    sparse = expand_masks(draw_masks(3, (4, 5), 1.0, num_samples=1)[:, 0].double(), (4, 5), 3)
    assert torch.equal(sparse[0, 0, 1::3, 1::3], torch.ones(4, 5, dtype=torch.float64))
    assert float(sparse.sum()) == 2 * 20


@pytest.mark.parametrize("drop_rate", [0.5, 0.9])
def test_expected_logit_is_the_mean_over_samples_within_its_error(drop_rate):
    head, features = example()
    masks = draw_masks(5, (6, 7), drop_rate, num_samples=4000)
    affinity = head.affinity(features, every_class(head))
    logits = sample_evidence(affinity, masks, (6, 7)).sum((3, 4)) + head.bias  # (N, B, C)
    error = logits.std(0) / len(logits) ** 0.5
    assert ((logits.mean(0) - head.expected_logits(features, drop_rate)).abs() < 4 * error).all()
    assert (error > 0).all()


def test_affinity_holds_only_the_wanted_classes_in_their_order():
    head, features = example()
    wanted = torch.tensor([[2, 0], [1, 1]])
    every = head.affinity(features, every_class(head))
    chosen = head.affinity(features, wanted)
    assert chosen.shape == (2, 2, 25, 42)
    assert torch.allclose(chosen[0], every[0, [2, 0]]) and torch.allclose(chosen[1], every[1, [1, 1]])
