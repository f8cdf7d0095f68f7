"""YOLO's text files, as Ultralytics, CVAT and others write them: a folder with data.yaml and labels/<image>.txt.

Corners are given as fractions of the image's width and height, so the sizes of the images come from the run.
"""

from collections.abc import Callable, Iterator, Sequence

import yaml

from jobs.exports.corrections.objects import CorrectedMask, Objects, Size
from storage.tree import files_below

NAMES = ("data.yaml", "data.yml")
LABELS = "/labels/"


def read(objects: Objects, size_of: Callable[[str], Size]) -> Iterator[CorrectedMask]:
    """The masks of the images that have a text file. An empty file is an image without objects.

    Args:
        size_of: gives an image's (height, width) by its name.

    Raises:
        ValueError: there are no class names or no text files, `size_of` knows no such image, or a line is not a polygon
            of a known class.
    """
    paths = files_below(objects.place)
    names = _class_names(objects, paths)
    texts = [path for path in paths if path.endswith(".txt") and LABELS in f"/{path}"]
    if not texts:
        raise ValueError(f"{objects.place}: there are no text files in labels/.")
    for path in texts:
        name = f"/{path}".partition(LABELS)[2]
        lines = [line.split() for line in (objects.place / path).read_bytes().decode("utf-8-sig").splitlines()]
        size = size_of(name)
        yield objects.mask(name, size, [_object(objects, path, names, line, size) for line in lines if line])


def _class_names(objects: Objects, paths: Sequence[str]) -> dict[int, str]:
    place = objects.place / next(path for path in paths if path.rpartition("/")[2] in NAMES)
    try:
        names = yaml.safe_load(place.read_bytes())["names"]
        numbered = names.items() if isinstance(names, dict) else enumerate(names)
        return {int(number): str(name) for number, name in numbered}
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{place}: has no class names ({type(error).__name__}).") from error


def _object(
    objects: Objects, path: str, names: dict[int, str], line: Sequence[str], size: Size
) -> tuple[str, list[list[float]]]:
    """A line's class and polygon, in pixels.

    Raises:
        ValueError: it is a box, or not a line in YOLO's form.
    """
    try:
        number, *parts = int(line[0]), *map(float, line[1:])
    except ValueError:
        raise ValueError(f"{objects.place / path}: {' '.join(line)[:60]!r} is not a line in YOLO's form.") from None
    if len(parts) < 6 or len(parts) % 2:
        raise ValueError(
            f"{objects.place / path}: a line with {len(parts)} numbers after the class is a box, not a polygon. "
            "Export polygons (segmentation)."
        )
    if number not in names:
        raise ValueError(f"{objects.place / path}: class {number}, but data.yaml names {len(names)} classes.")
    corners = [part * size[1 - place % 2] for place, part in enumerate(parts)]
    return names[number], [corners]
