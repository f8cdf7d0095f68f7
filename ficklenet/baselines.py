"""Baseline maps that need no sampling or no classifier. Seeds must be better than these before they prove anything.

If the images of a set have one class and one large object in the middle, a centred Gaussian segments them well. On such
a set a good metric shows how much of the image is covered, not where the object is. So these maps are measured together
with the seeds, on the same images and with the same thresholds.

All functions return float32 maps in [0, 1].

Shape legend: S slots (an image's classes), H W rows and columns of the grid.
"""

import numpy as np
from numpy.typing import NDArray

from ficklenet.arguments import require_array

Maps = NDArray[np.float32]


def all_ones(num_slots: int, grid: tuple[int, int]) -> Maps:
    """Maps of ones for every class: (S, H, W)."""
    return np.ones((num_slots, *grid), np.float32)


def centred_gaussian(num_slots: int, grid: tuple[int, int], width: float) -> Maps:
    """A Gaussian in the middle of the image, the same for every class: (S, H, W), 1 in the centre.

    Args:
        width: the standard deviation in units of half a side of the image; at 1 the middle of each side has exp(-1/2).
    """
    if width <= 0:
        raise ValueError(f"centred_gaussian: width {width} given; give a positive number of half sides, such as 0.5.")
    rows, cols = (np.linspace(-1.0, 1.0, length) if length > 1 else np.zeros(1) for length in grid)
    gaussian_HW = np.exp(-(rows[:, None] ** 2 + cols**2) / (2 * width**2))
    return np.broadcast_to(gaussian_HW / gaussian_HW.max(), (num_slots, *grid)).astype(np.float32)


def blurred(maps_SHW: NDArray[np.floating], sigma: float) -> Maps:
    """Each map after a Gaussian blur, divided by its maximum; an all-zero map remains zero.

    Args:
        maps_SHW: maps in [0, 1].
        sigma: the standard deviation in cells; 0 does not blur. Outside the border the map is zero, as in the
            classifier's windows.
    """
    from scipy.ndimage import gaussian_filter

    require_array(maps_SHW, "numbers", ("S", "H", "W"), "blurred", "maps_SHW")
    values = gaussian_filter(maps_SHW.astype(np.float32), (0, sigma, sigma), mode="constant")
    return divided_by_maximum(values)


def dilated(maps_SHW: NDArray[np.floating], radius: int) -> Maps:
    """Maps (S, H, W) in which each cell has the largest value in a disc around it.

    Args:
        maps_SHW: maps in [0, 1].
        radius: the radius of the disc in cells; 0 does not change the maps.
    """
    from scipy.ndimage import grey_dilation

    require_array(maps_SHW, "numbers", ("S", "H", "W"), "dilated", "maps_SHW")
    offsets = np.arange(-radius, radius + 1)
    disc = offsets[:, None] ** 2 + offsets**2 <= radius**2
    return grey_dilation(maps_SHW.astype(np.float32), footprint=disc[None], mode="constant")


def divided_by_maximum(maps_SHW: NDArray[np.floating]) -> Maps:
    """Each map divided by its largest value; an all-zero map remains zero."""
    require_array(maps_SHW, "numbers", ("S", "H", "W"), "divided_by_maximum", "maps_SHW")
    largest_S11 = maps_SHW.max(axis=(1, 2), keepdims=True)
    return (maps_SHW / np.where(largest_S11 > 0, largest_S11, 1)).astype(np.float32)
