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
    """mIoU on the report part: maps divided by their maximum, and evidence not divided, each with theta both ways."""
    train = [*tune, *report]
    raw = {image.index: maps.views["321"][image.index].raw_max_CHW.astype(np.float32) for image in train}
    rows = {"divided, one theta with masks": common.report.miou}
    by_class = choose_theta_by_class(maps.samples, common.threshold, tune)
    rows["divided, theta by class with masks"] = miou_at(maps.samples, by_class, report)

    # Undivided evidence is measured in the value that 2 of 100 cells of images without the class exceed
    absent = [[raw[image.index][c] for image in train if c not in image.labels] for c in range(len(CLASS_NAMES))]
    unit_C = np.array([theta_without_masks(of_class, 0.02) for of_class in absent])

    def in_units(image: Image) -> Evidence:
        return Evidence.of(raw[image.index][image.labels] / unit_C[image.labels][:, None, None])

    thetas = tuple(2 * theta for theta in THETAS)
    best = max(thetas, key=lambda theta: miou_at(in_units, np.full(len(CLASS_NAMES), theta), tune))
    rows["undivided, one theta with masks"] = miou_at(in_units, np.full(len(CLASS_NAMES), best), report)
    chosen = choose_theta_by_class(in_units, best, tune, thetas)
    rows["undivided, theta by class with masks"] = miou_at(in_units, chosen, report)
    for rate in FALSE_POSITIVE_RATES:
        theta_C = np.array([theta_without_masks(of_class, rate) for of_class in absent]) / unit_C
        rows[f"undivided, without masks, rate {rate}"] = miou_at(in_units, theta_C, report)
        rows[f"tune: undivided, without masks, rate {rate}"] = miou_at(in_units, theta_C, tune)
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
