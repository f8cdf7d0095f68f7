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


def require_no_results(folder: Location, paths: Sequence[str]) -> None:
    """Refuses a folder of images that has a run or an export in it, whose masks would be taken for photographs.

    Args:
        paths: all files of the folder, as from `files_below`.

    Raises:
        ValueError: there is one.
    """
    for path in paths:
        place, _, name = f"/{path}".rpartition("/")
        if name == "step.json" and place.endswith("/ficklenet_export"):
            found, what = place.removesuffix("/ficklenet_export"), "an export"
        elif name == "run.json" and f"{place}/manifest.parquet".strip("/") in paths:
            found, what = place, "a run"
        else:
            continue
        inside = f"has {what} in it, {found.strip('/')}/" if found else f"is {what}"
        raise ValueError(f"{folder}: {inside}, and its masks would be taken for photographs. Move it out of there.")


def is_inside(place: Location, folder: Location) -> bool:
    """Whether a place is a folder, or is inside it, also through symbolic links."""
    return f"{real_address(place)}/".startswith(f"{real_address(folder)}/")


def real_address(place: Location) -> str:
    """The address, for local folders without symbolic links."""
    return os.path.realpath(place.uri) if place.is_local else place.uri


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
