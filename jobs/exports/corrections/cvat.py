"""CVAT for images 1.1, an XML file: polygons, and masks as run lengths within their box."""

from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import numpy as np

from jobs.exports.corrections.objects import CorrectedMask, Objects, Size, column_runs


def read(objects: Objects) -> Iterator[CorrectedMask]:
    """The masks of the images in the file. Tags are ignored, because they describe whole images.

    Raises:
        ValueError: the file is not CVAT's XML for images, or an object is not a mask of a known class.
    """
    try:
        root = ElementTree.fromstring(objects.place.read_bytes())
        images = list(root.iter("image"))
        sizes = [(int(image.attrib["height"]), int(image.attrib["width"])) for image in images]
        names = [image.attrib["name"] for image in images]
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        raise ValueError(f"{objects.place}: not CVAT's XML for images ({type(error).__name__}: {error}).") from error
    if not images:
        raise ValueError(
            f"{objects.place}: this file has no images. Export as 'CVAT for images 1.1'; video tracks are not read."
        )
    for image, name, size in zip(images, names, sizes, strict=True):
        shapes = [shape for shape in image if shape.tag != "tag"]
        found = [(shape.get("label", ""), _segmentation(shape, size)) for shape in shapes]
        yield objects.mask(name, size, found)


def _segmentation(shape: ElementTree.Element, size: Size) -> Any:
    """A shape in COCO's form; None for a shape that is not an area."""
    try:
        if shape.tag == "polygon":
            pairs = [pair.split(",") for pair in shape.attrib["points"].split(";")]
            return [[float(coordinate) for pair in pairs for coordinate in pair]]
        if shape.tag == "mask":
            runs = [int(run) for run in shape.attrib["rle"].split(",")]
            left, top, width, height = (int(shape.attrib[name]) for name in ("left", "top", "width", "height"))
            inside = np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width)
            whole = np.zeros(size, np.uint8)
            whole[top : top + height, left : left + width] = inside
            return column_runs(whole)
    except (KeyError, ValueError):
        return None
    return None
