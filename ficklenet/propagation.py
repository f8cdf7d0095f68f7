"""Spreads maps along affinities between cells: evidence spreads to cells that look alike and stops at other cells.

It is a random walk as in PSA (Ahn and Kwak, CVPR 2018) and IRN (Ahn et al., CVPR 2019), but without a network for the
affinities. Two neighbouring cells have a high affinity if the cosines of their features in several stages of the
backbone are high and their colours are similar. The pass that makes the maps also computes these features.

Shape legend: S slots, K channels, H W grid, V = H * W cells, row-major.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ficklenet.arguments import require_array

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


@dataclass(frozen=True)
class Likeness:
    """The parameters of the affinity of two cells.

    Attributes:
        radius: the largest distance, in cells, of two cells with an affinity.
        power: the cosine of every stage is raised to this power; the results of all stages are multiplied.
        colour_deviation: the standard deviation of a Gaussian of the difference of 8-bit colours; None: no colours.
    """

    radius: int = 5
    power: float = 4.0
    colour_deviation: float | None = 30.0


def transitions(
    stages: Sequence[NDArray[np.floating]], colours_HWC: NDArray[np.uint8] | None, likeness: Likeness
) -> "csr_matrix":
    """The matrix (V, V) of the walk: row i has the shares, which sum to 1, that cell i takes from other cells.

    Args:
        stages: features (K, H, W) of one or more stages on the same grid. A negative cosine counts as 0.
        colours_HWC: the image, uint8 RGB, at the size of the grid, or None if ``likeness`` uses no colours.

    Raises:
        ValueError: the stages are no floats on one grid, or the colours are missing or no uint8 image of this size.
    """
    from scipy.sparse import csr_matrix, diags

    require_array(stages[0], "floats", ("K", "H", "W"), "transitions", "stages")
    height, width = stages[0].shape[1:]
    for stage in stages[1:]:
        require_array(stage, "floats", ("K", height, width), "transitions", "stages")
    if likeness.colour_deviation is not None:
        text = ", RGB, or Likeness(colour_deviation=None)"
        require_array(colours_HWC, "uint8", (height, width, 3), "transitions", "colours_HWC", text)
    unit_stages = [_unit_vectors(stage) for stage in stages]
    deviation = likeness.colour_deviation
    colours = None if deviation is None or colours_HWC is None else colours_HWC.astype(np.float32) / deviation
    cell = np.arange(height * width).reshape(height, width)
    rows, cols, values = [], [], []
    for down, right in _half_disc(likeness.radius):
        here, there = _shifted(height, width, down, right)
        affinity = np.ones(cell[here].shape, np.float32)
        for unit in unit_stages:
            cosine = np.einsum("khw,khw->hw", unit[:, *here], unit[:, *there])  # without an array of all products
            affinity *= cosine.clip(0) ** likeness.power
        if colours is not None:
            affinity *= np.exp(-((colours[here] - colours[there]) ** 2).sum(-1) / 2)
        rows += [cell[here].ravel(), cell[there].ravel()]
        cols += [cell[there].ravel(), cell[here].ravel()]
        values += [affinity.ravel(), affinity.ravel()]
    diagonal = cell.ravel()
    weights = csr_matrix(
        (
            np.concatenate([*values, np.ones(len(diagonal), np.float32)]),
            (np.concatenate([*rows, diagonal]), np.concatenate([*cols, diagonal])),
        ),
        shape=(height * width, height * width),
    )
    return (diags(1 / np.asarray(weights.sum(axis=1)).ravel().astype(np.float32)) @ weights).tocsr()


def walk(
    transitions_VV: "csr_matrix", maps_SHW: NDArray[np.floating], num_steps: int, restart: float = 0.0
) -> NDArray[np.float32]:
    """The maps after ``num_steps`` steps of the walk: (S, H, W), in the range of the given maps.

    Args:
        restart: the share of the given map in the result of each step; with 0, many steps flatten the map.

    Raises:
        ValueError: the maps are not numbers (S, H, W).
    """
    require_array(maps_SHW, "numbers", ("S", "H", "W"), "walk", "maps_SHW")
    start_VS = maps_SHW.reshape(len(maps_SHW), -1).T.astype(np.float32)
    current_VS = start_VS
    for _ in range(num_steps):
        current_VS = (1 - restart) * (transitions_VV @ current_VS) + restart * start_VS
    return np.ascontiguousarray(current_VS.T).reshape(maps_SHW.shape)


def _unit_vectors(features_KHW: NDArray[np.floating]) -> NDArray[np.float32]:
    values = features_KHW.astype(np.float32)
    length = np.sqrt((values**2).sum(0))
    return np.asarray(values / np.where(length > 0, length, 1), np.float32)


def _half_disc(radius: int) -> list[tuple[int, int]]:
    """The offsets (down, right) within the radius, without (0, 0); of two opposite offsets only one."""
    offsets = range(-radius, radius + 1)
    return [
        (down, right)
        for down in range(radius + 1)
        for right in offsets
        if (down, right) > (0, 0) and down**2 + right**2 <= radius**2
    ]


def _shifted(height: int, width: int, down: int, right: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The cells that have a neighbour at this offset, and these neighbours."""
    rows, cols = slice(0, height - down), slice(max(0, -right), width - max(0, right))
    return (rows, cols), (slice(down, height), slice(cols.start + right, cols.stop + right))
