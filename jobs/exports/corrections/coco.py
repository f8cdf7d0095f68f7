"""COCO's instances, as CVAT, FiftyOne, Label Studio and others write them."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from jobs.exports.corrections.objects import CorrectedMask, Objects


def read(content: Any, objects: Objects) -> Iterator[CorrectedMask]:
    """The masks of the images in a file.

    Args:
        content: the parsed JSON of the file.

    Raises:
        ValueError: the file is not COCO's instances, or an object is not a mask of a known class.
    """
    try:
        categories = {record["id"]: record["name"] for record in content["categories"]}
        images = [(each["id"], each["file_name"], (each["height"], each["width"])) for each in content["images"]]
        of_image = defaultdict(list)
        for annotation in content["annotations"]:
            of_image[annotation["image_id"]].append(annotation)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{objects.place}: not COCO's instances ({type(error).__name__}: {error}).") from error
    for number, name, size in images:
        found = [
            (str(categories.get(each.get("category_id"), each.get("category_id"))), each.get("segmentation"))
            for each in of_image[number]
        ]
        yield objects.mask(name, size, found)
