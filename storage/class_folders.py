"""A folder per class as a label source: ``cats/1.jpg``, ``dogs/2.jpg``, also below ``train``, ``val``, ``test``.

Folders below a class's folder belong to it. A picture that lies in the folders of two classes is two pictures here,
since nothing but the path names it.
"""

from collections.abc import Sequence

from storage.image_paths import id_of_path
from storage.location import Location
from storage.sources import Source, SourceImage
from storage.text import clean_name
from storage.tree import files_below, is_image_name, words

SPLIT_FOLDERS = ("train", "training", "val", "valid", "validation", "test", "testing")


def read_class_folders(folder: Location, splits: Sequence[str] = ()) -> Source:
    """Read a folder whose folders are classes, or splits that hold classes.

    Args:
        splits: those wanted; none: all.

    Raises:
        ValueError: no images in folders, or an unknown split.
    """
    paths = files_below(folder)
    images = [path for path in paths if is_image_name(path)]
    tops = sorted({path.split("/")[0] for path in images if "/" in path})
    has_splits = bool(tops) and all(top.lower() in SPLIT_FOLDERS for top in tops)
    depth = 2 if has_splits else 1
    below = [path for path in images if path.count("/") >= depth]
    if not below:
        what = f"{len(images):,} images that lie in no folder" if images else "no images"
        raise ValueError(
            f"{folder}: {what}. --folders needs a folder per class, such as {folder.name}/cat/1.jpg; for images with "
            "a table give --csv labels.csv --images FOLDER."
        )
    unknown = [split for split in splits if split not in (tops if has_splits else ())]
    if unknown:
        known = f"there are {words(tops)}" if has_splits else "its folders are classes, not splits"
        raise ValueError(f"--split {unknown[0]}: no such folder in {folder}; {known}.")
    found = []
    for path in below:
        *splits_above, name = path.split("/")[:depth]
        split = splits_above[0] if splits_above else ""
        if not splits or split in splits:
            image_id = id_of_path(path.split("/", 1)[1] if has_splits else path)
            found.append(SourceImage(image_id, (folder / path).uri, (clean_name(name),), split))
    notes = []
    if num_others := len(paths) - len(images):
        notes.append(f"{num_others:,} files in {folder} are passed over, as their suffix is not one of an image.")
    if num_loose := len(images) - len(below):
        notes.append(f"{num_loose:,} images in {folder} lie in no class's folder and are passed over.")
    return Source(tuple(found), notes=tuple(notes))
