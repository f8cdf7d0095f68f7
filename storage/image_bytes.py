"""The bytes of one image file, before anything is decoded: what is wrong with the file becomes a `BadImage`.

Trouble of the store itself (403, lost connections, no disk space) stays a `StorageError`.
"""

import errno
import re
from collections.abc import Callable

from storage.errors import BadImage, StorageError
from storage.location import IrregularFile, Location, TooLarge

MAX_BYTES = 256 << 20

_HEADER_BYTES = 1 << 18  # holds the header of nearly every file, thumbnails and profiles included

_FAULTS_OF_ONE_FILE = {
    errno.ELOOP: "its symbolic links form a loop",
    errno.ENAMETOOLONG: "its path is too long",
    errno.EACCES: "permission denied; check the file's owner and mode",
    errno.EPERM: "permission denied; check the file's owner and mode",
    errno.EIO: "the disk cannot read it",
}

_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")  # after pixels; 00 and D0 to D7 belong to the pixels
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_SCAN_MARKER = b"\xff\xda"


def whole_file(uri: str, max_bytes: int = MAX_BYTES) -> bytes:
    """All bytes of the file, at least one.

    Raises:
        BadImage: missing, empty, not a regular file, unreadable, or larger than `max_bytes`.
        StorageError: the store failed.
    """
    return _read(uri, lambda location: location.read_whole(max_bytes))


def file_header(uri: str) -> tuple[bytes, bool]:
    """The file's first bytes, at least one, and whether they are all of it. Raises as `whole_file`."""
    head = _read(uri, lambda location: location.read_start(_HEADER_BYTES))
    return head, len(head) < _HEADER_BYTES


def num_jpeg_scans(data: bytes, unless_above: int = 0) -> int:
    """How many times a JPEG goes over its pixels: 1 to 4 when baseline, about 10 when progressive.

    Each scan costs about as much time as decoding the whole picture once, and needs only a few bytes.

    Args:
        unless_above: up to so many, a quick upper bound will do.
    """
    bound = data.count(_SCAN_MARKER)  # thumbnails, profiles and films behind the picture may hold these bytes too
    if bound <= unless_above:
        return bound
    scans, position = 0, 2
    while marker := _MARKER.search(data, position):
        kind, position = marker[0][-1], marker.end()
        if kind == _END_OF_IMAGE:
            break
        scans += kind == _START_OF_SCAN
        position += int.from_bytes(data[position : position + 2], "big")
    return scans


def _read(uri: str, read: Callable[[Location], bytes]) -> bytes:
    try:
        location = Location.parse(uri)
    except ValueError as error:
        raise BadImage("its address is neither a path nor s3://bucket/key") from error
    try:
        data = read(location)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadImage("missing: no such file") from error
    except IsADirectoryError as error:
        raise BadImage("a folder, not a file") from error
    except IrregularFile as error:
        raise BadImage(str(error)) from error
    except TooLarge as error:
        raise BadImage(f"too large: {error} (images.max_bytes)") from error
    except StorageError as error:
        number = error.__cause__.errno if isinstance(error.__cause__, OSError) else None
        reason = _FAULTS_OF_ONE_FILE.get(number or 0)
        if not location.is_local or reason is None:
            raise
        raise BadImage(reason) from error
    if not data:
        raise BadImage("empty file")
    return data
