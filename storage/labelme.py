"""labelme's JSON files as a label source: shapes become image-level labels, and outlines become label masks."""

import base64
import hashlib
import io
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from storage.drawings import Drawing, RunLengths, outline, painted
from storage.image_paths import id_of_path, resolve_path
from storage.images import MAX_PIXELS
from storage.location import Location
from storage.names import safe_name
from storage.sources import Source, SourceImage
from storage.text import clean_name, decode_text
from storage.tree import files_below, require_no_results

_CIRCLE_POINTS = 64


def read_labelme(folder: Location, class_names: Sequence[str] | None = None) -> Source:
    """Read a folder with a JSON file of labelme beside each picture.

    Args:
        class_names: the class list; the classes have the values 1, 2, ... in masks, in this order. None: all labels,
            sorted.

    Returns:
        The images in the order of the files. A mask has all shapes of the chosen classes. If one of these shapes cannot
        be drawn (a point, a line), the image has no mask. The folders of the files are not used as splits.

    Raises:
        ValueError: the folder has no such file.
    """
    paths = files_below(folder)
    require_no_results(folder, paths)
    records = [(path, *_parse(folder / path)) for path in paths if path.endswith(".json")]
    records = [each for each in records if each[1] is None or "shapes" in each[1]]
    if not any(record for _, record, _ in records):
        raise ValueError(f"{folder}: no JSON files with shapes. labelme writes them beside the pictures.")
    found = sorted({name for _, record, _ in records if record for name in _names(record)})
    names = tuple(class_names or found)
    values = {name: value for value, name in enumerate(names, start=1)}
    images, drawings, without = [], dict[str, Drawing](), 0
    for path, record, version in records:
        image, drawing = _image(folder, path, record, version, values)
        images.append(image)
        if drawing and image.mask_uri:
            drawings[image.mask_uri] = drawing
        without += bool(image.labels) and drawing is None
    notes = [f"{without:,} images have no mask, because some of their shapes have no area."] if without else []
    return Source(tuple(images), names, tuple(values.values()), drawings, tuple(notes))


def _image(
    folder: Location, path: str, record: dict[str, Any] | None, version: str, values: dict[str, int]
) -> tuple[SourceImage, Drawing | None]:
    image_id = id_of_path(path)
    if record is None:
        return SourceImage(image_id, "", problem="its JSON file cannot be read"), None
    labels = tuple(name for name in _names(record) if name in values)
    above = folder / path.rpartition("/")[0] if "/" in path else folder
    try:
        uri = resolve_path(above, str(record.get("imagePath") or ""))
    except ValueError as error:
        return SourceImage(image_id, "", labels, problem=f"the path of its image {error}"), None
    size = record.get("imageHeight"), record.get("imageWidth")
    declared = size if all(type(side) is int and side > 0 for side in size) else None
    drawing = _drawing(record["shapes"], declared, values) if labels and declared else None  # type: ignore[arg-type]
    mask_uri = f"masks/labelme/{safe_name(path)}-{version}.png" if drawing else None
    image = SourceImage(image_id, uri, labels, mask_uri=mask_uri, declared=declared)  # type: ignore[arg-type]
    return image, drawing


def _parse(place: Location) -> tuple[dict[str, Any] | None, str]:
    """The content of a file (None if it is not a labelme file), and a name for this version of it."""
    data = place.read_bytes()
    version = hashlib.sha256(data).hexdigest()[:12]
    try:
        content = json.loads(decode_text(data).content)
    except (ValueError, RecursionError):
        return None, version
    is_record = isinstance(content, dict) and (isinstance(content.get("shapes"), list) or "shapes" not in content)
    return (content if is_record else None), version


def _names(record: dict[str, Any]) -> list[str]:
    shapes = [shape for shape in record["shapes"] if isinstance(shape, dict)]
    return sorted({clean_name(str(shape.get("label") or "")) for shape in shapes} - {""})


def _drawing(shapes: list[Any], size: tuple[int, int], values: dict[str, int]) -> Drawing | None:
    """The mask to draw; None if a shape of a class has no area."""
    if size[0] * size[1] > MAX_PIXELS:
        return None
    instances: list[tuple[int, RunLengths]] = []
    for shape in shapes:
        value = values.get(clean_name(str(shape.get("label") or ""))) if isinstance(shape, dict) else None
        if value is None:
            continue
        if shape.get("shape_type") == "mask":
            found = _painted(shape, size)
        else:
            polygon = _polygon(shape)
            found = outline([polygon], *size) if polygon else None
        if found is None:
            return None
        instances.append((value, found))
    return Drawing(*size, tuple(instances), (), 255 if max(values.values()) < 255 else 65535)


def _painted(shape: dict[str, Any], size: tuple[int, int]) -> RunLengths | None:
    """A shape from labelme's AI tools: a PNG of the pixels between two corners; None if the PNG does not fit."""
    try:
        left, top = (round(float(value)) for value in shape["points"][0])
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"])), formats=["PNG"]) as image:
            right, bottom = left + image.width, top + image.height
            if min(left, top) < 0 or right > size[1] or bottom > size[0]:
                return None
            mask = np.zeros(size, np.uint8)
            mask[top:bottom, left:right] = np.asarray(image.convert("L")) > 0
    except (KeyError, IndexError, TypeError, ValueError, OSError, SyntaxError):  # a damaged PNG too
        return None
    return painted(mask)


def _polygon(shape: dict[str, Any]) -> list[float] | None:
    """x1, y1, x2, y2, ... around a polygon, rectangle or circle; None for other shapes."""
    try:
        points = [(float(x), float(y)) for x, y in shape["points"]]
        match shape.get("shape_type") or "polygon":
            case "polygon":
                corners = points
            case "rectangle":
                (left, top), (right, bottom) = points
                corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
            case "circle":
                (x, y), (edge_x, edge_y) = points
                radius, turn = math.hypot(edge_x - x, edge_y - y), 2 * math.pi / _CIRCLE_POINTS
                angles = [turn * number for number in range(_CIRCLE_POINTS)]
                corners = [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]
            case _:
                return None
    except (KeyError, TypeError, ValueError):
        return None
    return [value for corner in corners for value in corner]
