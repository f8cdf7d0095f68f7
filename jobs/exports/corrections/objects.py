"""Shared by the readers of corrected masks: makes an image's mask from its objects.

If objects overlap, the smaller one lies on top. Pixels without an object are background.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.exports.labelled_image import Classes
from jobs.run.split_names import nearest
from storage.drawings import Drawing, encode_mask, outline
from storage.location import Location

RunLengths = dict[str, Any]
Size = tuple[int, int]  # (height, width)


@dataclass(frozen=True)
class CorrectedMask:
    """One image's mask.

    Attributes:
        name: the image's name in the file; for a PNG, the path of the PNG.
        size: (height, width) in the file; None if the file does not have it.
        num_objects: number of objects of the image; for a PNG, number of its classes.
        data: a PNG with the data set's own class values; 0 is background.
    """

    name: str
    size: Size | None
    num_objects: int
    data: bytes


@dataclass(frozen=True)
class Objects:
    """Makes masks from the objects in one file.

    Attributes:
        place: the file; refusals name it.
        classes: the classes of the run.
    """

    place: Location
    classes: Classes

    def mask(self, name: str, size: Size, objects: Sequence[tuple[str, Any]]) -> CorrectedMask:
        """The mask of an image.

        Args:
            objects: for each object, its class name and its outline in COCO's form (polygons or run lengths).

        Raises:
            ValueError: a class is unknown, or an outline does not have this size.
        """
        outlines = [self._outline(name, segmentation, size) for _, segmentation in objects]
        found = [(self.value(label), each) for (label, _), each in zip(objects, outlines, strict=True)]
        ignored = 255 if max(self.classes.values) < 255 else 65535
        drawing = Drawing(*size, tuple(found), (), ignored)
        return CorrectedMask(name, size, len(objects), encode_mask(drawing.draw()))

    def value(self, label: str) -> int:
        """A class's value in the data set's own masks.

        Raises:
            ValueError: the run has no such class.
        """
        names = self.classes.names
        if label not in names:
            raise ValueError(
                f"{self.place}: {label!r} is not a class of the run.{nearest(label, names)} Its classes are "
                f"{', '.join(names[:20])}."
            )
        return self.classes.values[names.index(label)]

    def _outline(self, name: str, segmentation: Any, size: Size) -> RunLengths:
        found = outline(segmentation, *size)
        if found is None:
            raise ValueError(
                f"{self.place}: image {name!r} has an object that is neither a polygon nor a mask of {size[1]} x "
                f"{size[0]} pixels. Change it to one of these, or delete it."
            )
        return found


def column_runs(mask: np.ndarray) -> RunLengths:
    """COCO's plain run lengths of a mask (H, W) of 0 and 1: column by column, starting with a run of 0."""
    flat = mask.astype(np.uint8).T.reshape(-1)
    ends = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
    counts = np.diff(ends).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}
