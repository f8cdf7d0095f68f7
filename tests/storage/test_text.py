"""Texts as programs write them: encodings, separators of columns, empty rows, names."""

import pytest

from storage.text import clean_name, column_separator, csv_rows, decode_text, printable

TABLE = "image,labels\n0.jpg,Käse\n"


@pytest.mark.parametrize(
    ("encoding", "name"),
    [("utf-8", "UTF-8"), ("utf-8-sig", "UTF-8"), ("utf-16", "UTF-16"), ("utf-32", "UTF-32"), ("utf-16-le", "UTF-16")],
)
def test_what_a_byte_order_mark_says_is_read(encoding: str, name: str) -> None:
    found = decode_text(TABLE.encode(encoding))
    assert (found.content, found.encoding) == (TABLE, name)


def test_a_named_encoding_is_read() -> None:
    assert decode_text(TABLE.encode("cp1252"), "cp1252").content == TABLE
    with pytest.raises(ValueError, match="--encoding klingon: not the name of an encoding"):
        decode_text(b"", "klingon")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (
            TABLE.encode("cp1252"),
            r"not CSV text in UTF-8 \(line 2\)\. If '0\.jpg,Käse' reads right, give --encoding cp1252",
        ),
        (b"PK\x03\x04....xl/workbook.xml", "an Excel workbook; save it in Excel as 'CSV UTF-8"),
        (b"\xd0\xcf\x11\xe0....", "an Excel workbook"),
        (b"PK\x03\x04....labels.csv", "a ZIP archive; unpack it first"),
        (b"PK\x03\x04..opendocument.spreadsheet", "a LibreOffice workbook; save it as .xlsx or .csv"),
        (b"PK\x03\x04..Index/Document.iwa", "a Numbers document; export it as Excel or CSV"),
        (b"\x1f\x8b....", "compressed by gzip; unpack it first"),
        (b"PAR1....", "a Parquet file; give it with --parquet"),
        (b"image,labels\n\0\0,cat\n", "it contains zero bytes"),
    ],
)
def test_other_files_are_called_by_their_name(data: bytes, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        decode_text(data, kind="CSV text")


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("image,labels\na,b", [["image", "labels"], ["a", "b"]]),
        ("image;labels\na;b|c", [["image", "labels"], ["a", "b|c"]]),
        ("image\tlabels\na b\tc;d", [["image", "labels"], ["a b", "c;d"]]),
        ("image|labels\na|b", [["image", "labels"], ["a", "b"]]),
        ("sep=;\nimage;labels\na;b", [["image", "labels"], ["a", "b"]]),
        ('\n,,\n"image","labels"\n"a;b","c,d"\n,\n', [["image", "labels"], ["a;b", "c,d"]]),
    ],
)
def test_rows_are_cut_at_the_sign_that_cuts_the_first_row_most(text: str, rows: list[list[str]]) -> None:
    assert [row for _, row in csv_rows(text)] == rows


def test_line_numbers_are_those_of_the_file() -> None:
    assert [line for line, _ in csv_rows("sep=;\na;b\n;\n1;2\n")] == [2, 4]
    with pytest.raises(ValueError, match="line 2: not CSV text"):
        list(csv_rows('a,b\n"1,2\n'))


def test_a_separator_inside_quotes_does_not_count() -> None:
    assert column_separator('"a;b;c",d') == ","


def test_names_are_composed_and_without_invisible_signs() -> None:
    assert clean_name("\ufeff Ka\u0308se\u200b\u00a0 gelb ") == "Käse gelb"


def test_a_line_of_text_holds_no_control_characters() -> None:
    assert printable("Läufe 中\x1b[31m\n\x9b\u202e") == "Läufe 中\\x1b[31m\\n\\x9b\\u202e"
