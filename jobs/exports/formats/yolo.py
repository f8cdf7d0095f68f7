"""YOLO's text files in the format of Ultralytics: `labels/<image>.txt`, with a line for every connected component.

A line has the class number (from 0) and then a polygon `x1 y1 x2 y2 ...`, or a box `x y width height` with its centre,
all divided by the image's width and height. https://docs.ultralytics.com/datasets/segment
"""

import json

from jobs.exports.labelled_image import Exported, LabelledImage, WholeExport
from jobs.exports.regions import Region, polygon


def export_image(image: LabelledImage) -> Exported:
    """The image's text file; it is empty if there are no objects."""
    lines = [" ".join([str(region.class_number), *_numbers(image, region)]) for region in image.regions()]
    name = image.file_name.rpartition(".")[0] or image.file_name
    return Exported({f"labels/{name}.txt": "".join(f"{line}\n" for line in lines).encode()})


def _numbers(image: LabelledImage, region: Region) -> list[str]:
    if image.shapes == "boxes":
        centre_x, centre_y = region.left + region.width / 2, region.top + region.height / 2
        numbers = [(centre_x, centre_y), (region.width, region.height)]
    else:
        numbers = polygon(region).tolist()
    return [text for x, y in numbers for text in (f"{x / image.width:.6f}", f"{y / image.height:.6f}")]


def finish(export: WholeExport) -> None:
    """Writes data.yaml, which has the class names and the folder of the images."""
    names = "".join(f"  {number}: {json.dumps(name)}\n" for number, name in enumerate(export.classes.names))
    text = (
        "# Copy or link the images' folder to images/, beside labels/\n"
        f"path: {json.dumps(export.out.uri)}\ntrain: images\nval: images\nnames:\n{names}"
    )
    (export.out / "data.yaml").write_bytes(text.encode())
