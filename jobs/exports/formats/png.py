"""Palette PNGs with the data set's own class values: 0 background, 255 = unknown, VOC's colours."""

from jobs.exports.labelled_image import Exported, LabelledImage, WholeExport
from storage.label_folder import encode_label_png, source_values
from storage.names import safe_name


def export_image(image: LabelledImage) -> Exported:
    """`<id>.png`."""
    values = source_values(image.labels, image.classes.values, image.ignored)
    return Exported({f"{safe_name(image.image_id)}.png": encode_label_png(values)})


def finish(export: WholeExport) -> None:
    """Writes nothing, because there is no file for all images."""
