"""Reads the labels in one cell of a table: names with separators, a list of Python, JSON or numpy, or 0 and 1."""

import ast
import json
import re
from collections.abc import Sequence
from functools import lru_cache

from storage.text import clean_name

SEPARATORS = ";|"

_QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_ITEM = re.compile(rf"\s*(?P<quoted>{_QUOTED})\s*|(?P<bare>[^,\[\]'\"]+)", re.S)

_PRESENT = ("1", "1.0", "true", "yes")
_ABSENT = ("0", "0.0", "false", "no")
_MINUS_ONE = ("-1", "-1.0")


@lru_cache(maxsize=1 << 14)  # millions of rows have a few thousand different cells
def parse_labels(cell: str, separators: str = SEPARATORS) -> tuple[str, ...]:
    """The class names in a cell, in their order and without repetitions.

    Args:
        cell: ``cat;dog``, or a list: ``['cat', 'dog']`` (pandas), ``["cat", "dog"]`` (JSON), ``['cat' 'dog']`` (numpy).
        separators: the characters that separate names outside a list.

    Raises:
        ValueError: the cell begins as a list but cannot be read as one; the message is only the reason.
    """
    if is_list(cell):
        names = _parse_list(cell)
    else:
        names = re.split(f"[{re.escape(separators)}]", cell) if separators else [cell]
    return unique_names(names)


def unique_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names without surrounding spaces, without repetitions and without empty names."""
    return tuple(dict.fromkeys(name for name in map(clean_name, names) if name))


def is_list(cell: str) -> bool:
    """Whether a cell is a list in square brackets, or in other brackets with something quoted inside."""
    ends = cell[:1] + cell[-1:]
    return ends == "[]" or (ends in ("()", "{}") and bool(re.search(r"['\"]", cell)))


def is_flag(cell: str) -> bool:
    """Whether a cell says yes, no or nothing, as cells in a column per class do."""
    return not cell or cell.lower() in (*_PRESENT, *_ABSENT, *_MINUS_ONE)


def read_flag(cell: str) -> int | None:
    """The 1, 0 or -1 of a cell that `is_flag`; None if it is empty."""
    if not cell:
        return None
    return 1 if cell.lower() in _PRESENT else -1 if cell in _MINUS_ONE else 0


def as_number(label: str) -> int | None:
    """The number of a label that is a whole number, also written as ``3.0``; else None."""
    found = re.fullmatch(r"([0-9]{1,6})(?:\.0+)?", label)
    return int(found[1]) if found else None


def _parse_list(cell: str) -> list[str]:
    """The items of a list. `ast` would join numpy's 'cat' 'dog' to one text, and JSON has no single quotes."""
    inside, names, position = cell[1:-1].strip(), [], 0
    while position < len(inside):
        found = _ITEM.match(inside, position)
        if not found:
            raise ValueError("its labels begin as a list but cannot be read as one; write ['cat', 'dog'] or cat;dog")
        names.append(_unquoted(found["quoted"]) if found["quoted"] else found["bare"])
        position = found.end()
        position += inside[position : position + 1] == ","
    return names


def _unquoted(text: str) -> str:
    try:
        return json.loads(text) if text.startswith('"') else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text[1:-1]
