"""What theta without masks loses on VOC6 against theta chosen with masks, for the same maps."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from voc6_data import CLASS_NAMES, Image
from voc6_measure import THETAS, Choice, Evidence, choose_theta_by_class, confusion, figures, seeds_above
from voc6_rows import HeadMaps

from ficklenet.calibration import theta_without_masks

FALSE_POSITIVE_RATES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)


def theta_rows(maps: HeadMaps, tune: Sequence[Image], report: Sequence[Image], common: Choice) -> dict[str, float]:
    """mIoU on the report part by theta chosen with masks, and by theta calibrated on images without the class.

    Calibration needs evidence that is comparable between images, so the samples' maps, each divided by its maximum, are
    multiplied by the maximum of the expected Grad-CAM, and divided by what 2 of 100 cells of the expected Grad-CAMs of
    images without the class exceed.
    """
    train = [*tune, *report]
    raw = {image.index: maps.views["321"][image.index].raw_CHW.astype(np.float32) for image in train}
    absent = [[raw[image.index][c] for image in train if c not in image.labels] for c in range(len(CLASS_NAMES))]
    unit_C = np.array([theta_without_masks(of_class, 0.02) for of_class in absent])

    def undivided(image: Image) -> Evidence:
        largest = raw[image.index][image.labels].max(axis=(1, 2)) / unit_C[image.labels]
        evidence = maps.samples(image)
        return Evidence(evidence.values_SHW * largest[:, None, None], evidence.rank_SHW * largest[:, None, None])

    def everywhere(theta: float) -> NDArray[np.float64]:
        return np.full(len(CLASS_NAMES), theta)

    thetas = tuple(3 * theta for theta in THETAS)
    best = max(thetas, key=lambda theta: miou_at(undivided, everywhere(theta), tune))
    rows = {
        "divided by the maximum, one theta with masks": common.report.miou,
        "divided by the maximum, theta by class with masks": miou_at(
            maps.samples, choose_theta_by_class(maps.samples, common.threshold, tune), report
        ),
        "undivided, one theta with masks": miou_at(undivided, everywhere(best), report),
        "undivided, theta by class with masks": miou_at(
            undivided, choose_theta_by_class(undivided, best, tune, thetas), report
        ),
    }
    for rate in FALSE_POSITIVE_RATES:
        theta_C = np.array([theta_without_masks(of_class, rate) for of_class in absent]) / unit_C
        rows[f"undivided, without masks, rate {rate}"] = miou_at(undivided, theta_C, report)
        rows[f"undivided, without masks, rate {rate}, tune part"] = miou_at(undivided, theta_C, tune)
    return rows


def miou_at(evidence_of: Callable[[Image], Evidence], theta_C: NDArray[np.floating], images: Sequence[Image]) -> float:
    """mIoU on these images with a theta for each class."""
    matrices = np.stack(
        [
            confusion(image.truth, seeds_above(evidence_of(image), image.labels, theta_C[image.labels][:, None, None]))
            for image in images
        ]
    )
    return figures(matrices, images).miou
