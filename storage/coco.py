"""COCO's instances JSON as a label source: categories become image-level labels, outlines label masks.

An image without annotations is unlabelled. With a chosen class subset, other categories are simply not labels;
images whose annotations are all of others are left out. Masks hold category ids, 0 background; where instances
overlap, the smaller one lies on top; what only a crowd region covers is ignored.
"""

import difflib
import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as run_lengths

from storage.images import MAX_PIXELS
from storage.location import Location
from storage.names import safe_name
from storage.sources import SourceImage, files_by_stem, id_of_path, resolve_path

_LARGEST_ID = 65534  # of a category; 65535 is what masks of 16 bits ignore
_LISTS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class InstanceMask:
    """The outlines of one image, to be drawn as a label mask.

    Attributes:
        place: the PNG that `write` makes.
        instances: (category id, run lengths) of each instance; crowds: run lengths alone.
    """

    place: Location
    height: int
    width: int
    instances: tuple[tuple[int, dict[str, Any]], ...]
    crowds: tuple[dict[str, Any], ...]
    ignored: int

    def draw(self) -> np.ndarray:
        """(H, W) uint8 or uint16: category ids, 0 background, `ignored` where only a crowd is."""
        mask = np.zeros((self.height, self.width), np.uint8 if self.ignored == 255 else np.uint16)
        for crowd in self.crowds:
            mask[run_lengths.decode(crowd) > 0] = self.ignored
        for category, instance in sorted(self.instances, key=lambda each: -int(run_lengths.area(each[1]))):
            mask[run_lengths.decode(instance) > 0] = category
        return mask

    def write(self) -> None:
        """Draw it and write the PNG, whole or not at all; the same annotations give the same bytes."""
        buffer = io.BytesIO()
        Image.fromarray(self.draw()).save(buffer, "PNG")
        self.place.write_bytes(buffer.getvalue())


@dataclass(frozen=True)
class CocoImages:
    """The images of an instances file.

    Attributes:
        images: in the file's order; their `mask_uri` exists once `masks` are written.
        class_names, class_values: chosen categories and their ids, in the order of the ids.
        masks: of the images all of whose annotations have an outline.
        num_left_out: images that have annotations, but none of a chosen category.
        num_without_outline: images without a mask because an annotation has no outline that can be read.
    """

    images: tuple[SourceImage, ...]
    class_names: tuple[str, ...]
    class_values: tuple[int, ...]
    masks: tuple[InstanceMask, ...]
    num_left_out: int
    num_without_outline: int


def coco_splits(folder: Location) -> list[str]:
    """The splits of a folder in COCO's layout: those of `annotations/instances_<split>.json`."""
    names = (folder / "annotations").list_names()
    found = (name.removeprefix("instances_") for name in names if name.startswith("instances_"))
    return [name.removesuffix(".json") for name in found if name.endswith(".json")]


def read_coco(
    annotations: Location,
    images: Location,
    split: str,
    masks: Location,
    class_names: Sequence[str] | None = None,
    saliency: Location | None = None,
) -> CocoImages:
    """Read an instances file.

    Args:
        annotations: the JSON file; it is held in memory.
        images: the folder that its file names are relative to.
        split: the name of the images' split.
        masks: a folder; each version of the file has a prefix of its own below it.
        class_names: the categories wanted; None: all.
        saliency: a folder of ``<id>.<suffix>``.

    Raises:
        ValueError: not such a file, or a class that is none of its categories.
        FileNotFoundError: there is none.
    """
    data = annotations.read_bytes()
    content = _parse(annotations, data)
    categories = _categories(annotations, content["categories"])
    _require_categories(annotations, class_names or (), list(categories))
    chosen = {category: name for name, category in categories.items() if class_names is None or name in class_names}
    of_image = _annotations_by_image(annotations, content["annotations"], set(categories.values()))
    saliency_of = files_by_stem(saliency)
    place = masks / hashlib.sha256(data).hexdigest()[:12]
    ignored = 255 if max(categories.values()) < 255 else _LARGEST_ID + 1

    found: list[SourceImage] = []
    drawings: dict[str, InstanceMask] = {}
    num_left_out = num_without_outline = 0
    for number, record in enumerate(content["images"]):
        key = _value(annotations, "images", number, record, "id", int)
        path = _value(annotations, "images", number, record, "file_name", str)
        its = of_image.pop(key, [])
        labels = tuple(sorted({chosen[each["category_id"]] for each in its if each["category_id"] in chosen}))
        if its and not labels:
            num_left_out += 1
            continue
        image_id, mask = id_of_path(path), None
        if its and image_id not in drawings:  # an id that comes again is refused by name later
            mask = _instance_mask(record, its, place / f"{safe_name(image_id)}.png", ignored)
            num_without_outline += mask is None
        if mask is not None:
            drawings[image_id] = mask
        mask_uri = mask.place.uri if mask else None
        try:
            uri, problem = resolve_path(images, path), None
        except ValueError:
            uri, problem = "", "its file name leads out of the folder"
        found.append(SourceImage(image_id, uri, labels, split, mask_uri, saliency_of.get(image_id), problem=problem))
    if of_image:
        raise ValueError(f"{annotations}: annotations of image {next(iter(of_image))}, which is not among its images.")
    return CocoImages(
        tuple(found),
        tuple(chosen.values()),
        tuple(chosen),
        tuple(drawings.values()),
        num_left_out,
        num_without_outline,
    )


