"""A folder with one PNG for each image, with the data set's own class values, as the export `png` writes it."""

import os
from collections.abc import Iterator

from jobs.exports.corrections.objects import CorrectedMask, Objects
from storage.errors import BadImage, ColouredMask
from storage.images import image_size, read_many
from storage.location import Location
from storage.masks import mask_values
from storage.tree import files_below


def read(objects: Objects) -> Iterator[CorrectedMask]:
    """The masks below the folder.

    Raises:
        ValueError: there are no masks, a mask has a value that is not a class, or none that is one beside unknown.
        FileNotFoundError: there is no such folder.
    """
    place, classes = objects.place, objects.classes
    files = files_below(place)
    paths = [path for path in files if path.lower().endswith(".png")]
    if not paths:
        if place.is_local and not os.path.exists(place.uri):
            raise FileNotFoundError(f"--masks {place}: no such file or folder.")
        if any(path.lower().endswith((".jpg", ".jpeg")) for path in files):
            raise ValueError(f"--masks {place}: the masks are JPEGs, which change values. Save them as PNG.")
        if place.name.lower().endswith((".zip", ".tar", ".gz", ".tgz")):
            raise ValueError(f"--masks {place}: is an archive. Unpack it, and give the file or folder that was in it.")
        raise ValueError(
            f"--masks {place}: there are no masks. Give a folder of PNGs, of YOLO's text files with their data.yaml or "
            "of Hugging Face's Parquet files, a .json of COCO or Label Studio, or CVAT's .xml."
        )
    uris = [(place / path).uri for path in paths]
    known = {0, *classes.values, 255, 65535}
    contents = read_many(uris, lambda uri: (mask_values(uri), image_size(uri)))
    for path, uri, found in zip(paths, uris, contents, strict=True):
        if isinstance(found, BadImage):
            if isinstance(found, ColouredMask):
                raise ValueError(f"{uri}: the mask has colours. Save it as a grey PNG with the values of the classes.")
            raise ValueError(f"{uri}: {found.reason}.")
        values, size = found
        if wrong := sorted(set(values) - known):
            raise ValueError(
                f"{uri}: value {wrong[0]} is not a class. Masks must have the data set's values, as exported with "
                f"--format png: {', '.join(map(str, classes.values[:20]))}, 0 background, 255 unknown."
            )
        present = set(values) & set(classes.values)
        if not present and set(values) - {0}:
            named = ", ".join(
                f"{value} {name}" for name, value in zip(classes.names[:20], classes.values, strict=False)
            )
            raise ValueError(
                f"{uri}: no pixel has a class, and {max(values)} is unknown. If it is the object, give the object the "
                f"value of its class: {named}."
            )
        yield CorrectedMask(path, size, len(present), Location.parse(uri).read_bytes())
