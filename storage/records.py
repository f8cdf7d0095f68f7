"""Small JSON files: reading them with a sentence for whatever is wrong, and sealing them with their own checksum."""

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
        what: the file is, for the message, e.g. ``"the run's configuration"``.
        remedy: what to do when it is damaged, a whole sentence; by default to put it back or use another run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, cut short, or no JSON object; the sentence names the file.
    """
    return parse_json(location.read_bytes(), location, what, remedy)


def read_json_lines(location: Location, what: str, remedy: str = "") -> list[dict[str, Any]]:
    """The JSON objects of a file that has one in each line; none where there is no file.

    The file is written whole, so a last line without its end is damage too.

    Raises:
        ValueError: a line is no JSON object; the sentence names the file and the line.
    """
    try:
        lines = location.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    if lines[-1]:
        raise _damaged(location, f"{what} (line {len(lines)})", "it has no end", remedy)
    return [parse_json(line, location, f"{what} (line {number})", remedy) for number, line in enumerate(lines[:-1], 1)]


def parse_json(data: bytes, location: Location, what: str, remedy: str = "") -> dict[str, Any]:
    """The same as `read_json` of bytes already read; a broken seal is damage too.

    Raises:
        ValueError: as `read_json`.
    """
    reason = "it is empty" if not data.strip() else ""
    try:
        found = {} if reason else json.loads(data)
        if not isinstance(found, dict):
            reason = f"it holds a {type(found).__name__}, expected an object"
        elif not reason and is_seal_broken(data):
            reason = "its bytes are not those that were written"
    except (ValueError, RecursionError) as error:
        reason = f"no JSON: {error}" if isinstance(error, json.JSONDecodeError) else "no JSON text"
    if reason:
        raise _damaged(location, what, reason, remedy)
    return {key: value for key, value in found.items() if key not in ("sealed", "checksum")}


def _damaged(location: Location, what: str, reason: str, remedy: str) -> ValueError:
    remedy = remedy or "Put the file back from a copy, or use another run."
    return ValueError(f"{location}: damaged, cannot be read as {what} ({reason}). {remedy}")


def seal(content: Mapping[str, Any], indent: int | None = None) -> bytes:
    """A JSON object with a checksum of its own bytes, so that a damaged file is found whatever bit was flipped."""
    text = json.dumps({"sealed": True, **content}, indent=indent)
    head = text.removesuffix("}").rstrip()
    line = "\n" + " " * indent if indent else " "
    return f'{head},{line}{_CHECKSUM}{checksum(head.encode())}"{line[:1].strip(" ")}}}'.encode()


def is_seal_broken(data: bytes) -> bool:
    """Whether a record was sealed and is not what it was; an unsealed one, of an earlier version, has none to break."""
    head, mark, tail = data.rpartition(_CHECKSUM.encode())
    if not mark:
        return _SEALED.encode() in data
    wanted = checksum(head.rstrip().removesuffix(b",")) + '"}'
    return b"".join(tail.split()) != wanted.encode()
