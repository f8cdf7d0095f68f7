"""Makes label maps from localisation maps: seeds (only where the maps are confident) and densified seeds (everywhere).

Label maps: 0 background, class number + 1, and an ignore value for unknown. All arrays are of one image and have the
same size (height, width). In an image without mapped classes all is unknown.

Shape legend: S slots (an image's mapped classes, ascending), H W rows and columns of the grid or the image.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ficklenet.arguments import require_array, require_classes

Priority = Literal["background", "foreground"]
Labels = NDArray[np.int64]


def background_cue(
    max_SHW: NDArray[np.floating],
    saliency_HW: NDArray[np.floating] | None,
    *,
    saliency_threshold: float,
    evidence_threshold: float,
) -> NDArray[np.bool_]:
    """Where an image is certainly background.

    Args:
        max_SHW: maximum over the samples, in [0, 1].
        saliency_HW: a saliency map in [0, 1], or None if there is none.
        saliency_threshold: cells with saliency below this are background (0.06: Huang et al., CVPR 2018).
        evidence_threshold: without saliency, cells are background if the maximum of every class is below this.

    Raises:
        ValueError: the maps or the saliency are no floats, or their sizes differ.
    """
    require_array(max_SHW, "floats", ("S", "H", "W"), "background_cue", "max_SHW")
    if saliency_HW is not None:
        require_array(saliency_HW, "floats", max_SHW.shape[1:], "background_cue", "saliency_HW", ", in [0, 1]")
        return np.asarray(saliency_HW < saliency_threshold)
    return np.asarray((max_SHW < evidence_threshold).all(axis=0))


def aggregate(
    max_SHW: NDArray[np.floating],
    mean_SHW: NDArray[np.floating],
    classes_S: NDArray[np.integer],
    background_HW: NDArray[np.bool_],
    *,
    theta: float,
    priority: Priority,
    ignore_value: int,
) -> Labels:
    """Seeds of one image (Lee et al., CVPR 2019, section 3.3).

    A cell becomes a seed of a class if the class's maximum over the samples exceeds theta. If several classes exceed
    theta, the class with the highest mean gets the cell (of equal means the lowest class number). Cells without a seed
    of a class are unknown or, by the background cue, background.

    Args:
        max_SHW, mean_SHW: maximum and mean over the samples, in [0, 1].
        classes_S: class numbers.
        background_HW: the background cue.
        theta: the threshold, exclusive.
        priority: which label a cell gets if it is both background and a seed of a class.
        ignore_value: the label of unknown cells.

    Raises:
        ValueError: an array has another type or size than these, or a class number is below 0.
    """
    require_array(background_HW, "booleans", ("H", "W"), "aggregate", "background_HW")
    if len(classes_S) == 0:
        return np.full(background_HW.shape, ignore_value, np.int64)
    require_classes(classes_S, len(max_SHW), "aggregate")
    shape = (len(classes_S), *background_HW.shape)
    require_array(max_SHW, "floats", shape, "aggregate", "max_SHW")
    require_array(mean_SHW, "floats", shape, "aggregate", "mean_SHW")
    is_seeded_SHW = max_SHW > theta
    best_HW = np.where(is_seeded_SHW, mean_SHW, -1.0).argmax(axis=0)
    labels = np.where(is_seeded_SHW.any(axis=0), classes_S[best_HW].astype(np.int64) + 1, ignore_value)
    yields_HW = background_HW if priority == "background" else background_HW & (labels == ignore_value)
    return np.where(yields_HW, 0, labels)


def dense_scores(
    max_SHW: NDArray[np.floating],
    saliency_HW: NDArray[np.floating] | None,
    *,
    background_exponent: float,
) -> NDArray[np.float32]:
    """Evidence for the background, then for each slot: float32 (1 + S, H, W) in [0, 1].

    Args:
        max_SHW: maximum over the samples, in [0, 1]; at least one slot.
        saliency_HW: a saliency map in [0, 1]; its complement is the background's evidence.
        background_exponent: without saliency, the background's evidence is (1 - highest maximum) to this power (Ahn
            and Kwak, CVPR 2018, equation 2); with values below 1 the background grows.

    Raises:
        ValueError: the maps or the saliency are no floats, or their sizes differ.
    """
    require_array(max_SHW, "floats", ("S", "H", "W"), "dense_scores", "max_SHW")
    if saliency_HW is not None:
        require_array(saliency_HW, "floats", max_SHW.shape[1:], "dense_scores", "saliency_HW", ", in [0, 1]")
        background_HW = 1 - saliency_HW
    else:
        background_HW = (1 - max_SHW.max(axis=0)) ** background_exponent
    return np.concatenate([background_HW[None], max_SHW]).astype(np.float32)


def densify(scores_LHW: NDArray[np.floating], classes_S: NDArray[np.integer]) -> Labels:
    """The label with the highest score in every cell; of equal scores the lowest label.

    Args:
        scores_LHW: scores of the background and of each slot, L = 1 + S.
        classes_S: class numbers.

    Raises:
        ValueError: the number of classes does not fit the scores, or a class number is below 0.
    """
    require_array(scores_LHW, "floats", ("L", "H", "W"), "densify", "scores_LHW")
    require_classes(classes_S, len(scores_LHW) - 1, "densify")
    labels_L = np.concatenate([[0], classes_S.astype(np.int64) + 1])
    return labels_L[scores_LHW.argmax(axis=0)]


def resize_labels(labels_HW: NDArray[np.integer], size: tuple[int, int]) -> NDArray[np.integer]:
    """Labels at another size by nearest neighbour, with aligned corners as in ``ficklenet.transforms``.

    Raises:
        ValueError: the labels are not one array of integers (H, W).
    """
    require_array(labels_HW, "integers", ("H", "W"), "resize_labels", "labels")
    rows, cols = (
        np.rint(np.linspace(0, before - 1, after)).astype(int)
        for before, after in zip(labels_HW.shape, size, strict=True)
    )
    return labels_HW[rows[:, None], cols]
