"""Label Studio's tasks: `tasks.json` with brush masks (one per class) or polygons (one per component).

A task has the path of its image, images/<name>, in the folder that Label Studio serves (its document root). This is the
export's folder, because Label Studio only serves images in subfolders of its document root. `label_config.xml` is the
labelling interface. A brush mask is run-length coded in bits (rle-pack) over four channels of each pixel, as in Label
Studio.
https://labelstud.io/guide/tasks
"""

import json
from itertools import chain, pairwise
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

from jobs.exports.labelled_image import Exported, LabelledImage, WholeExport
from jobs.exports.regions import polygon

_LENGTH_BITS = (3, 4, 8, 16)  # a run chooses one of four sizes for its length; these are Label Studio's
_LONGEST_RUN = 1 << 16


def export_image(image: LabelledImage) -> Exported:
    """The image's task."""
    results = _polygons(image) if image.shapes == "polygons" else _brushes(image)
    place = f"/data/local-files/?d={quote(f'images/{image.file_name}')}"
    return Exported(record={"id": image.number, "data": {"image": place}, "annotations": [{"result": results}]})


def _brushes(image: LabelledImage) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    for number, name in enumerate(image.classes.names):
        mask = image.labels == number + 1
        if mask.any():
            value = {"format": "rle", "rle": list(encode_brush(mask)), "brushlabels": [name]}
            results.append(_result(image, len(results), "brushlabels", value))
    return results


def _polygons(image: LabelledImage) -> list[dict[str, Any]]:
    """Corners in percent of the image's width and height."""
    results: list[dict[str, Any]] = []
    for region in image.regions():
        points = (polygon(region) * 100 / (image.width, image.height)).tolist()
        value = {"points": points, "closed": True, "polygonlabels": [image.classes.names[region.class_number]]}
        results.append(_result(image, len(results), "polygonlabels", value))
    return results


def _result(image: LabelledImage, number: int, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"{image.number}_{number}",
        "type": kind,
        "from_name": "tag",
        "to_name": "image",
        "original_width": image.width,
        "original_height": image.height,
        "image_rotation": 0,
        "value": value,
    }


def encode_brush(mask: np.ndarray) -> bytes:
    """A bool mask (H, W) in the format of Label Studio's brush: 255 in all four channels of object pixels, else 0."""
    flat = mask.reshape(-1)
    ends = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
    bits = [f"{4 * flat.size:032b}", f"{8 - 1:05b}", *(f"{size - 1:04b}" for size in _LENGTH_BITS)]
    for start, stop in pairwise(ends):
        value = "11111111" if flat[start] else "00000000"
        bits += [_run(length, value) for length in _pieces(4 * (stop - start))]
    text = "".join(bits)
    return int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8), "big")


def _run(length: int, value: str) -> str:
    """One run: the bit for a repeated value, the size of the length, the length minus one, the value."""
    which = next(number for number, size in enumerate(_LENGTH_BITS) if length <= 1 << size)
    return f"1{which:02b}{length - 1:0{_LENGTH_BITS[which]}b}{value}"


def _pieces(length: int) -> chain[int]:
    """Lengths that runs can have and that add up to this length."""
    whole, rest = divmod(length, _LONGEST_RUN)
    return chain([_LONGEST_RUN] * whole, [rest] if rest else [])


def finish(export: WholeExport) -> None:
    """Writes tasks.json, with only one unit's tasks in memory at a time, and label_config.xml."""
    kind = "PolygonLabels" if export.shapes == "polygons" else "BrushLabels"
    labels = "".join(f"    <Label value={quoteattr(name)}/>\n" for name in export.classes.names)
    config = f'<View>\n  <Image name="image" value="$image"/>\n  <{kind} name="tag" toName="image">\n{labels}'
    (export.out / "label_config.xml").write_bytes(f"{config}  </{kind}>\n</View>\n".encode())
    with (export.out / "tasks.json").open_output() as file:
        file.write(b"[")
        for number, record in enumerate(export.records()):
            file.write((",\n" if number else "\n").encode() + json.dumps(record).encode())
        file.write(b"\n]\n")