# The file


def _parse(place: Location, data: bytes) -> dict[str, list[Any]]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: not a JSON file ({type(error).__name__}).") from error
    missing = [name for name in _LISTS if not isinstance(content, dict) or not isinstance(content.get(name), list)]
    if missing:
        raise ValueError(
            f"{place}: no list {missing[0]!r}; expected COCO's instances, a JSON object with the lists "
            "images, annotations and categories."
        )
    return content


def _value(place: Location, kind: str, number: int, record: Any, key: str, wanted: type) -> Any:
    value = record.get(key) if isinstance(record, dict) else None
    if type(value) is not wanted or value == "":
        what = "a number" if wanted is int else "a text"
        raise ValueError(f"{place}: {kind}[{number}].{key}: given {value!r:.60}, expected {what}, as COCO has it.")
    return value


def _categories(place: Location, records: list[Any]) -> dict[str, int]:
    """Name -> id, in the order of the ids."""
    pairs = []
    for number, record in enumerate(records):
        name = _value(place, "categories", number, record, "name", str)
        category = _value(place, "categories", number, record, "id", int)
        if not 1 <= category <= _LARGEST_ID:
            raise ValueError(f"{place}: category {name!r} has the id {category}, allowed: 1 to {_LARGEST_ID}.")
        pairs.append((category, name))
    if not pairs or len({name for _, name in pairs}) != len(pairs) or len({each for each, _ in pairs}) != len(pairs):
        raise ValueError(f"{place}: categories need different names and ids, and there must be one at least.")
    return {name: category for category, name in sorted(pairs)}


def _require_categories(place: Location, class_names: Sequence[str], known: list[str]) -> None:
    for name in class_names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(known[:20])}."
            raise ValueError(f"class {name!r}: not among the categories of {place}. {hint}")


def _annotations_by_image(place: Location, records: list[Any], known: set[int]) -> dict[int, list[dict[str, Any]]]:
    of_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for number, record in enumerate(records):
        category = _value(place, "annotations", number, record, "category_id", int)
        if category not in known:
            raise ValueError(f"{place}: annotations[{number}].category_id: {category} is not among the categories.")
        of_image[_value(place, "annotations", number, record, "image_id", int)].append(record)
    return of_image


# Outlines


def _instance_mask(
    image: dict[str, Any], annotations: list[dict[str, Any]], place: Location, ignored: int
) -> InstanceMask | None:
    """None where an annotation has no outline that can be read: the mask would lack an object."""
    height, width = image.get("height"), image.get("width")
    if not (type(height) is type(width) is int and min(height, width) > 0 and height * width <= MAX_PIXELS):
        return None
    instances, crowds = [], []
    for annotation in annotations:
        outline = _outline(annotation.get("segmentation"), height, width)
        if outline is None:
            return None
        if annotation.get("iscrowd"):
            crowds.append(outline)
        else:
            instances.append((annotation["category_id"], outline))
    return InstanceMask(place, height, width, tuple(instances), tuple(crowds), ignored)


def _outline(segmentation: Any, height: int, width: int) -> dict[str, Any] | None:
    """Polygons or run lengths, plain or compressed, as compressed run lengths; None for anything else."""
    try:
        if isinstance(segmentation, list):
            polygons = list(_polygons(segmentation, height, width))
            return run_lengths.merge(run_lengths.frPyObjects(polygons, height, width)) if polygons else None
        if list(segmentation["size"]) != [height, width]:
            return None
        counts = segmentation["counts"]
        if isinstance(counts, str):
            outline = {"size": [height, width], "counts": counts.encode("ascii")}
        elif all(type(count) is int and count >= 0 for count in counts) and sum(counts) == height * width:
            outline = run_lengths.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        else:
            return None
        run_lengths.decode(outline)
    except (ValueError, TypeError, KeyError, OverflowError):
        return None
    return outline


def _polygons(given: list[Any], height: int, width: int) -> Iterator[list[float]]:
    """Polygons of three points or more, clipped to the image, which bounds what drawing them costs."""
    for polygon in given:
        points = np.asarray(polygon, dtype=np.float64)
        if points.ndim != 1 or len(points) % 2 or not np.isfinite(points).all():
            raise ValueError("a polygon is a list x1, y1, x2, y2, ...")
        if len(points) >= 6:
            yield np.clip(points.reshape(-1, 2), 0, (width, height)).reshape(-1).tolist()
