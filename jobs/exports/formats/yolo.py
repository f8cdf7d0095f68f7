"""YOLO's text files in the format of Ultralytics: `labels/<image>.txt`, with a line for every connected component.

A line has the class number (from 0) and then a polygon `x1 y1 x2 y2 ...`, or a box `x y width height` with its centre,
all divided by the image's width and height. https://docs.ultralytics.com/datasets/segment

`train.txt`, `val.txt` and `test.txt` list the images by what the run uses them for, and data.yaml names these lists. It
has no path, so Ultralytics reads them from its own folder, wherever that is.
"""

import json
from collections import Counter

from cluster.words import plural
from jobs.exports.image_names import stem
from jobs.exports.labelled_image import Exported, LabelledImage, WholeExport
from jobs.exports.regions import Region, polygon

PURPOSES = {"train": "training", "val": "validation", "test": "neither of them"}  # keys of data.yaml


def export_image(image: LabelledImage) -> Exported:
    """The image's text file; it is empty if there are no objects."""
    lines = [" ".join([str(region.class_number), *_numbers(image, region)]) for region in image.regions()]
    record = {"file_name": image.file_name, "role": image.role}
    return Exported({f"labels/{stem(image.file_name)}.txt": "".join(f"{line}\n" for line in lines).encode()}, record)


def _numbers(image: LabelledImage, region: Region) -> list[str]:
    if image.shapes == "boxes":
        centre_x, centre_y = region.left + region.width / 2, region.top + region.height / 2
        numbers = [(centre_x, centre_y), (region.width, region.height)]
    else:
        numbers = polygon(region).tolist()
    return [text for x, y in numbers for text in (f"{x / image.width:.6f}", f"{y / image.height:.6f}")]


def finish(export: WholeExport) -> str:
    """Writes the lists and data.yaml, which names the lists and the classes.

    Returns:
        What data.yaml lists, and what is missing for a training.
    """
    counts = Counter[str]()
    for role in PURPOSES:
        place = export.out / f"{role}.txt"
        lines = (f"./images/{record['file_name']}\n" for record in export.records() if record["role"] == role)
        with place.open_output() as file:
            for line in lines:
                file.write(line.encode())
                counts[role] += 1
        if not counts[role]:
            place.delete()
    names = "".join(f"  {number}: {json.dumps(name)}\n" for number, name in enumerate(export.classes.names))
    lists = "".join(f"{role}: {role}.txt\n" for role in PURPOSES if counts[role])
    missing = [role for role in ("train", "val") if not counts[role]]
    remark = "".join(f"# {role}: no image of this export is for {PURPOSES[role]}\n" for role in missing)
    text = f"# The images belong in images/, beside labels/\n{lists}{remark}names:\n{names}"
    (export.out / "data.yaml").write_bytes(text.encode())
    return _in_words(counts, missing)


def _in_words(counts: Counter[str], missing: list[str]) -> str:
    have = ", ".join(f"{plural(counts[role], 'image')} for {PURPOSES[role]}" for role in PURPOSES if counts[role])
    sentence = f"data.yaml lists {have or 'no images'}."
    for role in missing:
        sentence += (
            f" WARNING: there is no {PURPOSES[role]} set, which Ultralytics needs: export all splits, or name other "
            f"images as {role} in data.yaml, but not the same."
        )
    return sentence
