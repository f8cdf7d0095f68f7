"""Finds the objects in an image's labels: the 8-connected components of each class, as masks with boxes or polygons."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from storage.masks import SPECK_PIXELS

_EIGHT_NEIGHBOURS = np.ones((3, 3), bool)
_RIGHT, _DOWN, _LEFT, _UP = (1, 0), (0, 1), (-1, 0), (0, -1)  # steps (x, y) along the sides of pixels


@dataclass(frozen=True)
class Region:
    """One 8-connected component of a class.

    Attributes:
        class_number: 0..C-1.
        left, top: the corner of its box, in pixels.
        mask: bool (height, width), the component in its box, which it touches on all four sides.
    """

    class_number: int
    left: int
    top: int
    mask: np.ndarray

    @property
    def width(self) -> int:
        return self.mask.shape[1]

    @property
    def height(self) -> int:
        return self.mask.shape[0]

    @property
    def area(self) -> int:
        """In pixels."""
        return int(self.mask.sum())

    def in_image(self, size: tuple[int, int]) -> np.ndarray:
        """Bool (H, W): the component in an image of this size."""
        whole = np.zeros(size, bool)
        whole[self.top : self.top + self.height, self.left : self.left + self.width] = self.mask
        return whole


def regions(labels: np.ndarray, num_classes: int) -> Iterator[Region]:
    """All components in an image's labels (H, W), by class and in reading order; ignored pixels are in none."""
    for label in np.unique(labels):
        if 1 <= label <= num_classes:
            numbered, _ = ndimage.label(labels == label, structure=_EIGHT_NEIGHBOURS)
            for number, (rows, columns) in enumerate(ndimage.find_objects(numbered), start=1):
                mask = numbered[rows, columns] == number
                yield Region(int(label) - 1, columns.start, rows.start, mask)


def count_regions(labels: np.ndarray, num_classes: int) -> tuple[int, int]:
    """The number of components in an image's labels (H, W), and of those with fewer than `SPECK_PIXELS` pixels."""
    num_objects = num_specks = 0
    for label in np.unique(labels):
        if 1 <= label <= num_classes:
            numbered, _ = ndimage.label(labels == label, structure=_EIGHT_NEIGHBOURS)
            areas = np.bincount(numbered.ravel())[1:]
            num_objects += len(areas)
            num_specks += int((areas < SPECK_PIXELS).sum())
    return num_objects, num_specks


def without_small(labels: np.ndarray, num_classes: int, min_pixels: int) -> tuple[np.ndarray, int]:
    """An image's labels (H, W) in which components of fewer than `min_pixels` are background, and their number."""
    found, number = labels.copy(), 0
    for region in regions(labels, num_classes):
        if region.area < min_pixels:
            box = found[region.top : region.top + region.height, region.left : region.left + region.width]
            box[region.mask] = 0
            number += 1
    return found, number


def polygon(region: Region) -> np.ndarray:
    """A component as one closed polygon along the sides of its pixels: int (N, 2), x and y of the corners.

    Pixel (row, col) is the square from (col, row) to (col + 1, row + 1). If a tool fills a pixel when its centre is
    inside, the polygon is exact. Holes are joined to the outline by a cut of zero width, because most formats have only
    one ring per object.
    """
    outline, *holes = _rings(region.mask)
    for hole in holes:
        outline = _joined(outline, hole)
    return outline + np.array([region.left, region.top])


def _rings(mask: np.ndarray) -> list[np.ndarray]:
    """The rings of a component's border, each (N, 2) corners x, y; the outer ring is first."""
    steps = _border_steps(mask)
    rings = []
    while steps:
        start = next(iter(steps))
        point, before, corners = start, None, []
        while point in steps:
            step = _take(steps, point, before)
            if step != before:
                corners.append(point)
            before, point = step, (point[0] + step[0], point[1] + step[1])
        rings.append(np.array(corners))
    return rings


def _border_steps(mask: np.ndarray) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Steps of length 1 along the border, by their starting point, in reading order; the component is on the right."""
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    sides = (  # the neighbour across the side, the start of the side, its direction
        (padded[:-2, 1:-1], (0, 0), _RIGHT),
        (padded[1:-1, 2:], (1, 0), _DOWN),
        (padded[2:, 1:-1], (1, 1), _LEFT),
        (padded[1:-1, :-2], (0, 1), _UP),
    )
    found = []
    for neighbour, (x, y), step in sides:
        rows, columns = np.nonzero(inside & ~neighbour)
        found += [((row + y, column + x), step) for row, column in zip(rows.tolist(), columns.tolist(), strict=True)]
    steps: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for (row, column), step in sorted(found):
        steps.setdefault((column, row), []).append(step)
    return steps


def _take(
    steps: dict[tuple[int, int], list[tuple[int, int]]], point: tuple[int, int], before: tuple[int, int] | None
) -> tuple[int, int]:
    """Removes and returns the next step; of two it takes the left one, which keeps diagonal neighbours together."""
    choices = steps[point]
    left_turn = (before[1], -before[0]) if before else choices[0]
    step = left_turn if left_turn in choices else choices[0]
    choices.remove(step)
    if not choices:
        del steps[point]
    return step


def _joined(outline: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The outline with a path to a hole, around it and back, at the place where the two are nearest."""
    squared = ((outline[:, None] - hole[None]) ** 2).sum(2)
    here, there = np.unravel_index(squared.argmin(), squared.shape)
    around = np.concatenate([hole[there:], hole[: there + 1]])
    return np.concatenate([outline[: here + 1], around, outline[here:]])
