"""From evidence to figures: seeds at many thresholds, confusion matrices by image, and what is chosen on the tune part.

Everything is at map resolution. A cell is background where no class exceeds theta, so every cell has a label. mIoU
counts an ignored cell as a miss, so that tuning would choose no second threshold for the background.

Shape legend: I images, T thresholds or other settings, S slots, L labels (background and classes), H W grid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from voc6_data import CLASS_NAMES, IGNORE, Image

from ficklenet.metrics import label_metrics

THETAS = (0.01, 0.02, 0.03, 0.05, 0.07, *(round(0.1 + 0.025 * step, 3) for step in range(29)), 0.85, 0.9, 0.95)
NUM_LABELS = len(CLASS_NAMES) + 1

Maps = NDArray[np.float32]
Labels = NDArray[np.uint8]
Matrices = NDArray[np.int64]  # (I, T, L, L + 1)


@dataclass(frozen=True)
class Evidence:
    """One image's maps: what theta is compared with, and what decides between classes that both exceed it."""

    values_SHW: Maps
    rank_SHW: Maps

    @classmethod
    def of(cls, values_SHW: NDArray[np.floating]) -> "Evidence":
        values_SHW = np.asarray(values_SHW, np.float32)
        return cls(values_SHW, values_SHW)


@dataclass(frozen=True)
class Setting:
    """One setting of a row: how an image becomes a label map at each of some thresholds."""

    name: str
    labels_of: Callable[[Image, Sequence[float]], Labels]  # an image and T thresholds -> (T, H, W)
    thresholds: Sequence[float] = THETAS


@dataclass(frozen=True)
class Figures:
    miou: float
    miou_several: float
    precision: float
    recall: float


def by_theta(name: str, evidence_of: Callable[[Image], Evidence], thetas: Sequence[float] = THETAS) -> Setting:
    """The setting whose seeds are the evidence above theta."""
    return Setting(name, lambda image, wanted: seeds_at(evidence_of(image), image.labels, wanted), thetas)


def seeds_at(evidence: Evidence, classes_S: NDArray[np.integer], thetas: Sequence[float]) -> Labels:
    """Seeds at each theta (T, H, W): of the classes above theta the one of the highest rank, else background."""
    return np.stack([seeds_above(evidence, classes_S, theta) for theta in thetas])


def seeds_above(evidence: Evidence, classes_S: NDArray[np.integer], theta: float | NDArray[np.floating]) -> Labels:
    """The same at one theta, or one for each slot (S, 1, 1)."""
    is_seeded = evidence.values_SHW > theta
    if len(classes_S) == 1:
        return (is_seeded[0] * (classes_S[0] + 1)).astype(np.uint8)
    best_HW = np.where(is_seeded, evidence.rank_SHW, -1.0).argmax(axis=0)
    return np.where(is_seeded.any(axis=0), classes_S[best_HW] + 1, 0).astype(np.uint8)


def confusion(truth: Labels, labels: Labels) -> NDArray[np.int64]:
    """As ``ficklenet.metrics.confusion_matrix``, quicker as nothing is checked: (L, L + 1)."""
    is_known = truth != IGNORE
    given = np.minimum(labels[is_known], NUM_LABELS)
    counts = np.bincount(
        truth[is_known].astype(np.int64) * (NUM_LABELS + 1) + given, minlength=NUM_LABELS * (NUM_LABELS + 1)
    )
    return counts.reshape(NUM_LABELS, NUM_LABELS + 1)


def matrices_of(setting: Setting, images: Sequence[Image]) -> Matrices:
    return np.stack(
        [
            [confusion(image.truth, labels) for labels in setting.labels_of(image, setting.thresholds)]
            for image in images
        ]
    )


def miou(matrix: NDArray[np.int64]) -> float:
    return label_metrics(matrix).mean_iou


def figures(matrices_ILM: NDArray[np.int64], images: Sequence[Image]) -> Figures:
    """Of one confusion matrix for each image."""
    pooled = label_metrics(matrices_ILM.sum(0))
    is_several = np.array([image.has_several_classes for image in images])
    return Figures(
        pooled.mean_iou, miou(matrices_ILM[is_several].sum(0)), pooled.foreground_precision, pooled.foreground_recall
    )


def best_threshold(matrices: Matrices) -> int:
    """Which threshold has the highest mIoU on these images."""
    return int(np.argmax([miou(matrix) for matrix in matrices.sum(0)]))


@dataclass(frozen=True)
class Choice:
    """What tuning chose for a row, and its figures on the images to report on."""

    setting: str
    threshold: float
    tune_miou: float
    report: Figures


def choose(settings: Sequence[Setting], tune: Sequence[Image], report: Sequence[Image]) -> Choice:
    """The setting and threshold of the highest mIoU on the tune part, measured on the report part."""
    best: tuple[float, Setting, int] | None = None
    for setting in settings:
        matrices = matrices_of(setting, tune)
        index = best_threshold(matrices)
        value = miou(matrices[:, index].sum(0))
        if best is None or value > best[0]:
            best = value, setting, index
    assert best is not None
    value, setting, index = best
    threshold = setting.thresholds[index]
    reported = np.stack([confusion(image.truth, setting.labels_of(image, [threshold])[0]) for image in report])
    return Choice(setting.name, threshold, value, figures(reported, report))


def choose_theta_by_class(
    evidence_of: Callable[[Image], Evidence], start: float, tune: Sequence[Image], thetas: Sequence[float] = THETAS
) -> NDArray[np.float64]:
    """A theta for each class by coordinate ascent of the tune part's mIoU, two rounds, from a common one."""
    chosen = np.full(len(CLASS_NAMES), start)
    kept = [evidence_of(image) for image in tune]

    def value(trial: NDArray[np.float64]) -> float:
        return miou(
            sum(  # type: ignore[arg-type]
                confusion(image.truth, seeds_above(evidence, image.labels, trial[image.labels][:, None, None]))
                for image, evidence in zip(tune, kept, strict=True)
            )
        )

    for _ in range(2):
        for number in range(len(CLASS_NAMES)):
            trials = np.repeat(chosen[None], len(thetas), axis=0)
            trials[:, number] = thetas
            chosen = trials[int(np.argmax([value(trial) for trial in trials]))]
    return chosen
