"""CVAT for images 1.1: `annotations.xml`, with a mask or a polygon for every connected component.

A mask's `rle` has the lengths of runs in its box, row by row, starting with a run outside the object.
https://docs.cvat.ai/docs/dataset_management/formats/format-cvat
"""

from xml.sax.saxutils import quoteattr

import numpy as np

from jobs.exports.labelled_image import Exported, LabelledImage, WholeExport
from jobs.exports.regions import Region, polygon
from storage.label_folder import voc_palette


def export_image(image: LabelledImage) -> Exported:
    """The image's element, as text."""
    lines = [
        f"  <image id={quoteattr(str(image.number))} name={quoteattr(image.file_name)} "
        f'width="{image.width}" height="{image.height}">',
        *(f"    {_shape(image, region)}" for region in image.regions()),
        "  </image>",
    ]
    return Exported(record="\n".join(lines))


def _shape(image: LabelledImage, region: Region) -> str:
    shared = f'label={quoteattr(image.classes.names[region.class_number])} source="file" occluded="0"'
    if image.shapes == "polygons":
        points = ";".join(f"{x}.00,{y}.00" for x, y in polygon(region).tolist())
        return f'<polygon {shared} points="{points}" z_order="0"></polygon>'
    runs = ", ".join(str(run) for run in row_runs(region.mask))
    box = f'left="{region.left}" top="{region.top}" width="{region.width}" height="{region.height}"'
    return f'<mask {shared} rle="{runs}" {box} z_order="0"></mask>'


def row_runs(mask: np.ndarray) -> list[int]:
    """The lengths of the runs of a bool mask (h, w), row by row; the first run is of False and may be 0."""
    flat = mask.reshape(-1)
    ends = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *ends, flat.size]).tolist()
    return [0, *lengths] if flat[0] else lengths


def finish(export: WholeExport) -> None:
    """Writes annotations.xml, with only one unit's elements in memory at a time."""
    colours = voc_palette()
    labels = "".join(
        f"<label><name>{quoteattr(name)[1:-1]}</name><color>#{bytes(colours[(number + 1) % 255]).hex()}</color>"
        "<type>any</type><attributes></attributes></label>"
        for number, name in enumerate(export.classes.names)
    )
    with (export.out / "annotations.xml").open_output() as file:
        head = f"<meta><task><labels>{labels}</labels></task></meta>"
        file.write(
            f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n{head}\n'.encode()
        )
        for record in export.records():
            file.write(f"{record}\n".encode())
        file.write(b"</annotations>\n")
