"""The table of export formats: the module that writes each, and its shapes of objects. It imports nothing slow."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FormatRow:
    """One format.

    Attributes:
        module: `jobs.exports.formats.<module>` writes it.
        shapes: the values of `--shapes`, the default first; empty if the format has no choice.
        has_labels: whether it has labels; npy has maps.
        has_unit_files: whether it has files of whole units, which its function `export_unit` makes from the records.
        mixes_splits: whether trainings read its files, and these do not say which images are for validation.
        images: how programs find the pictures by the names in its files: "beside" the labels, in images/ of the export;
            or in a "folder" that the user chooses; "" if the files do not name pictures.
        one_file: the file with all labels, which labelling tools read and write; "" if there are several. If the export
            writes it again, the earlier one is kept.
        largest_value: the largest class value, if the format stores the data set's class values; 0: no limit.
    """

    module: str
    shapes: tuple[str, ...] = ()
    has_labels: bool = True
    has_unit_files: bool = False
    mixes_splits: bool = False
    images: str = ""
    one_file: str = ""
    largest_value: int = 0


FORMATS = {
    "png": FormatRow("png", mixes_splits=True, largest_value=254),
    "npy": FormatRow("npy", has_labels=False, mixes_splits=True),
    "coco": FormatRow("coco", ("masks", "polygons"), mixes_splits=True, images="folder", one_file="annotations.json"),
    "yolo": FormatRow("yolo", ("polygons", "boxes"), images="beside"),
    "cvat": FormatRow("cvat", ("masks", "polygons"), images="folder", one_file="annotations.xml"),
    "label-studio": FormatRow("label_studio", ("masks", "polygons"), images="beside", one_file="tasks.json"),
    "cityscapes": FormatRow("cityscapes"),
    "hugging-face": FormatRow("hugging_face", has_unit_files=True),
}
SHAPES = tuple(dict.fromkeys(shape for row in FORMATS.values() for shape in row.shapes))
