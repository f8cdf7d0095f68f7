"""Small JSON files: reads them with a clear message for every error, and adds a checksum of their own (a seal)."""

import json
from collections.abc import Mapping
from typing import Any

from storage.checksums import checksum
from storage.location import Location

_SEALED = '"sealed": true'
_CHECKSUM = '"checksum": "'


def read_json(location: Location, what: str, remedy: str = "") -> dict[str, Any]:
    """A JSON object from a file.

    Args:
        what: what the file is, for the message, such as ``"the run's configuration"``.
        remedy: a sentence that says what to do if it is damaged; by default to put it back or use another run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, cut short, or not a JSON object; the message names the file.
    """
    return parse_json(location.read_bytes(), location, what, remedy)


def read_json_lines(location: Location, what: str, remedy: str = "") -> list[dict[str, Any]]:
    """The JSON objects of a file with one object in each line; an empty list if there is no file.

    The file is written whole, so a last line without a line end is damage too.

    Raises:
        ValueError: a line is not a JSON object; the message names the file and the line.
    """
    try:
        lines = location.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    if lines[-1]:
        raise _damaged(location, f"{what} (line {len(lines)})", "it has no end", remedy)
    return [parse_json(line, location, f"{what} (line {number})", remedy) for number, line in enumerate(lines[:-1], 1)]


def parse_json(data: bytes, location: Location, what: str, remedy: str = "") -> dict[str, Any]:
    """The same as `read_json`, for bytes that are already read; a wrong checksum is damage too.

    Raises:
        ValueError: as in `read_json`.
    """
    reason = "it is empty" if not data.strip() else ""
    try:
        found = {} if reason else json.loads(data)
        if not isinstance(found, dict):
            reason = f"it contains a {type(found).__name__}, expected an object"
        elif not reason and is_seal_broken(data):
            reason = "its bytes have changed"
    except (ValueError, RecursionError) as error:
        reason = f"not JSON: {error}" if isinstance(error, json.JSONDecodeError) else "not JSON text"
    if reason:
        raise _damaged(location, what, reason, remedy)
    return {key: value for key, value in found.items() if key not in ("sealed", "checksum")}


def _damaged(location: Location, what: str, reason: str, remedy: str) -> ValueError:
    remedy = remedy or "Put the file back from a copy, or use another run."
    return ValueError(f"{location}: damaged, cannot be read as {what} ({reason}). {remedy}")


def seal(content: Mapping[str, Any], indent: int | None = None) -> bytes:
    """A JSON object with a checksum of its own bytes, so that damage of any bit is found."""
    text = json.dumps({"sealed": True, **content}, indent=indent)
    head = text.removesuffix("}").rstrip()
    line = "\n" + " " * indent if indent else " "
    return f'{head},{line}{_CHECKSUM}{checksum(head.encode())}"{line[:1].strip(" ")}}}'.encode()


def is_seal_broken(data: bytes) -> bool:
    """Whether a record has a checksum and has changed. Records of earlier versions have no checksum, so False."""
    head, mark, tail = data.rpartition(_CHECKSUM.encode())
    if not mark:
        return _SEALED.encode() in data
    wanted = checksum(head.rstrip().removesuffix(b",")) + '"}'
    return b"".join(tail.split()) != wanted.encode()
