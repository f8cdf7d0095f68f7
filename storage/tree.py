"""Lists all files in a folder or prefix and below, and finds files by their ids."""

import os
from collections.abc import Iterator, Sequence

from storage.location import Location
from storage.s3 import file_system, storage_errors

# Suffixes of pictures. Formats that are not read are listed too, so that each file is skipped with its reason
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".mpo"),
    *(".avif", ".heic", ".heif", ".jp2"),
)


def files_below(folder: Location) -> list[str]:
    """The sorted paths of all files in a folder and below, relative to it, without hidden files and folders."""
    with storage_errors(folder.uri):
        if folder.is_local:
            paths = list(_local_files(folder.uri))
        else:
            prefix = folder.uri.removeprefix("s3://") + "/"
            paths = [key.removeprefix(prefix) for key in file_system().find(folder.uri) if key.startswith(prefix)]
    return sorted(path for path in paths if not any(part.startswith(".") or not part for part in path.split("/")))


def is_image_name(name: str) -> bool:
    """Whether a file has the suffix of an image."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def files_by_stem(folder: Location | None) -> dict[str, str]:
    """The URIs of the files in a folder and below, by id: the path without suffix, with ``__`` for ``/``.

    It is empty if the folder is None.
    """
    if folder is None:
        return {}
    root = folder.uri.rstrip("/")
    return {path.rsplit(".", 1)[0].replace("/", "__"): f"{root}/{path}" for path in files_below(folder)}


def words(names: Sequence[str], most: int = 20) -> str:
    """Names in a sentence; if there are many, only the first ones."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _local_files(root: str) -> Iterator[str]:
    for folder, _, names in os.walk(root, followlinks=True):
        below = os.path.relpath(folder, root).replace(os.sep, "/")
        yield from names if below == "." else (f"{below}/{name}" for name in names)
