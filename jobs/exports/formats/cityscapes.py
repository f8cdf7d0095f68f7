"""Label images in the layout of Cityscapes: `gtFine/<split>/all/<id>_gtFine_labelIds.png` and `..._color.png`.

Label ids are 0 for background and class number + 1; 255 is ignored. `labels.txt` has their names. Programs that train
on Cityscapes need the images as `leftImg8bit/<split>/all/<id>_leftImg8bit.png`.
"""

import io

import numpy as np
from PIL import Image

from jobs.exports.labelled_image import Exported, LabelledImage, WholeExport
from storage.label_folder import voc_palette
from storage.names import safe_name

IGNORED = 255


def export_image(image: LabelledImage) -> Exported:
    """The image's two PNGs.

    Raises:
        ValueError: there are too many classes for a byte.
    """
    if image.ignored != IGNORED:
        raise ValueError("--format cityscapes: more than 254 classes do not fit in its PNGs. Export as coco.")
    labels = image.labels.astype(np.uint8)
    start = f"gtFine/{safe_name(image.split or 'unnamed')}/all/{safe_name(image.image_id)}_gtFine"
    return Exported({f"{start}_labelIds.png": _png(labels), f"{start}_color.png": _png(voc_palette()[labels])})


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def finish(export: WholeExport) -> None:
    """Writes labels.txt."""
    names = ["background", *export.classes.names]
    lines = [f"{number} {name}\n" for number, name in [*enumerate(names), (IGNORED, "ignored")]]
    (export.out / "labels.txt").write_bytes("".join(lines).encode())
