"""The training step: loss, optimiser, schedule, and what the masks depend on."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from ficklenet.classifier import ClassifierSpec, FickleNet
from ficklenet.classifier_losses import multilabel_loss
from ficklenet.classifier_training import (
    learning_rate_at,
    make_optimizer,
    set_learning_rate,
    training_loss,
    training_step,
    unwrapped,
)
from ficklenet.drawing import draw_scene
from ficklenet.masks import mask_key
from ficklenet.resampling import resize_square
from ficklenet.training_state import is_finite, pack_training, unpack_training
from ficklenet.transforms import normalize

SPEC = ClassifierSpec("small", ("a", "b"), kernel_size=3, drop_rate=0.9, input_size=33)
KEYS = [mask_key(0, name) for name in "abcd"]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return FickleNet(SPEC)


@pytest.fixture
def images():
    return torch.randint(0, 256, (4, 3, 33, 33), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


TARGETS = torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0]])


def test_loss_equals_a_hand_computed_case():
    logits, targets = torch.tensor([[0.0, 2.0], [1.0, -1.0]]), torch.tensor([[1, 1], [0, 0]])
    per_image = torch.tensor(
        [
            (0.6931472 + 0.1269280) / 2,  # -log s(0), -log s(2)
            (1.3132617 + 0.3132617) / 2,  # -log s(-1), -log s(1)
        ]
    )
    assert torch.allclose(multilabel_loss(logits, targets, torch.ones(2)), per_image.mean())
    weighted = multilabel_loss(logits, targets, torch.tensor([3.0, 1.0]))
    assert torch.allclose(weighted, (3 * per_image[0] + per_image[1]) / 4)


def test_an_image_of_weight_zero_counts_for_nothing():
    logits, targets = torch.randn(3, 2), torch.ones(3, 2)
    kept = multilabel_loss(logits[:2], targets[:2], torch.ones(2))
    assert torch.allclose(multilabel_loss(logits, targets, torch.tensor([1.0, 1.0, 0.0])), kept)
    assert float(multilabel_loss(logits, targets, torch.zeros(3))) == 0.0


def test_two_workers_average_to_the_loss_of_one():
    logits, targets, weights = torch.randn(5, 2), torch.ones(5, 2), torch.tensor([1.0, 0, 1, 1, 1])
    whole = multilabel_loss(logits, targets, weights)
    shares = [
        multilabel_loss(logits[rank::2], targets[rank::2], weights[rank::2], total_weight=float(weights.sum()) / 2)
        for rank in range(2)
    ]
    assert torch.allclose(sum(shares) / 2, whole)


def test_loss_is_the_same_function_whatever_the_batch(model, images):
    together = training_loss(model, images, TARGETS, KEYS, epoch=3)
    alone = [training_loss(model, images[i : i + 1], TARGETS[i : i + 1], [KEYS[i]], epoch=3) for i in range(4)]
    assert torch.allclose(together, torch.stack(alone).mean(), atol=1e-6)


def test_every_epoch_has_its_own_masks(model, images):
    first, again, second = (training_loss(model, images, TARGETS, KEYS, epoch).item() for epoch in (0, 0, 1))
    assert first == again != second


def test_loss_reaches_every_weight(model, images):
    training_loss(model, images, TARGETS, KEYS, epoch=0).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())


def test_training_without_dropout_is_plain_classification(images):
    torch.manual_seed(0)
    plain = FickleNet(ClassifierSpec("small", ("a", "b"), kernel_size=3, drop_rate=0.0, input_size=33))
    features = plain.backbone(normalize(images))
    head = plain.head
    logits = functional.conv2d(features, head.weight, head.bias, padding=1).mean((2, 3))
    expected = functional.binary_cross_entropy_with_logits(logits, TARGETS.float())
    assert torch.allclose(training_loss(plain, images, TARGETS, KEYS, epoch=0), expected, atol=1e-5)


def test_a_few_steps_learn_two_drawn_classes():
    torch.manual_seed(0)
    model = FickleNet(ClassifierSpec("small", ("a", "b"), kernel_size=3, drop_rate=0.5, input_size=33))
    scenes = [draw_scene(index, num_classes=2) for index in range(8)]
    images = torch.stack([torch.from_numpy(resize_square(scene.image, 33)) for scene in scenes])
    targets = torch.tensor([[label in scene.labels for label in (0, 1)] for scene in scenes])
    keys = [mask_key(0, str(index)) for index in range(8)]
    optimizer = make_optimizer(model, learning_rate=1e-2, backbone_factor=0.2)
    losses = []
    for epoch in range(40):
        loss = training_loss(model, images, targets, keys, epoch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_of_a_batch_make_the_same_step_as_the_whole(images, size):
    weights = torch.tensor([1.0, 1.0, 0.0, 1.0])
    losses, trained = [], []
    for micro_batch_size in (0, size):
        torch.manual_seed(0)
        model = FickleNet(SPEC)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        loss = training_step(
            model, optimizer, images, TARGETS, KEYS, 0, weights, micro_batch_size=micro_batch_size
        )  # fmt: skip
        losses.append(loss)
        trained.append(model.state_dict())
    assert torch.allclose(*losses)
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value, rtol=1e-4, atol=1e-6)


def test_training_continues_from_its_packed_state_as_if_never_stopped(images):
    def fresh():
        torch.manual_seed(0)
        model = FickleNet(SPEC)
        return model, make_optimizer(model, learning_rate=1e-2, layer_decay=0.5)

    def step(model, optimizer, epoch):
        training_step(model, optimizer, images, TARGETS, KEYS, epoch, torch.ones(4))

    whole, stopped, resumed = fresh(), fresh(), fresh()
    for epoch in range(2):
        step(*whole, epoch)
    step(*stopped, 0)
    assert unpack_training(pack_training(*stopped, {"next_step": 1}), *resumed) == {"next_step": 1}
    step(*resumed, 1)
    assert all(torch.equal(value, whole[0].state_dict()[name]) for name, value in resumed[0].state_dict().items())
    assert is_finite(resumed[0])
    resumed[0].head.bias.data[0] = torch.inf
    assert not is_finite(resumed[0])


def test_learning_rate_halves_every_ten_epochs():
    assert [learning_rate_at(epoch, 1e-3) for epoch in (0, 9, 10, 25)] == [1e-3, 1e-3, 5e-4, 2.5e-4]
    assert learning_rate_at(4, 1.0, halve_every=2) == 0.25


def test_backbone_with_pretrained_weights_trains_at_a_hundredth_by_default(model):
    optimizer = make_optimizer(model, learning_rate=1e-3)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-3, 1e-5])


def test_backbone_trains_at_its_share_of_the_rate_and_frozen_weights_not_at_all(model):
    model.backbone.freeze_stages(model.backbone.num_stages)
    optimizer = make_optimizer(model, learning_rate=1e-3, backbone_factor=0.1)
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 0]
    model.backbone.freeze_stages(0)
    optimizer = make_optimizer(model, learning_rate=1e-3, backbone_factor=0.1)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-3, 1e-4])
    set_learning_rate(optimizer, 5e-4)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([5e-4, 5e-5])


def test_wrapped_model_trains_like_the_model_itself(model, images):
    class Wrapper(nn.Module):  # as DistributedDataParallel does it
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *inputs):
            return self.module(*inputs)

    plain = training_loss(model, images, TARGETS, KEYS, epoch=0)
    assert torch.equal(training_loss(Wrapper(model), images, TARGETS, KEYS, epoch=0), plain)
    assert unwrapped(Wrapper(model)) is model
    with pytest.raises(TypeError, match="a Linear given"):
        unwrapped(nn.Linear(1, 1))
