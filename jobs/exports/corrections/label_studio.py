"""Label Studio's own export "JSON": brush masks and polygons of the tasks.

A brush mask is a bit-packed run-length code (rle-pack) of four channels for each pixel. The fourth channel, the
opacity, marks the object. https://labelstud.io/guide/export
"""

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from jobs.exports.corrections.objects import CorrectedMask, Objects, Size, column_runs

_CHANNELS = 4


def read(tasks: list[Any], objects: Objects) -> Iterator[CorrectedMask]:
    """The masks of the tasks' images.

    Raises:
        ValueError: the file does not have such tasks, a task has several annotations, or an object is not a mask.
    """
    for task in tasks:
        try:
            (address,) = [value for value in task["data"].values() if isinstance(value, str)]
            annotations = [each for each in task["annotations"] if not each.get("was_cancelled")]
            results = [result for each in annotations for result in each["result"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{objects.place}: not Label Studio's tasks with an image each ({type(error).__name__}: {error}). "
                "Export as 'JSON', not as 'JSON-MIN'."
            ) from error
        name = image_name(address)
        if len(annotations) > 1:
            raise ValueError(
                f"{objects.place}: the image {name!r} has {len(annotations)} annotations. Keep one of them."
            )
        found = [_object(result) for result in results]
        sizes = {size for *_, size in found if size}
        if len(sizes) != 1 and results:
            raise ValueError(
                f"{objects.place}: image {name!r} has objects other than brush masks and polygons of this image. "
                "Delete the others."
            )
        if sizes:
            yield objects.mask(name, sizes.pop(), [(label, segmentation) for label, segmentation, _ in found])
        else:
            yield CorrectedMask(name, None, 0, b"")


def image_name(address: str) -> str:
    """An image's path below the folder that Label Studio serves; for any other address, the path of the address."""
    parts = urlsplit(address)
    return parse_qs(parts.query).get("d", [unquote(parts.path)])[0].lstrip("/")


def _object(result: Mapping[str, Any]) -> tuple[str, Any, Size | None]:
    """An object's class, its outline in COCO's form (None: no outline), and its image's size (None: unknown)."""
    size = None
    try:
        value, kind = result["value"], result["type"]
        size = int(result["original_height"]), int(result["original_width"])
        (label,) = value[kind]
        if kind == "polygonlabels":
            corners = np.array(value["points"], float) * (size[1], size[0]) / 100
            return str(label), [corners.reshape(-1).tolist()], size
        pixels = decode_brush(bytes(value["rle"])).reshape(*size, _CHANNELS)
        return str(label), column_runs(pixels[..., -1] > 127), size
    except (KeyError, TypeError, ValueError, IndexError):
        return "", None, size


def decode_brush(data: bytes) -> np.ndarray:
    """Decodes a brush's run lengths to uint8 values, four for each pixel, row by row.

    Raises:
        ValueError: the data end too early.
    """
    bits, place = np.unpackbits(np.frombuffer(data, np.uint8)), 0

    def number(length: int) -> int:
        nonlocal place
        if place + length > bits.size:
            raise ValueError("a brush mask that ends too early")
        place += length
        return int("".join(map(str, bits[place - length : place])), 2)

    total, word = number(32), number(5) + 1
    if total > bits.size << 16:  # a run of the longest length takes more than a bit
        raise ValueError("a brush mask of more pixels than its runs can have")
    lengths = [number(4) + 1 for _ in range(4)]
    found, start = np.zeros(total, np.uint8), 0
    while start < total:
        is_run = number(1)
        stop = start + 1 + number(lengths[number(2)])
        found[start:stop] = number(word) if is_run else [number(word) for _ in range(stop - start)][: total - start]
        start = stop
    return found
