"""Warnings about a training that learns nothing or too little. Each warning says what to do."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jobs.run.config_keys import ClassifierConfig, SegmenterConfig
from jobs.run.trial import REMEDY, TINY
from storage.tree import words

ENOUGH_STEPS = 100
"""Before this step the loss proves nothing: with a random head it starts above the constant loss and still falls."""

FEW_VALIDATION_IMAGES = 20
LITTLE_FOREGROUND = 0.25
"""A network that predicts less than this share of the foreground in its labels predicts background everywhere."""


def constant_loss(class_counts: np.ndarray, num_images: int) -> float:
    """The loss of the best constant prediction, which gives each class its frequency as probability in every image.

    Args:
        class_counts: the training images of each class (C,).
        num_images: all of them; at least one.

    Returns:
        The sigmoid cross-entropy, averaged over the classes, as in `ficklenet.classifier_losses.multilabel_loss`.
    """
    share = class_counts / num_images
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -(share * np.log(share) + (1 - share) * np.log(1 - share))
    return float(np.nan_to_num(entropy).mean())


def stuck_warning(metrics: Mapping[str, Any], epoch_steps: int, constant: float, settings: ClassifierConfig) -> str:
    """A warning if the first epoch after enough steps has learnt nothing; else ''.

    Args:
        metrics: the metrics of an epoch.
        constant: the `constant_loss` of the training images.
    """
    is_first = metrics["step"] - epoch_steps < ENOUGH_STEPS <= metrics["step"]
    if not is_first or constant == 0 or metrics["loss"] < constant:
        return ""
    return (
        f"classifier: WARNING: the loss of epoch {metrics['epoch']} is {metrics['loss']:.3f}, no better than "
        f"{constant:.3f}, the loss of predicting each class's frequency for every image. The network has learnt "
        f"nothing yet. {_remedy(settings)}"
    )


def _remedy(settings: ClassifierConfig) -> str:
    if settings.backbone == TINY:
        return REMEDY
    return f"{_change(settings)} Stop the training (Ctrl-C), change this and start again with --restart classifier."


def _change(settings: ClassifierConfig) -> str:
    factor = settings.backbone_learning_rate_factor
    if settings.weights == "none":
        return "It starts from random weights (classifier.weights=none), which need many images: give weights."
    if settings.frozen_stages != "all" and factor is not None and factor > 0.01:
        return f"classifier.backbone_learning_rate_factor = {factor:g} is too high for pretrained weights; set 0.01."
    return f"Lower classifier.learning_rate (now {settings.learning_rate:g}), and check the labels and the weights."


def everywhere_warning(class_names: Sequence[str], class_counts: np.ndarray, num_images: int) -> str:
    """A warning if classes are in every training image, so that there is no counterexample; else ''.

    Args:
        class_counts: the training images of each class (C,).
        num_images: all of them.
    """
    everywhere = [name for name, count in zip(class_names, class_counts, strict=True) if count == num_images]
    if not everywhere:
        return ""
    return (
        f"classifier: WARNING: every training image has the label {words(everywhere)}, so the classifier cannot learn "
        "what shows it. The loss and the validation mAP say nothing about it, and its maps are worthless. Add images "
        "without it (prepare_dataset.py --negative-label or --unlabelled-are-negative), and start again with "
        "--restart classifier."
    )


def keep_best_warning(num_validation: int, settings: ClassifierConfig) -> str:
    """A warning if the best epoch is chosen on too few images; else ''."""
    if settings.keep != "best" or num_validation >= FEW_VALIDATION_IMAGES:
        return ""
    return (
        f"classifier: WARNING: classifier.keep=best chooses the epoch on {num_validation} validation images; below "
        f"{FEW_VALIDATION_IMAGES} this is mostly random. Set classifier.keep=last, or give more validation images."
    )


def background_warning(name: str, metrics: Mapping[str, Any], settings: SegmenterConfig) -> str:
    """A warning if a segmentation network predicts background nearly everywhere; else ''.

    Args:
        name: the step.
        metrics: the metrics, with the shares of foreground if they were measured at the end of the training.
    """
    predicted, taught = metrics.get("predicted_foreground"), metrics.get("taught_foreground")
    if predicted is None or not taught or predicted >= LITTLE_FOREGROUND * taught:
        return ""
    if settings.backbone == TINY:
        remedy = REMEDY
    else:
        remedy = (
            f"Train longer (segmenter.min_steps, now {settings.min_steps:,}, or segmenter.epochs, with --restart "
            f"{name}). Until then, the pseudo-labels are the better masks."
        )
    return (
        f"{name}: WARNING: the network predicts a class in {predicted:.1%} of the cells of its training images, but "
        f"{taught:.1%} of the cells that it learnt from have one: it predicts background nearly everywhere. {remedy}"
    )
