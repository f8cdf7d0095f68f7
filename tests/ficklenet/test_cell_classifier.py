"""The classifier of cells corrects seeds by what many images have in common."""

import numpy as np
import pytest
import torch

from ficklenet.cell_classifier import cell_network, cell_probabilities, train_cells


def trained(labels: torch.Tensor, features: torch.Tensor, present: torch.Tensor) -> torch.nn.Sequential:
    torch.manual_seed(0)
    network = cell_network(features.shape[1], present.shape[1], hidden=16)
    generator = torch.Generator().manual_seed(0)
    losses = train_cells(network, features, labels, present, num_epochs=60, learning_rate=0.03, generator=generator)
    assert losses[-1] < losses[0]
    return network


def test_wrong_seeds_are_outvoted():
    truth = torch.arange(300) % 3
    features = torch.nn.functional.one_hot(truth, 3).half()
    seeds = torch.where(torch.arange(300) % 5 == 0, (truth + 1) % 3, truth)  # every fifth seed is wrong
    network = trained(seeds, features, torch.ones(300, 3, dtype=torch.bool))
    image = torch.eye(3).view(3, 1, 3)  # one cell of each kind
    assert cell_probabilities(network, image, [0, 1]).argmax(0).tolist() == [[0, 1, 2]]


def test_only_an_images_own_classes_compete():
    features = torch.eye(3)[torch.arange(90) % 3]
    labels = torch.arange(90) % 3
    network = trained(labels, features, torch.ones(90, 3, dtype=torch.bool))
    probabilities = cell_probabilities(network, torch.eye(3).view(3, 1, 3), np.array([1]))
    assert probabilities.shape == (2, 1, 3) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(0), 1, rtol=1e-6)
    assert probabilities[1, 0, 2] > 0.9  # class 1 has label 2


def test_a_label_that_an_image_lacks_is_no_mistake_of_its_cells():
    features, labels = torch.ones(20, 2), torch.zeros(20, dtype=torch.int64)
    present = torch.tensor([[True, False, False]]).expand(20, 3)
    torch.manual_seed(0)
    network = cell_network(2, 3)
    losses = train_cells(
        network, features, labels, present, num_epochs=1, learning_rate=0.1, generator=torch.Generator()
    )
    assert losses == [pytest.approx(0)]


def test_cells_of_weight_zero_teach_nothing():
    labels = torch.arange(2).repeat(50)
    weights = torch.tensor([1.0, 0.0]).repeat(50)
    torch.manual_seed(0)
    network = cell_network(2, 2, hidden=8)
    train_cells(
        network,
        torch.ones(100, 2),  # all cells look alike, so the weights decide
        labels,
        torch.ones(100, 2, dtype=torch.bool),
        num_epochs=60,
        learning_rate=0.05,
        generator=torch.Generator().manual_seed(0),
        weights_N=weights,
    )
    assert cell_probabilities(network, torch.ones(2, 1, 1), [0]).argmax(0).tolist() == [[0]]
