"""Theta without masks: the threshold of each class is chosen on the images that do not have the class.

In an image without a class, every cell above the class's threshold is wrong. So the threshold is chosen such that a
given share of these cells is above it. The maps must be comparable between images, so they must not be divided by their
own maximum: after that, the strongest cell of every image is 1, with or without the class.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def theta_without_masks(evidence_of_absent_class: Sequence[NDArray[np.floating]], false_positive_rate: float) -> float:
    """The least theta that at most this share of the cells exceeds.

    Args:
        evidence_of_absent_class: maps of a class in images without this class, of any shapes.
        false_positive_rate: the share of the cells of these maps that may exceed theta, in [0, 1).

    Raises:
        ValueError: there is no map, a map has NaN, or the rate is outside [0, 1).
    """
    if not 0 <= false_positive_rate < 1:
        raise ValueError(f"false_positive_rate: {false_positive_rate} given; give a share from 0 to below 1.")
    if not evidence_of_absent_class:
        raise ValueError("theta_without_masks: given no image without the class. Set the theta of this class by hand.")
    values = np.sort(np.concatenate([np.asarray(evidence).ravel() for evidence in evidence_of_absent_class]))
    if len(values) and np.isnan(values[-1]):  # sorted to the end
        raise ValueError("theta_without_masks: given maps with NaN, allowed: maps without empty slots.")
    num_allowed = int(false_positive_rate * len(values))
    return float(values[len(values) - 1 - num_allowed])
