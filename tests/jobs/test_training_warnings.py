"""What is said of trainings that learn nothing: when, and with which remedy."""

import re

import numpy as np
import pytest
import torch

from ficklenet.classifier_losses import multilabel_loss
from jobs.run.config_keys import Config
from jobs.training.training_warnings import (
    background_warning,
    constant_loss,
    everywhere_warning,
    keep_best_warning,
    stuck_warning,
)

LABELS = [(0,), (0, 1), (2,), (0,)]


def test_a_class_in_every_training_image_is_named():
    assert everywhere_warning(["cat", "dog"], np.array([3, 2]), 4) == ""
    warning = everywhere_warning(["cat", "dog"], np.array([4, 2]), 4)
    assert warning.startswith("classifier: WARNING: every training image has the label cat, so")
    assert "--negative-label" in warning


def test_the_constant_loss_is_the_least_that_any_constant_reaches():
    targets = torch.zeros(4, 3)
    for row, classes in enumerate(LABELS):
        targets[row, list(classes)] = 1
    share = targets.mean(0)

    def loss_at(probabilities: torch.Tensor) -> float:
        return float(multilabel_loss(torch.logit(probabilities).expand(4, 3), targets, torch.ones(4)))

    best = constant_loss(targets.sum(0).numpy(), 4)
    assert best == pytest.approx(loss_at(share))
    assert best < min(loss_at((share + 0.05).clamp(0.01, 0.99)), loss_at((share - 0.05).clamp(0.01, 0.99)))


def test_a_class_that_every_image_has_costs_nothing():
    assert constant_loss(np.array([2, 0]), 2) == 0


def settings(**given: object):
    return Config.model_validate({"classifier": given}).classifier


def test_a_stuck_training_is_told_once_after_the_first_epoch_with_enough_steps():
    told = [
        bool(stuck_warning({"epoch": epoch, "step": 64 * epoch, "loss": 0.52}, 64, 0.5, settings()))
        for epoch in range(1, 6)
    ]
    assert told == [False, True, False, False, False]
    assert stuck_warning({"epoch": 1, "step": 128, "loss": 0.52}, 128, 0.5, settings())
    assert not stuck_warning({"epoch": 1, "step": 128, "loss": 0.42}, 128, 0.5, settings())


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ({"backbone_learning_rate_factor": 1.0}, "backbone_learning_rate_factor = 1 is too high .*set 0.01"),
        ({"weights": "none"}, "random weights .*give weights"),
        ({}, r"Lower classifier\.learning_rate \(now 0.001\)"),
        ({"backbone_learning_rate_factor": 1.0, "frozen_stages": "all"}, r"Lower classifier\.learning_rate"),
    ],
)
def test_the_remedy_follows_from_the_settings(given, remedy):
    warning = stuck_warning({"epoch": 1, "step": 128, "loss": 0.52}, 128, 0.5, settings(**given))
    assert "loss of epoch 1 is 0.520, no better than 0.500" in warning and "--restart classifier" in warning
    assert re.search(remedy, warning)


def test_the_best_of_few_validation_images_is_doubted():
    assert "chooses the epoch on 10 validation images" in keep_best_warning(10, settings(keep="best"))
    assert keep_best_warning(20, settings(keep="best")) == keep_best_warning(10, settings(keep="last")) == ""


def test_a_network_that_answers_background_is_not_done_without_a_word():
    segmenter = Config().segmenter
    warning = background_warning("segmenter", {"predicted_foreground": 0.002, "taught_foreground": 0.2}, segmenter)
    assert "0.2% of the cells of its training images, but 20.0% of the cells that it learnt from" in warning
    assert "segmenter.min_steps, now 400" in warning
    trial = segmenter.model_copy(update={"backbone": "small"})
    warning = background_warning("segmenter", {"predicted_foreground": 0.002, "taught_foreground": 0.2}, trial)
    assert "trial" in warning and "docs/examples/own_data.toml" in warning
    assert "better masks" not in warning
    for fine in ({"predicted_foreground": 0.1, "taught_foreground": 0.2}, {"loss": 1.0}):
        assert background_warning("segmenter", fine, segmenter) == ""
