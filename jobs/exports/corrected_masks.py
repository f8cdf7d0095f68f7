"""Reads masks that were corrected in a labelling tool: COCO's JSON, CVAT's XML, or a folder of PNGs.

Where objects overlap, the smaller one is on top. Pixels without an object are background.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np

from jobs.exports.labelled_image import Classes
from storage.drawings import Drawing, encode_mask, outline
from storage.images import read_many
from storage.location import Location
from storage.masks import mask_values
from storage.tree import files_below

RunLengths = dict[str, Any]


@dataclass(frozen=True)
class CorrectedMask:
    """One image's mask.

    Attributes:
        name: the name of the image in the file; for a PNG its path.
        size: (height, width) in the file; None for a PNG.
        num_objects: the number of objects in the file; 1 for a PNG.
        data: a PNG with the data set's own class values, 0 background.
    """

    name: str
    size: tuple[int, int] | None
    num_objects: int
    data: bytes


def read_corrected_masks(place: Location, classes: Classes) -> Iterator[CorrectedMask]:
    """The masks of a COCO file (.json), a CVAT file (.xml), or a folder of PNGs.

    Raises:
        ValueError: it is not such a file, or an object in it is not a mask of a known class.
        FileNotFoundError: there is no such file.
    """
    if place.uri.lower().endswith(".json"):
        return _read_coco(place, classes)
    if place.uri.lower().endswith(".xml"):
        return _read_cvat(place, classes)
    return _read_folder(place, classes)


# COCO


def _read_coco(place: Location, classes: Classes) -> Iterator[CorrectedMask]:
    try:
        content = json.loads(place.read_bytes())
        categories = {record["id"]: record["name"] for record in content["categories"]}
        images = [(each["id"], each["file_name"], (each["height"], each["width"])) for each in content["images"]]
        of_image = defaultdict(list)
        for annotation in content["annotations"]:
            of_image[annotation["image_id"]].append(annotation)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{place}: not COCO's instances ({type(error).__name__}: {error}).") from error
    for number, name, size in images:
        objects = []
        for annotation in of_image[number]:
            label = str(categories.get(annotation.get("category_id"), annotation.get("category_id")))
            objects.append((_value(place, classes, label), _outline(place, name, annotation.get("segmentation"), size)))
        yield _draw(place, name, size, objects, classes)


# CVAT


def _read_cvat(place: Location, classes: Classes) -> Iterator[CorrectedMask]:
    try:
        root = ElementTree.fromstring(place.read_bytes())
        images = list(root.iter("image"))
        sizes = [(int(image.attrib["height"]), int(image.attrib["width"])) for image in images]
        names = [image.attrib["name"] for image in images]
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        raise ValueError(f"{place}: not CVAT's XML for images ({type(error).__name__}: {error}).") from error
    if not images:
        raise ValueError(f"{place}: has no images. Export as 'CVAT for images 1.1'; video tracks are not read.")
    for image, name, size in zip(images, names, sizes, strict=True):
        objects = [
            (_value(place, classes, shape.get("label", "")), _outline(place, name, _segmentation(shape, size), size))
            for shape in image
            if shape.tag != "tag"
        ]
        yield _draw(place, name, size, objects, classes)


def _segmentation(shape: ElementTree.Element, size: tuple[int, int]) -> Any:
    """A shape in COCO's format; None if it covers no pixels."""
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
            return _column_runs(whole)
    except (KeyError, ValueError):
        return None
    return None


def _column_runs(mask: np.ndarray) -> RunLengths:
    """A mask (H, W) of 0 and 1 as COCO's plain run lengths: column by column, starting with a run of 0."""
    flat = mask.T.reshape(-1)
    ends = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
    counts = np.diff(ends).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


# PNGs


def _read_folder(place: Location, classes: Classes) -> Iterator[CorrectedMask]:
    paths = [path for path in files_below(place) if path.lower().endswith(".png")]
    if not paths:
        raise ValueError(f"--masks {place}: no PNG files. Give a folder of PNGs, COCO's .json or CVAT's .xml.")
    uris = [(place / path).uri for path in paths]
    known = {0, *classes.values, 255, 65535}
    for path, uri, found in zip(paths, uris, read_many(uris, mask_values), strict=True):
        if not isinstance(found, tuple):
            raise ValueError(f"{uri}: {found.reason}.")
        if wrong := sorted(set(found) - known):
            raise ValueError(
                f"{uri}: value {wrong[0]} is not a class. Masks must have the data set's values, as exported with "
                f"--format png: {', '.join(map(str, classes.values[:20]))}, 0 background, 255 not known."
            )
        yield CorrectedMask(path, None, 1, Location.parse(uri).read_bytes())


# Shared


def _value(place: Location, classes: Classes, label: str) -> int:
    if label not in classes.names:
        raise ValueError(f"{place}: {label!r} is not a class of the run; it has {', '.join(classes.names[:20])}.")
    return classes.values[classes.names.index(label)]


def _outline(place: Location, name: str, segmentation: Any, size: tuple[int, int]) -> RunLengths:
    found = outline(segmentation, *size)
    if found is None:
        raise ValueError(
            f"{place}: image {name!r} has an object that is neither a polygon nor a mask of {size[1]} x {size[0]} "
            "pixels. Change it to one of these, or delete it."
        )
    return found


def _draw(
    place: Location, name: str, size: tuple[int, int], objects: list[tuple[int, RunLengths]], classes: Classes
) -> CorrectedMask:
    ignored = 255 if max(classes.values) < 255 else 65535
    drawing = Drawing(size[0], size[1], tuple(objects), (), ignored)
    return CorrectedMask(name, size, len(objects), encode_mask(drawing.draw()))
