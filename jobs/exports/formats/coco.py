"""COCO's instances: `annotations.json`, with one annotation for every connected component, with its box and area.

Category ids are the data set's own class values. COCO has no ignored pixels; like background, they are in no
annotation. Run lengths are exact. Polygons are exact too, if pixels are filled when their centre is inside, as in
pycocotools.
"""

import json
from typing import Any

import numpy as np
from pycocotools import mask as run_lengths

from jobs.exports.labelled_image import Exported, LabelledImage, WholeExport
from jobs.exports.regions import Region, polygon


def export_image(image: LabelledImage) -> Exported:
    """The records of the image and of its annotations, still without ids."""
    size = {"height": image.height, "width": image.width}
    record = {"id": image.number, "file_name": image.file_name, **size}
    return Exported(record={"image": record, "annotations": [_annotation(image, each) for each in image.regions()]})


def _annotation(image: LabelledImage, region: Region) -> dict[str, Any]:
    segmentation: Any = [polygon(region).reshape(-1).tolist()]
    if image.shapes == "masks":
        mask = region.in_image((image.height, image.width))
        runs = run_lengths.encode(np.asfortranarray(mask, dtype=np.uint8))
        segmentation = {"size": list(runs["size"]), "counts": runs["counts"].decode("ascii")}
    return {
        "image_id": image.number,
        "category_id": image.classes.values[region.class_number],
        "segmentation": segmentation,
        "area": region.area,
        "bbox": [region.left, region.top, region.width, region.height],
        "iscrowd": 0,
    }


def finish(export: WholeExport) -> None:
    """Writes annotations.json, with only one unit's records in memory at a time."""
    categories = [
        {"id": value, "name": name} for value, name in zip(export.classes.values, export.classes.names, strict=True)
    ]
    images = (record["image"] for record in export.records())
    annotations = (annotation for record in export.records() for annotation in record["annotations"])
    numbered = ({"id": number, **annotation} for number, annotation in enumerate(annotations, start=1))
    with (export.out / "annotations.json").open_output() as file:
        file.write(b'{"categories": ' + json.dumps(categories).encode())
        for name, records in (("images", images), ("annotations", numbered)):
            file.write(f',\n"{name}": ['.encode())
            for number, record in enumerate(records):
                file.write((",\n" if number else "\n").encode() + json.dumps(record).encode())
            file.write(b"]")
        file.write(b"}\n")
