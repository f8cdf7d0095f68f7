"""Draws label masks from outlines: polygons and run lengths, as in the files of COCO and labelme.

Where instances overlap, the smaller one is on top. Pixels that only a crowd region covers are ignored.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as run_lengths

RunLengths = dict[str, Any]


@dataclass(frozen=True)
class Drawing:
    """The outlines of one image, from which a label mask can be drawn.

    Attributes:
        height, width: the size of the picture on which the outlines were drawn, as in the source.
        instances: (class value, run lengths) of each instance; crowds: only the run lengths.
        ignored: the value of pixels that only a crowd covers: 255 or 65535.
    """

    height: int
    width: int
    instances: tuple[tuple[int, RunLengths], ...]
    crowds: tuple[RunLengths, ...]
    ignored: int

    def draw(self) -> np.ndarray:
        """(H, W) uint8 or uint16: class values, 0 background, `ignored` at pixels that only a crowd covers."""
        mask = np.zeros((self.height, self.width), np.uint8 if self.ignored == 255 else np.uint16)
        for crowd in self.crowds:
            mask[run_lengths.decode(crowd) > 0] = self.ignored
        for value, instance in sorted(self.instances, key=lambda each: -int(run_lengths.area(each[1]))):
            mask[run_lengths.decode(instance) > 0] = value
        return mask


def encode_mask(mask: np.ndarray) -> bytes:
    """An (H, W) uint8 or uint16 mask as a grey PNG; equal masks give equal bytes."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return buffer.getvalue()


def outline(segmentation: Any, height: int, width: int) -> RunLengths | None:
    """Polygons or run lengths, plain or compressed, as compressed run lengths; None for anything else."""
    try:
        if isinstance(segmentation, list):
            flat = all(isinstance(value, int | float) for value in segmentation)  # one polygon without a list around it
            polygons = list(_polygons([segmentation] if flat else segmentation, height, width))
            return run_lengths.merge(run_lengths.frPyObjects(polygons, height, width)) if polygons else None
        if list(segmentation["size"]) != [height, width]:
            return None
        counts = segmentation["counts"]
        if isinstance(counts, str):
            found = {"size": [height, width], "counts": counts.encode("ascii")}
        elif all(type(count) is int and count >= 0 for count in counts) and sum(counts) == height * width:
            found = run_lengths.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        else:
            return None
        run_lengths.decode(found)
    except (ValueError, TypeError, KeyError, OverflowError):
        return None
    return found


def painted(mask: np.ndarray) -> RunLengths:
    """The pixels of an (H, W) mask that are not 0, as run lengths."""
    return run_lengths.encode(np.asfortranarray(mask, dtype=np.uint8))


def _polygons(given: Sequence[Any], height: int, width: int) -> Iterator[list[float]]:
    """Polygons of three points or more, clipped to the image, which limits the cost of drawing them."""
    for polygon in given:
        points = np.asarray(polygon, dtype=np.float64)
        if points.ndim != 1 or len(points) % 2 or not np.isfinite(points).all():
            raise ValueError("a polygon is a list x1, y1, x2, y2, ...")
        if len(points) >= 6:
            yield np.clip(points.reshape(-1, 2), 0, (width, height)).reshape(-1).tolist()
