"""The classifier of cells corrects seeds by what many images have in common."""

import numpy as np
import pytest
import torch

from ficklenet.cell_classifier import (
    CellSpec,
    LabelledCells,
    best_labels,
    cell_features,
    cell_network,
    cell_probabilities,
    choose_cells,
    learn_cells,
    pack_cells,
    train_cells,
    unpack_cells,
)


def learned(features: torch.Tensor, labels: torch.Tensor, num_rounds: int = 1) -> torch.nn.Sequential:
    """A network that learned cells of images that have all of three labels."""
    cells = LabelledCells(features, labels, torch.ones(len(labels), 3, dtype=torch.bool))
    spec = CellSpec(features.shape[1], 3, hidden=16)
    return learn_cells(spec, cells, num_rounds=num_rounds, num_epochs=60, learning_rate=0.03, seed=0)


@pytest.mark.parametrize("num_rounds", [1, 3])
def test_wrong_seeds_are_outvoted(num_rounds):
    truth = torch.arange(300) % 3
    features = torch.nn.functional.one_hot(truth, 3).half()
    seeds = torch.where(torch.arange(300) % 5 == 0, (truth + 1) % 3, truth)  # every fifth seed is wrong
    network = learned(features, seeds, num_rounds)
    image = torch.eye(3).view(3, 1, 3)  # one cell of each kind
    assert cell_probabilities(network, image, [0, 1]).argmax(0).tolist() == [[0, 1, 2]]


def test_later_rounds_learn_what_the_first_one_says():
    truth = torch.arange(300) % 3
    features = torch.nn.functional.one_hot(truth, 3).float()
    seeds = torch.where(torch.arange(300) % 5 == 0, (truth + 1) % 3, truth)
    once, twice = (cell_probabilities(learned(features, seeds, n), torch.eye(3).view(3, 1, 3), [0, 1]) for n in (1, 2))
    assert twice.max(0).min() > once.max(0).max() > 0.6  # the contradictions are gone


def test_only_an_images_own_classes_compete():
    network = learned(torch.eye(3)[torch.arange(90) % 3], torch.arange(90) % 3)
    probabilities = cell_probabilities(network, torch.eye(3).view(3, 1, 3), np.array([1]))
    assert probabilities.shape == (2, 1, 3) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(0), 1, rtol=1e-6)
    assert probabilities[1, 0, 2] > 0.9  # class 1 has label 2


def test_a_label_that_an_image_lacks_is_no_mistake_of_its_cells():
    present = torch.tensor([[True, False, False]]).expand(20, 3)
    cells = LabelledCells(torch.ones(20, 2), torch.zeros(20, dtype=torch.int64), present)
    torch.manual_seed(0)
    network = cell_network(CellSpec(2, 3))
    assert train_cells(network, cells, num_epochs=1, learning_rate=0.1) == [pytest.approx(0)]
    assert best_labels(network, cells).tolist() == [0] * 20


def test_learning_repeats_by_its_seed_and_leaves_the_callers_random_numbers_alone():
    features, labels = torch.randn(40, 2, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3
    torch.manual_seed(5)
    first = learned(features, labels)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)
    again = learned(features, labels)
    assert all(torch.equal(one, two) for one, two in zip(first.parameters(), again.parameters(), strict=True))


def test_stages_lie_side_by_side_at_one_scale():
    coarse, fine = torch.full((2, 3, 3), 100.0), torch.full((1, 3, 3), 0.1)
    features = cell_features([coarse, fine])
    assert features.shape == (3, 3, 3)
    torch.testing.assert_close(features, torch.ones(3, 3, 3))
    assert not cell_features([torch.zeros(1, 2, 2)]).any()


def test_half_of_an_images_cells_are_background_where_it_has_enough_of_both():
    labels = np.full((6, 6), 255)
    labels[0], labels[1, :3] = 0, 2
    cells = choose_cells(labels, 255, 8, np.random.default_rng(0))
    assert sorted(labels.ravel()[cells]) == [0, 0, 0, 0, 2, 2, 2] and len(set(cells)) == 7
    assert len(choose_cells(np.full((2, 2), 255), 255, 8, np.random.default_rng(0))) == 0


def test_a_packed_network_gives_the_same_probabilities():
    torch.manual_seed(0)
    spec = CellSpec(2, 3, hidden=4)
    network, image = cell_network(spec).eval(), torch.randn(2, 2, 2)
    again = unpack_cells(pack_cells(network, spec))
    np.testing.assert_array_equal(cell_probabilities(again, image, [1]), cell_probabilities(network, image, [1]))
    with pytest.raises(ValueError, match=r"given 10 bytes.*Run learn_cells.py again"):
        unpack_cells(b"no network")
