"""A folder with one PNG for each image, with the data set's own class values, as the export `png` writes it."""

from collections.abc import Iterator

from jobs.exports.corrections.objects import CorrectedMask, Objects
from storage.errors import BadImage
from storage.images import image_size, read_many
from storage.location import Location
from storage.masks import mask_values
from storage.tree import files_below


def read(objects: Objects) -> Iterator[CorrectedMask]:
    """The masks below the folder.

    Raises:
        ValueError: there are no masks, or a mask has a value that is not a class.
    """
    place, classes = objects.place, objects.classes
    paths = [path for path in files_below(place) if path.lower().endswith(".png")]
    if not paths:
        raise ValueError(
            f"--masks {place}: there are no masks. Give a folder of PNGs, of YOLO's text files with their data.yaml or "
            "of Hugging Face's Parquet files, a .json of COCO or Label Studio, or CVAT's .xml."
        )
    uris = [(place / path).uri for path in paths]
    known = {0, *classes.values, 255, 65535}
    contents = read_many(uris, lambda uri: (mask_values(uri), image_size(uri)))
    for path, uri, found in zip(paths, uris, contents, strict=True):
        if isinstance(found, BadImage):
            raise ValueError(f"{uri}: {found.reason}.")
        values, size = found
        if wrong := sorted(set(values) - known):
            raise ValueError(
                f"{uri}: value {wrong[0]} is not a class. Masks must have the data set's values, as exported with "
                f"--format png: {', '.join(map(str, classes.values[:20]))}, 0 background, 255 unknown."
            )
        yield CorrectedMask(path, size, 1, Location.parse(uri).read_bytes())
