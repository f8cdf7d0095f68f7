"""Warns of a training that learns nothing or too little. Each warning names the remedy."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jobs.run.config_keys import ClassifierConfig, SegmenterConfig

ENOUGH_STEPS = 100
"""Before so many steps a loss says nothing: a random head begins above the constant prediction and is still falling."""

FEW_VALIDATION_IMAGES = 20
LITTLE_FOREGROUND = 0.25
"""A network with less than this share of the foreground that it was taught has learnt to answer background."""


def constant_loss(class_counts: np.ndarray, num_images: int) -> float:
    """The loss of the best constant prediction: every image is given each class's frequency as its probability.

    Args:
        class_counts: the training images of each class (C,).
        num_images: all of them; at least one.

    Returns:
        The sigmoid cross-entropy, its mean over the classes, as `ficklenet.classifier_losses.multilabel_loss`.
    """
    share = class_counts / num_images
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -(share * np.log(share) + (1 - share) * np.log(1 - share))
    return float(np.nan_to_num(entropy).mean())


def stuck_warning(metrics: Mapping[str, Any], epoch_steps: int, constant: float, settings: ClassifierConfig) -> str:
    """Said once, after the first epoch with enough steps behind it, if that epoch learnt nothing; else ''.

    Args:
        metrics: of an epoch.
        constant: what `constant_loss` gives for the training images.
    """
    is_first = metrics["step"] - epoch_steps < ENOUGH_STEPS <= metrics["step"]
    if not is_first or constant == 0 or metrics["loss"] < constant:
        return ""
    return (
        f"classifier: WARNING: the loss of epoch {metrics['epoch']} is {metrics['loss']:.3f}, no better than "
        f"{constant:.3f}, the loss of predicting each class's frequency for every image. The network has learnt "
        f"nothing yet. {_remedy(settings)} Stop the training (Ctrl-C), change this and start again with "
        "--restart classifier."
    )


def _remedy(settings: ClassifierConfig) -> str:
    factor = settings.backbone_learning_rate_factor
    if settings.weights == "none":
        return "It starts from random weights (classifier.weights=none), which need many images: give weights."
    if settings.frozen_stages != "all" and factor is not None and factor > 0.01:
        return f"classifier.backbone_learning_rate_factor = {factor:g} is too high for pretrained weights; set 0.01."
    return f"Lower classifier.learning_rate (now {settings.learning_rate:g}), and check the labels and the weights."


def keep_best_warning(num_validation: int, settings: ClassifierConfig) -> str:
    """Said where the best epoch is to be chosen on too few images; else ''."""
    if settings.keep != "best" or num_validation >= FEW_VALIDATION_IMAGES:
        return ""
    return (
        f"classifier: WARNING: classifier.keep=best chooses the epoch on {num_validation} validation images; below "
        f"{FEW_VALIDATION_IMAGES} this is mostly chance. Set classifier.keep=last, or name more validation images."
    )


def background_warning(name: str, metrics: Mapping[str, Any], settings: SegmenterConfig) -> str:
    """Said of a segmentation network that answers background nearly everywhere; else ''.

    Args:
        name: of the step.
        metrics: with the shares that the training's end measures, where it does.
    """
    predicted, taught = metrics.get("predicted_foreground"), metrics.get("taught_foreground")
    if predicted is None or not taught or predicted >= LITTLE_FOREGROUND * taught:
        return ""
    return (
        f"{name}: WARNING: the network predicts a class in {predicted:.1%} of the cells of its training images, but "
        f"{taught:.1%} of the cells that it learnt from have one: it predicts background nearly everywhere. Train "
        f"longer (segmenter.min_steps, now {settings.min_steps:,}, or segmenter.epochs, with --restart {name}). Until "
        "then use the pseudo-labels: they are the better masks."
    )
