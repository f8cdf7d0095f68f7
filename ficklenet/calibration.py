"""Theta without masks: each class's threshold from images that are labelled without the class.

Where an image does not have a class, every cell above the class's threshold is wrong. So the threshold is set where a
given share of these cells lies above it. The maps must be comparable between images, so this takes evidence before the
division by each map's own maximum, which would make 1 of the strongest cell of any image, with the class or without.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def theta_without_masks(evidence_of_absent_class: Sequence[NDArray[np.floating]], false_positive_rate: float) -> float:
    """The least theta at which at most this share of cells lies above it.

    Args:
        evidence_of_absent_class: maps of one class in images labelled without it, of any shapes.
        false_positive_rate: the share of these maps' cells that may exceed theta, in [0, 1).

    Raises:
        ValueError: no map, or a rate outside [0, 1).
    """
    if not 0 <= false_positive_rate < 1:
        raise ValueError(f"false_positive_rate: {false_positive_rate} given; give a share from 0 to below 1.")
    if not evidence_of_absent_class:
        raise ValueError("theta_without_masks: no image without the class given. Set the class's theta by hand.")
    values = np.sort(np.concatenate([np.asarray(evidence).ravel() for evidence in evidence_of_absent_class]))
    num_allowed = int(false_positive_rate * len(values))
    return float(values[len(values) - 1 - num_allowed])
