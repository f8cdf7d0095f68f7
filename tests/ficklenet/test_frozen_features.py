"""The head trained on kept features learns what the whole classifier with a frozen backbone learns."""

import pytest
import torch

from ficklenet.classifier import ClassifierSpec, FickleNet
from ficklenet.classifier_training import make_optimizer, training_step
from ficklenet.frozen_features import FeatureBatch, head_loss, head_step, train_head
from ficklenet.head import StochasticHead
from ficklenet.masks import mask_key
from ficklenet.transforms import normalize

KEYS = [mask_key(0, name) for name in ("a", "b", "c")]
TARGETS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])


@pytest.fixture
def classifier() -> FickleNet:
    torch.manual_seed(0)
    model = FickleNet(ClassifierSpec("small", ("cat", "dog"), kernel_size=3, drop_rate=0.5, input_size=65))
    model.backbone.freeze_stages(model.backbone.num_stages)
    return model


def images() -> torch.Tensor:
    return torch.randint(256, (3, 3, 65, 65), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_a_step_on_kept_features_changes_the_head_as_a_step_on_images_does(classifier):
    features = classifier.backbone(normalize(images())).detach()
    head = StochasticHead(64, 2, 3)
    head.load_state_dict(classifier.head.state_dict())
    weights = torch.tensor([1.0, 0.0, 2.0])

    loss = training_step(
        classifier, make_optimizer(classifier, learning_rate=0.01), images(), TARGETS, KEYS, 3, weights
    )
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    kept_loss = head_step(head, optimizer, FeatureBatch(features, TARGETS, KEYS, weights), 3, drop_rate=0.5)

    torch.testing.assert_close(kept_loss, loss)
    torch.testing.assert_close(head.weight, classifier.head.weight)


def test_portions_of_a_batch_add_up_to_the_batch():
    torch.manual_seed(0)
    batch = FeatureBatch(torch.rand(3, 4, 5, 5), TARGETS, KEYS)
    weights = []
    for size in (0, 1, 2):
        torch.manual_seed(1)
        head = StochasticHead(4, 2, 3)
        head_step(head, torch.optim.SGD(head.parameters(), lr=1.0), batch, 0, drop_rate=0.5, micro_batch_size=size)
        weights.append(head.weight.detach())
    torch.testing.assert_close(weights[0], weights[1])
    torch.testing.assert_close(weights[0], weights[2])


def test_half_precision_features_train_a_float32_head():
    torch.manual_seed(0)
    head = StochasticHead(4, 2, 3)
    loss = head_loss(head, FeatureBatch(torch.rand(3, 4, 5, 5).half(), TARGETS, KEYS), 0, drop_rate=0.5)
    loss.backward()
    assert loss.dtype == torch.float32 and head.weight.grad is not None


def test_training_separates_two_classes_and_other_epochs_draw_other_masks():
    torch.manual_seed(0)
    features = torch.zeros(2, 2, 5, 5)
    features[0, 0, 1:3, 1:3] = features[1, 1, 2:4, 2:4] = 1  # each class has a channel of its own
    batch = FeatureBatch(features, torch.eye(2), KEYS[:2])
    head = StochasticHead(2, 2, 3)
    assert head_loss(head, batch, 0, drop_rate=0.9) != head_loss(head, batch, 1, drop_rate=0.9)
    losses = train_head(head, lambda epoch: [batch], num_epochs=40, drop_rate=0.5, learning_rate=0.3)
    assert losses[-1] < 0.2 < losses[0]
    assert (head.expected_logits(features, 0.5).argmax(1) == torch.tensor([0, 1])).all()


def test_an_epoch_without_images_is_refused():
    with pytest.raises(ValueError, match="no batch"):
        train_head(StochasticHead(4, 2, 3), lambda epoch: [], num_epochs=1, drop_rate=0.5, learning_rate=0.1)
