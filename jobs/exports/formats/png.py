"""Palette PNGs with the data set's own class values: 0 background, 255 = unknown, VOC's colours."""

import numpy as np

from jobs.exports.labelled_image import Exported, LabelledImage, WholeExport
from storage.label_folder import encode_label_png
from storage.names import safe_name

IGNORED = 255


def export_image(image: LabelledImage) -> Exported:
    """`<id>.png`."""
    table = np.full(image.ignored + 1, IGNORED)
    table[: len(image.classes.values) + 1] = [0, *image.classes.values]
    return Exported({f"{safe_name(image.image_id)}.png": encode_label_png(table[image.labels])})


def finish(export: WholeExport) -> None:
    """Writes nothing, because there is no file for all images."""
