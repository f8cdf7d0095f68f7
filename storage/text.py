"""Reads text files of other programs: finds their encoding, and the character that separates a table's columns.

It does not guess where a wrong guess would change letters. A file that is neither UTF-8 nor UTF-16 is refused, and the
message says what to do.
"""

import codecs
import csv
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO

COLUMN_SEPARATORS = (",", ";", "\t", "|")

_BYTE_ORDER_MARKS = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
_OTHER_FILES = (
    (b"\xd0\xcf\x11\xe0", "an Excel workbook of the old kind, or one with a password; save it in Excel as .xlsx"),
    (b"\x1f\x8b", "compressed by gzip; unpack it first, with 'gunzip --keep FILE'"),
    (b"PAR1", "a Parquet file; give it with --parquet"),
    (b"%PDF", "a PDF file"),
)
_ARCHIVES = (  # ZIP files, by their content
    (b"xl/workbook", "an Excel workbook; save it in Excel as 'CSV UTF-8 (Comma delimited)'"),
    (b"opendocument.spreadsheet", "a LibreOffice workbook; save it as .xlsx or .csv"),
    (b"Index/Document.iwa", "a Numbers document; export it as Excel or CSV"),
)
_INVISIBLE = dict.fromkeys(map(ord, "\ufeff\u200b\u200e\u200f\xad"))  # byte order mark, zero-width spaces, soft hyphen


@dataclass(frozen=True)
class Text:
    """A file's text, and the name of its encoding, such as ``"UTF-16"``."""

    content: str
    encoding: str


def decode_text(data: bytes, encoding: str | None = None, kind: str = "text") -> Text:
    """Decode a whole file.

    Args:
        encoding: Python's name of it, such as ``"cp1252"``; None: UTF-8, or UTF-16 or UTF-32 if the first bytes say so.
        kind: what was expected, for the message.

    Raises:
        ValueError: the bytes are not such text, as in "not CSV text in UTF-8 ..."; the message does not name the file.
    """
    codec, name = _encoding(data, encoding, kind)
    try:
        content = data.decode(codec)
    except UnicodeDecodeError as error:
        raise ValueError(f"not {kind} in {name}{_where(data, error) if codec == 'utf-8' else ''}") from error
    if "\0" in content:
        raise ValueError(f"not {kind}: it contains zero bytes")
    return Text(content.removeprefix("\ufeff"), name)


def csv_rows(content: str, separator: str | None = None) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table with their line numbers. Cells are stripped, and empty rows are skipped.

    Args:
        separator: the separator of columns; None: the one of `COLUMN_SEPARATORS` that gives the first row the most
            cells, or the one in Excel's line ``sep=;``.

    Raises:
        ValueError: it is not CSV, for example because a quote is not closed. The message has the line but not the file.
    """
    first, _, rest = content.partition("\n")
    skipped = 0
    named = first.strip(" \r")  # the separator may be a tab
    if named.lower().startswith("sep=") and len(named) == 5:
        separator, content, skipped = separator or named[4], rest, 1
    reader = csv.reader(StringIO(content, newline=""), delimiter=separator or column_separator(content), strict=True)
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                yield reader.line_num + skipped, cells
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num + skipped}: not CSV text ({error})") from error


def column_separator(content: str) -> str:
    """The separator that gives the first row with content the most cells; a comma if there is none."""
    first = next((line for line in content.splitlines() if line.strip(" ,;\t|")), "")
    counts = {sign: len(next(csv.reader([first], delimiter=sign), [])) for sign in COLUMN_SEPARATORS}
    return max(COLUMN_SEPARATORS, key=lambda sign: counts[sign])  # of equal ones the first


def printable(text: str) -> str:
    """Text for a line of a terminal or a log: letters of all scripts stay, control characters are escaped.

    A name with an escape sequence in it would otherwise change the terminal, one with a newline look like a line of
    ours: ``"a\\x1b[31m\\n"``.
    """
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def clean_name(name: str) -> str:
    """A class name in the form that is stored: composed letters (NFC), single spaces, no invisible characters."""
    return " ".join(unicodedata.normalize("NFC", name.translate(_INVISIBLE)).split())


def _encoding(data: bytes, given: str | None, kind: str) -> tuple[str, str]:
    """Python's name of the encoding, and a name to print."""
    if given is not None:
        try:
            return codecs.lookup(given).name, given
        except LookupError as error:
            raise ValueError(f"--encoding {given}: not the name of an encoding; examples: cp1252, latin-1") from error
    for mark, codec, name in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return codec, name
    if data.startswith(b"PK\x03\x04"):
        what = next((what for mark, what in _ARCHIVES if mark in data), "a ZIP archive; unpack it first")
        raise ValueError(f"not {kind} but {what}")
    for start, what in _OTHER_FILES:
        if data.startswith(start):
            raise ValueError(f"not {kind} but {what}")
    zeros = data[:400].count(0), data[1:400:2].count(0)
    if zeros[0] > 20 and zeros[1] in (0, zeros[0]):  # every second byte: UTF-16 without its mark
        return ("utf-16-le" if zeros[1] else "utf-16-be"), "UTF-16"
    return "utf-8", "UTF-8"


def _where(data: bytes, error: UnicodeDecodeError) -> str:
    line = data[: error.start].count(b"\n") + 1
    near = data[data.rfind(b"\n", 0, error.start) + 1 :].partition(b"\n")[0][:60].decode("cp1252", "replace").strip()
    return f" (line {line}). If {near!r} reads right, give --encoding cp1252; or save the file as UTF-8"
