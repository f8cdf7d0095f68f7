"""Reads the bytes of one image file. If something is wrong with the file, the error is a `BadImage`.

If the store itself fails (403, lost connections, no disk space), the error is a `StorageError`.
"""

import errno
import re
from collections.abc import Callable

from storage.errors import MISSING, BadImage, StorageError
from storage.location import IrregularFile, Location, TooLarge

MAX_BYTES = 256 << 20

HEADER_BYTES = 1 << 18  # enough for nearly every header, with thumbnails and profiles

_FAULTS_OF_ONE_FILE = {
    errno.ELOOP: "its symbolic links form a loop",
    errno.ENAMETOOLONG: "its path is too long",
    errno.EACCES: "permission denied; check the file's owner and mode",
    errno.EPERM: "permission denied; check the file's owner and mode",
    errno.EIO: "the disk cannot read it",
}

_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")  # the end of the pixels; 00 and D0 to D7 belong to the pixels
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_SCAN_MARKER = b"\xff\xda"


def whole_file(uri: str, max_bytes: int = MAX_BYTES) -> bytes:
    """All bytes of the file, at least one.

    Raises:
        BadImage: the file is missing, empty, not a regular file, unreadable, or larger than `max_bytes`.
        StorageError: the store failed.
    """
    return _read(uri, lambda location: location.read_whole(max_bytes))


def file_header(uri: str, num_bytes: int = HEADER_BYTES) -> tuple[bytes, bool]:
    """The file's first bytes, at least one, and whether they are the whole file. It raises as `whole_file` does."""
    head = _read(uri, lambda location: location.read_start(num_bytes))
    return head, len(head) < num_bytes


def num_jpeg_scans(data: bytes, unless_above: int = 0) -> int:
    """The number of scans in a JPEG: 1 to 4 in baseline files, about 10 in progressive files.

    Each scan visits all pixels. It costs about as much time as decoding the whole picture once, but may have only a few
    bytes.

    Args:
        unless_above: if a quick upper bound is not above this, the bound is returned.
    """
    bound = data.count(_SCAN_MARKER)  # too high if thumbnails, profiles or videos in the file contain these bytes
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
        raise BadImage(MISSING) from error
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
