"""A folder per class as a label source: ``cats/1.jpg``, ``dogs/2.jpg``, also in ``train``, ``val`` and ``test``.

Folders inside a class's folder belong to this class. A picture that is in the folders of two classes counts as two
pictures, because only the path identifies it.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from storage.image_paths import id_of_path
from storage.location import Location
from storage.sources import Source, SourceImage
from storage.text import clean_name
from storage.tree import files_below, is_image_name, require_no_results, words

SPLIT_FOLDERS = ("train", "training", "val", "valid", "validation", "test", "testing")


def read_class_folders(folder: Location, splits: Sequence[str] = ()) -> Source:
    """Read a folder with a folder per class, or with a folder per split that has a folder per class.

    Args:
        splits: the splits to read; empty: all.

    Raises:
        ValueError: there are no images in folders, a split does not exist, or a run lies in the folder.
    """
    paths = files_below(folder)
    require_no_results(folder, paths)
    images = [path for path in paths if is_image_name(path)]
    tops = sorted({path.split("/")[0] for path in images if "/" in path})
    has_splits = bool(tops) and all(top.lower() in SPLIT_FOLDERS for top in tops)
    depth = 2 if has_splits else 1
    below = [path for path in images if path.count("/") >= depth]
    if not below:
        is_missing = folder.is_local and not os.path.isdir(folder.uri)
        nothing = "no such folder" if is_missing else "no images"
        what = f"{len(images):,} images that are not in a folder" if images else nothing
        hint = f" If {folder.name} is a class, give the folder above: --folders {folder.parent}." if images else ""
        raise ValueError(
            f"{folder}: {what}. --folders needs a folder per class, such as {folder.name}/cat/1.jpg.{hint} For images "
            "with a table, give --csv labels.csv --images FOLDER."
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
    if others := [path for path in paths if not is_image_name(path)]:
        notes.append(
            f"ignored, because the suffix is not that of an image: {len(others):,} of {len(paths):,} files in {folder} "
            f"(first: {others[0]})."
        )
    lost, num_files = _folders_without_image(paths, depth)
    if lost:
        notes.append(
            f"no class is made of {words(lost)}, because none of the {num_files:,} files there has the suffix of an "
            "image. Save them as JPEG or PNG, and prepare again."
        )
    if empty := _empty_folders(folder, paths, depth):
        notes.append(f"no class is made of {words(empty)}, because the folder has no file.")
    if loose := [path for path in images if path.count("/") < depth]:
        notes.append(f"ignored, because not in a class's folder: {len(loose):,} in {folder} (first: {loose[0]}).")
    return Source(tuple(found), notes=tuple(notes))


def _empty_folders(folder: Location, paths: Sequence[str], depth: int) -> list[str]:
    """The names of class folders without any file; on S3, a folder without a file does not exist."""
    if not folder.is_local:
        return []
    filled = {tuple(path.split("/")[:depth]) for path in paths}
    found = [place.relative_to(folder.uri).parts for place in Path(folder.uri).glob("/".join("*" * depth))]
    return sorted(
        parts[-1]
        for parts in found
        if parts not in filled and not any(part.startswith(".") for part in parts) and Path(folder.uri, *parts).is_dir()
    )


def _folders_without_image(paths: Sequence[str], depth: int) -> tuple[list[str], int]:
    """The names of the class folders that have files but no image, and the number of these files."""
    in_folders = [(path.split("/")[depth - 1], path) for path in paths if path.count("/") >= depth]
    lost = {name for name, _ in in_folders} - {name for name, path in in_folders if is_image_name(path)}
    return sorted(lost), sum(name in lost for name, _ in in_folders)
