"""Paths and ids of images: turns the paths in a source into URIs, and gives different images different ids."""

import hashlib
import posixpath
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from urllib.parse import unquote

from storage.location import Location

_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")  # C:\ or \\server
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SUFFIX = re.compile(r"\.[^./]*$")
_NAME = r"[^/\\:~.\0][^/\\:\0]*"
_PLAIN = re.compile(rf"/?{_NAME}(?:/{_NAME})*")  # nothing to resolve in it; nearly all paths of large tables


def resolve_path(folder: Location, path: str) -> str:
    """The URI of a path in a source: relative to the folder, absolute, ``~/``, ``file://`` or ``s3://``.

    Backslashes in a relative path count as slashes.

    Raises:
        ValueError: the path cannot be used; the message continues the words "the path of its image ...".
    """
    if _PLAIN.fullmatch(path):
        return path if path.startswith("/") else f"{folder.uri.rstrip('/')}/{path}"
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
        raise ValueError("leads out of the folder; write an absolute path") from error


def id_of_path(path: str) -> str:
    """The id of an image without an id in the source: its path in the folder, without suffix, with ``__`` for ``/``.

    If the path is not in the folder, the id is its last part. `tell_apart` gives longer ids to images with the same id.
    """
    if _PLAIN.fullmatch(path):
        relative = path.rsplit("/", 1)[-1] if path.startswith("/") else path
        return _without_suffix(relative).replace("/", "__")
    has_root = path.startswith(("/", "~/")) or bool(_scheme(path)) or bool(_DRIVE.match(path))
    path = (unquote(path) if _scheme(path) == "file" else path).replace("\\", "/")
    relative = path.rsplit("/", 1)[-1] if has_root else posixpath.normpath(path).removeprefix("./")
    return _without_suffix(relative).replace("/", "__")


def tell_apart(uris: Mapping[int, str], ids: Sequence[str]) -> dict[int, str]:
    """Longer ids for different images that have the same id; other ids do not change.

    Args:
        uris: the URIs of the images with an id made from their path, by position in `ids`. All are different.
        ids: the ids of all images.

    Returns:
        New ids by position, with as many folders before the name as are needed to make the ids different
        (``train__0001``, ``val__0001``), and with the suffix if only the suffixes differ.
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
    """Names of some images, from the shortest to the longest; the longest names are always different."""
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
    return _SUFFIX.sub("", path)
