"""Metrics of classifiers and of label maps.

The metrics of label maps come from a confusion matrix, int64 (L, L + 1) with L = background + classes. Rows are true
labels, columns are predicted labels, and the last column is for pixels that the prediction ignores. Matrices of
different images can be added.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ficklenet.arguments import require_array, require_classes, require_tensor

if TYPE_CHECKING:  # the report needs only the metrics of label maps, and torch takes seconds to import
    from torch import Tensor

ConfusionMatrix = NDArray[np.int64]


def average_precision(logits_NC: "Tensor", targets_NC: "Tensor") -> float:
    """The mean over classes of the average precision (area under the precision-recall curve, without interpolation).

    Args:
        logits_NC: the scores of N images for C classes.
        targets_NC: 1 if the image has the class, else 0.

    Returns:
        A number in [0, 1]. Classes that no image has are left out; NaN if no image has any class.

    Raises:
        ValueError: they are not two tensors (N, C).
    """
    require_tensor(logits_NC, "numbers", ("N", "C"), "average_precision", "logits_NC")
    require_tensor(targets_NC, "numbers", tuple(logits_NC.shape), "average_precision", "targets_NC", ", 0 or 1")
    per_class = [
        _average_precision(logits, targets)
        for logits, targets in zip(logits_NC.T.numpy(force=True), targets_NC.T.numpy(force=True), strict=True)
        if targets.any()
    ]
    return float(np.mean(per_class)) if per_class else float("nan")


def _average_precision(scores_N: NDArray[np.floating], targets_N: NDArray[np.floating]) -> float:
    """The sum over the different scores, from the highest, of the precision times the increase of the recall.

    It is written here because torchmetrics, with the same result, takes 3 s to import.
    """
    _, place_N = np.unique(-scores_N, return_inverse=True)
    hits = np.bincount(place_N, weights=targets_N > 0)  # per different score
    precision = np.cumsum(hits) / np.cumsum(np.bincount(place_N))
    return float((precision * hits).sum() / hits.sum())


def chance_precision(num_positive: int, num_images: int) -> float:
    """The average precision that random scores have on average, in [0, 1].

    With few images it is far above their share of positive ones: 0.37 for two of ten.

    Args:
        num_positive: the images with the class, from 1 to `num_images`.

    Source: Bestgen, "Exact expected average precision of the random baseline for system evaluation", Prague Bulletin of
    Mathematical Linguistics 103, 2015.
    """
    if num_positive == num_images:
        return 1.0
    # An image of the class is at each place i with the same probability. Of the i - 1 images before it, this share is
    # of the class too, on average; so the precision at i is (1 + (i - 1) * share) / i
    share = (num_positive - 1) / (num_images - 1)
    places = np.arange(1, num_images + 1)
    return float(((1 + (places - 1) * share) / places).mean())


def confusion_matrix(
    truth: NDArray[np.integer], predicted: NDArray[np.integer], num_classes: int, ignore_value: int
) -> ConfusionMatrix:
    """The counts for one or more label maps (0 background, class number + 1).

    Args:
        truth: true labels; pixels with the ignore value are left out.
        predicted: labels of the same shape; pixels with the ignore value are counted in the last column.

    Raises:
        ValueError: the labels are no integers, the shapes differ, or a label is neither in the class list nor the
            ignore value.
    """
    require_array(truth, "integers", None, "confusion_matrix", "truth")
    require_array(predicted, "integers", None, "confusion_matrix", "predicted")
    if truth.shape != predicted.shape:
        raise ValueError(f"truth is {truth.shape}, the prediction is {predicted.shape}; resize one of them.")
    num_labels = num_classes + 1
    is_known = truth != ignore_value
    rows, given = truth[is_known].astype(np.int64), predicted[is_known].astype(np.int64)
    labels = np.concatenate([rows, given[given != ignore_value]])
    if labels.size and not 0 <= labels.min() <= labels.max() <= num_classes:
        raise ValueError(f"label maps have 0 to {num_classes} and {ignore_value} (ignore); these have other values.")
    columns = np.where(given == ignore_value, num_labels, given)
    counts = np.bincount(rows * (num_labels + 1) + columns, minlength=num_labels * (num_labels + 1))
    return counts.reshape(num_labels, num_labels + 1)


@dataclass(frozen=True)
class LabelMetrics:
    """The quality of label maps; each metric is in [0, 1], or NaN if no pixel counts for it.

    Attributes:
        iou: the IoU of the background and each class. A pixel that the prediction ignores is a miss of its true class.
            NaN for a label that is in neither truth nor prediction.
        mean_iou: the mean over the labels that have an IoU.
        foreground_precision: of the pixels predicted as a class, the share that truly has this class.
        foreground_recall: of the pixels that truly have a class, the share predicted as this class.
        background_precision, background_recall: the same for the background.
        coverage: the share of pixels that are not ignored.
    """

    iou: tuple[float, ...]
    mean_iou: float
    foreground_precision: float
    foreground_recall: float
    background_precision: float
    background_recall: float
    coverage: float


def label_metrics(matrix: ConfusionMatrix) -> LabelMetrics:
    """The metrics of a confusion matrix over all images.

    Raises:
        ValueError: it is not a matrix of ``confusion_matrix``.
    """
    require_array(matrix, "integers", ("L", "L + 1"), "label_metrics", "matrix")
    require_array(matrix, "integers", (len(matrix), len(matrix) + 1), "label_metrics", "matrix")
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
    """1 - |mean > theta| / |maximum > theta|, in [0, 1]: how much the samples of a class disagree; it needs no mask.

    Of the cells above theta in some sample, it is the share that is not above theta in the mean. None if no sample
    exceeds theta.

    Args:
        max_hw, mean_hw: a class's maximum and mean over the samples, in [0, 1].

    Raises:
        ValueError: they are no maps of one size.
    """
    require_array(max_hw, "floats", None, "disagreement", "max_hw")
    require_array(mean_hw, "floats", max_hw.shape, "disagreement", "mean_hw")
    num_by_maximum = int((max_hw > theta).sum())
    return 1 - int((mean_hw > theta).sum()) / num_by_maximum if num_by_maximum else None


def map_mismatch(
    labels_hw: NDArray[np.integer],
    max_shw: NDArray[np.floating],
    mean_shw: NDArray[np.floating],
    classes: NDArray[np.integer],
    theta: float,
    ignore: int,
) -> float:
    """1 - the mean IoU of a mask with its image's maps, in [0, 1]; it needs no mask drawn by hand.

    The maps give a cell to a class if some sample exceeds theta; of several classes, to that with the highest mean. The
    mean is over the classes in the mask or in the maps, so a class in only one of them counts as 0. If both are empty,
    the result is 1.

    Args:
        labels_hw: the mask at the maps' resolution: 0 background, class + 1, `ignore` for unknown.
        max_shw, mean_shw: maximum and mean over the samples of the image's S classes, in [0, 1].
        classes: int (S,), the numbers of these classes.

    Raises:
        ValueError: the sizes differ, or an array has another type.
    """
    require_classes(classes, None, "map_mismatch")
    shape = (len(classes), *labels_hw.shape)
    require_array(labels_hw, "integers", ("H", "W"), "map_mismatch", "labels_hw")
    require_array(max_shw, "floats", shape, "map_mismatch", "max_shw")
    require_array(mean_shw, "floats", shape, "map_mismatch", "mean_shw")
    is_found_shw = max_shw > theta
    best_hw = np.where(is_found_shw, mean_shw, -1).argmax(axis=0)
    found_hw = np.where(is_found_shw.any(axis=0), np.asarray(classes)[best_hw] + 1, 0)
    labels = ({*np.unique(labels_hw).tolist()} | {*np.unique(found_hw).tolist()}) - {0, ignore}
    ious = [
        np.logical_and(labels_hw == label, found_hw == label).sum()
        / np.logical_or(labels_hw == label, found_hw == label).sum()
        for label in labels
    ]
    return 1 - float(np.mean(ious)) if ious else 1.0


def seed_error(is_seed_hw: NDArray[np.bool_], is_true_hw: NDArray[np.bool_]) -> float | None:
    """1 - IoU of a class's seeds with its truth, in [0, 1]; None if both are empty.

    Raises:
        ValueError: they are not booleans of one size.
    """
    require_array(is_seed_hw, "booleans", None, "seed_error", "is_seed_hw")
    require_array(is_true_hw, "booleans", is_seed_hw.shape, "seed_error", "is_true_hw")
    union = int((is_seed_hw | is_true_hw).sum())
    return 1 - int((is_seed_hw & is_true_hw).sum()) / union if union else None
