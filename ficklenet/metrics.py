"""Figures of merit, of classifiers and of label maps.

Label maps are measured from one confusion matrix, int64 (L, L + 1) with L = background + classes: row = true label,
column = predicted label, the last column = ignored by the prediction. Matrices of disjoint images add up.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ConfusionMatrix = NDArray[np.int64]


def average_precision(logits_NC: Tensor, targets_NC: Tensor) -> float:
    """Mean over classes of the average precision (area under precision over recall, no interpolation).

    Args:
        logits_NC: scores of N images for C classes.
        targets_NC: 1 where the image has the class, else 0.

    Returns:
        In [0, 1]; classes that no image has are left out; NaN where no image has any.
    """
    from torchmetrics.functional.classification import binary_average_precision

    per_class = [
        binary_average_precision(_ranks(logits), targets.long())
        for logits, targets in zip(logits_NC.T, targets_NC.T, strict=True)
        if targets.any()
    ]
    return float(torch.stack(per_class).mean()) if per_class else float("nan")


def _ranks(logits_N: Tensor) -> Tensor:
    """The place of each logit among the distinct ones, float64 in [0, 1].

    Average precision depends on the order alone. torchmetrics takes the sigmoid of what lies outside [0, 1], and in
    float32 the sigmoid of every logit above 17 is 1: distinct logits would tie.
    """
    distinct, place_N = logits_N.unique(return_inverse=True)
    return place_N.double() / len(distinct)


def confusion_matrix(
    truth: NDArray[np.integer], predicted: NDArray[np.integer], num_classes: int, ignore_value: int
) -> ConfusionMatrix:
    """Counts of one or more label maps, 0 background, class number + 1.

    Args:
        truth: true labels; those of the ignore value are left out.
        predicted: labels of the same shape; those of the ignore value are counted in the last column.

    Raises:
        ValueError: the shapes differ, or a label is neither of the class list nor the ignore value.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"truth is {truth.shape}, the prediction {predicted.shape}; resize one to the other's frame.")
    num_labels = num_classes + 1
    is_known = truth != ignore_value
    rows, given = truth[is_known].astype(np.int64), predicted[is_known].astype(np.int64)
    labels = np.concatenate([rows, given[given != ignore_value]])
    if labels.size and not 0 <= labels.min() <= labels.max() <= num_classes:
        raise ValueError(f"label maps hold 0 to {num_classes} and {ignore_value} (ignore); these hold other values.")
    columns = np.where(given == ignore_value, num_labels, given)
    counts = np.bincount(rows * (num_labels + 1) + columns, minlength=num_labels * (num_labels + 1))
    return counts.reshape(num_labels, num_labels + 1)


@dataclass(frozen=True)
class LabelMetrics:
    """How good label maps are; each in [0, 1], NaN where nothing counts for it.

    Attributes:
        iou: of the background and each class; a pixel that the prediction ignores is a miss of its true class. NaN
            for a label in neither truth nor prediction.
        mean_iou: over the labels that have one.
        foreground_precision: share of the pixels given a class that have this class.
        foreground_recall: share of the true classes' pixels given their class.
        background_precision, background_recall: the same of the background.
        coverage: share of pixels that are not ignored.
    """

    iou: tuple[float, ...]
    mean_iou: float
    foreground_precision: float
    foreground_recall: float
    background_precision: float
    background_recall: float
    coverage: float


def label_metrics(matrix: ConfusionMatrix) -> LabelMetrics:
    """The figures of a pooled confusion matrix."""
    right = matrix.diagonal()
    true, given = matrix.sum(axis=1), matrix[:, :-1].sum(axis=0)
    iou = tuple(_ratio(*counts) for counts in zip(right, true + given - right, strict=True))
    defined = [value for value in iou if not np.isnan(value)]
    return LabelMetrics(
        iou=iou,
        mean_iou=float(np.mean(defined)) if defined else float("nan"),
        foreground_precision=_ratio(right[1:].sum(), given[1:].sum()),
        foreground_recall=_ratio(right[1:].sum(), true[1:].sum()),
        background_precision=_ratio(right[0], given[0]),
        background_recall=_ratio(right[0], true[0]),
        coverage=_ratio(given.sum(), matrix.sum()),
    )


def _ratio(part: np.integer, whole: np.integer) -> float:
    return float(part / whole) if whole else float("nan")


def disagreement(max_hw: NDArray[np.floating], mean_hw: NDArray[np.floating], theta: float) -> float | None:
    """1 - |mean > theta| / |maximum > theta|, in [0, 1]: how far the samples of one map disagree; needs no mask.

    It is the share of the cells above theta in some sample that are not above theta on average. None where no sample
    reaches theta.

    Args:
        max_hw, mean_hw: a class's maximum and mean over the samples, in [0, 1].
    """
    num_by_maximum = int((max_hw > theta).sum())
    return 1 - int((mean_hw > theta).sum()) / num_by_maximum if num_by_maximum else None


def seed_error(is_seed_hw: NDArray[np.bool_], is_true_hw: NDArray[np.bool_]) -> float | None:
    """1 - IoU of a class's seeds with its truth, in [0, 1]; None where both are empty."""
    union = int((is_seed_hw | is_true_hw).sum())
    return 1 - int((is_seed_hw & is_true_hw).sum()) / union if union else None
