"""The table in an Excel workbook (.xlsx), as rows of text like those of a CSV file."""

import io
import zipfile
from collections.abc import Iterator
from typing import Any
from xml.etree.ElementTree import ParseError

# What openpyxl raises for a file that is damaged
_FAULTS = (zipfile.BadZipFile, ParseError, OSError, KeyError, IndexError, TypeError, ValueError, AttributeError)


def is_workbook(data: bytes) -> bool:
    """Whether a file is an Excel workbook in the format that can be read (.xlsx)."""
    return data.startswith(b"PK\x03\x04") and b"xl/workbook" in data


def workbook_rows(data: bytes) -> tuple[list[tuple[int, list[str]]], str]:
    """The rows of a workbook's first visible sheet with content, with their numbers; empty rows are left out.

    Cells are texts as in a CSV file: 3 for a whole number, TRUE and FALSE for truth values.

    Returns:
        The rows, and a sentence if other sheets have content too ("" if not).

    Raises:
        ValueError: the workbook is damaged or empty, or a cell has an error, or a formula without a stored value.
    """
    try:
        sheets = list(_sheets(data))
    except _FAULTS as error:
        raise ValueError("a damaged Excel workbook; open and save it in Excel, or save it as CSV UTF-8") from error
    if not sheets:
        raise ValueError("an Excel workbook without content")
    (name, cells), *others = sheets
    for number, row in cells:
        for kind, value in row:
            if kind == "e":
                raise ValueError(f"row {number} of the sheet {name!r} has the error {value}; correct it in Excel")
            if kind == "f":
                raise ValueError(
                    f"row {number} of the sheet {name!r} has a formula without its value; open and save it in Excel"
                )
    rows = [(number, [_text(value) for _, value in row]) for number, row in cells]
    left_out = ", ".join(repr(other) for other, _ in others)
    return rows, f"only the sheet {name!r} is read, not {left_out}." if others else ""


def _sheets(data: bytes) -> Iterator[tuple[str, list[tuple[int, list[tuple[str, Any]]]]]]:
    """Each visible sheet with content: its name, and its rows of (kind, value), with openpyxl's kinds.

    A formula is replaced by the value stored with it. If no value is stored, its kind remains "f".
    """
    from openpyxl import load_workbook  # takes 0.3 s, and few tables are workbooks

    formulas, values = (load_workbook(io.BytesIO(data), read_only=True, data_only=only) for only in (False, True))
    for sheet, stored in zip(formulas.worksheets, values.worksheets, strict=True):
        if sheet.sheet_state != "visible":
            continue
        for each in (sheet, stored):
            each.reset_dimensions()  # some programs write a wrong size, which would cut the table
        rows = [
            (
                number,
                [(one.data_type if other.value is None else other.data_type, other.value) for one, other in pairs],
            )
            for number, pairs in enumerate(map(zip, sheet.iter_rows(), stored.iter_rows()), 1)
        ]
        rows = [(number, row) for number, row in rows if any(kind == "f" or _text(value) for kind, value in row)]
        if rows:
            yield sheet.title, rows


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()
