"""Paths and ids of images: from what a source writes to a URI, and from different images to different ids."""

import hashlib
import posixpath
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from urllib.parse import unquote

from storage.location import Location

_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")  # C:\ or \\server
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def resolve_path(folder: Location, path: str) -> str:
    """The URI of a path as sources write it: below the folder, absolute, ``~/``, ``file://`` or ``s3://``.

    Backslashes of a relative path count as slashes.

    Raises:
        ValueError: it cannot be read from; the reason continues the words "the path of its image ...".
    """
    if _DRIVE.match(path):
        raise ValueError("is a Windows path; write it with slashes, relative to the folder of the images (--images)")
    scheme = _scheme(path)
    if scheme in ("http", "https", "ftp"):
        raise ValueError("is a web address; download the image and name the file")
    if scheme not in ("", "file", "s3"):
        raise ValueError(f"begins with {scheme}://; only folders and s3:// are read, so copy the image to one of them")
    if scheme == "file":
        path = unquote(path[len("file://") :].removeprefix("localhost"))
    if scheme or path.startswith(("/", "~/")):
        try:
            return Location.parse(path).uri
        except ValueError as error:
            raise ValueError("is not an s3:// address without '//' and '..'") from error
    below = posixpath.normpath(path.replace("\\", "/"))
    try:
        return (folder / below).uri
    except ValueError as error:
        raise ValueError("leads out of the folder; write it absolute") from error


def id_of_path(path: str) -> str:
    """An image's id where its source gives none: its path below the folder, suffix dropped, ``/`` written ``__``.

    Of a path that is not below the folder it is the last part. `tell_apart` gives images of one id longer ones.
    """
    has_root = path.startswith(("/", "~/")) or bool(_scheme(path)) or bool(_DRIVE.match(path))
    path = (unquote(path) if _scheme(path) == "file" else path).replace("\\", "/")
    relative = path.rsplit("/", 1)[-1] if has_root else posixpath.normpath(path).removeprefix("./")
    return _without_suffix(relative).replace("/", "__")


def tell_apart(uris: Mapping[int, str], ids: Sequence[str]) -> dict[int, str]:
    """Longer ids for different images that have the same one; other ids stay.

    Args:
        uris: by position in `ids`, of the images whose id was made of their path. All differ.
        ids: of all images.

    Returns:
        New ids by position: as many folders before the name as tell the images of one id apart
        (``train__0001``, ``val__0001``), with the suffix where only that differs.
    """
    positions = defaultdict(list)
    for position, image_id in enumerate(ids):
        positions[image_id].append(position)
    taken, longer = set(ids), dict[int, str]()
    for shared in positions.values():
        alike = [position for position in shared if position in uris]
        if len(shared) < 2 or not alike:
            continue
        for names in _longer_names([uris[position] for position in alike]):
            if len(set(names)) == len(names) and not taken.intersection(names):
                longer.update(zip(alike, names, strict=True))
                taken.update(names)
                break
    return longer


def _longer_names(uris: Sequence[str]) -> list[list[str]]:
    """Ever longer names of some images, side by side; the last ones differ for sure."""
    paths = [uri.split("://", 1)[-1].strip("/").split("/") for uri in uris]
    plain = [[*path[:-1], _without_suffix(path[-1])] for path in paths]
    longest = max(map(len, paths))
    found = [["__".join(path[-depth:]) for path in plain] for depth in range(2, longest + 1)]
    found += [["__".join(path[-depth:]) for path in paths] for depth in range(1, longest + 1)]
    digests = [hashlib.blake2b(uri.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest() for uri in uris]
    return [*found, [f"{path[-1]}__{digest}" for path, digest in zip(plain, digests, strict=True)]]


def _scheme(path: str) -> str:
    found = _SCHEME.match(path)
    return found[1].lower() if found else ""


def _without_suffix(path: str) -> str:
    return re.sub(r"\.[^./]*$", "", path)
