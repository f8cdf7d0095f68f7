"""Reads masks that were corrected in a labelling tool: finds out the kind of file and calls its reader."""

import json
from collections.abc import Callable, Iterator

from jobs.exports.corrections import coco, cvat, hugging_face, label_studio, pngs, yolo
from jobs.exports.corrections.objects import CorrectedMask, Objects, Size
from jobs.exports.labelled_image import Classes
from storage.location import Location
from storage.tree import files_below


def read_corrected_masks(place: Location, classes: Classes, size_of: Callable[[str], Size]) -> Iterator[CorrectedMask]:
    """Reads the masks of a file (COCO, CVAT, Label Studio) or of a folder (YOLO, Hugging Face, PNGs).

    Args:
        classes: the classes of the run.
        size_of: gives the (height, width) of the run's image with this name.

    Raises:
        ValueError: it is not such a file, or an object is not a mask of a known class.
        FileNotFoundError: there is no such file.
    """
    objects = Objects(place, classes)
    name = place.uri.lower()
    if name.endswith(".xml"):
        return cvat.read(objects)
    if name.endswith(".json"):
        try:
            content = json.loads(place.read_bytes())
        except ValueError as error:
            raise ValueError(f"{place}: not COCO's instances or Label Studio's tasks (no JSON: {error}).") from error
        return label_studio.read(content, objects) if isinstance(content, list) else coco.read(content, objects)
    paths = files_below(place)
    if any(path.rpartition("/")[2] in yolo.NAMES for path in paths):
        return yolo.read(objects, size_of)
    if any(path.endswith(".parquet") for path in paths):
        return hugging_face.read(objects)
    return pngs.read(objects)
