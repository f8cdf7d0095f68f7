"""The JSON text of whole Arrow columns, equal to that of Python's json but without a Python value for each cell.

Fingerprints hash this text. With Python values, millions of rows would take minutes.
"""

import json

import pyarrow as pa
import pyarrow.compute as pc

_PLAIN = bytes(set(range(0x20, 0x7F)) - set(b'"\\'))  # letters that JSON does not escape


def json_texts(column: pa.Array) -> pa.Array:
    """The text of each cell: ``'"a"'``, ``'12'``, ``'[1, 2]'``, ``'true'``, ``'null'``.

    Args:
        column: of strings, integers, booleans, or lists of integers.
    """
    if pa.types.is_string(column.type):
        texts = _string_texts(column)
    elif pa.types.is_list(column.type):
        items = pa.ListArray.from_arrays(column.offsets, pc.cast(column.values, pa.string()))
        texts = pc.binary_join_element_wise("[", pc.binary_join(items, ", "), "]", "")
        texts = pc.if_else(column.is_valid(), texts, None)
    else:
        texts = pc.cast(column, pa.string())
    return pc.fill_null(texts, "null")


def joined(texts: pa.Array, separator: str = ", ") -> bytes:
    """All texts joined into one, as UTF-8; nulls count as empty."""
    whole = pa.ListArray.from_arrays(pa.array([0, len(texts)], pa.int32()), pc.fill_null(texts, ""))
    return pc.binary_join(whole, separator)[0].as_buffer().to_pybytes()


def _string_texts(column: pa.Array) -> pa.Array:
    if joined(column, "").translate(None, _PLAIN):  # some letter is written as an escape
        return pa.array([json.dumps(value) for value in column.to_pylist()], pa.string())
    return pc.binary_join_element_wise('"', column, '"', "")
