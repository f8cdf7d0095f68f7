"""Tables in Excel workbooks: the same rows as in CSV, and one sentence for what cannot be read."""

import io
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from openpyxl import Workbook

from storage.image_table import read_image_table
from storage.location import Location
from storage.sources import Source

ROWS = [["image", "labels", "split"], ["0.jpg", "Käse;dog", "train"], [], ["1.jpg", None, "val"], [None, None, None]]


def workbook(rows: list[list[Any]], change: Callable[[Workbook], object] = lambda book: None) -> bytes:
    book, buffer = Workbook(), io.BytesIO()
    for row in rows:
        book.active.append(row)
    change(book)
    book.save(buffer)
    return buffer.getvalue()


def read(data: bytes, location: Location) -> Source:
    (location / "labels.xlsx").write_bytes(data)
    return read_image_table(location / "labels.xlsx", location)


def test_a_workbook_is_the_same_table_as_its_csv(location: Location) -> None:
    source = read(workbook(ROWS), location)
    text = "\n".join(",".join(cell or "" for cell in row) for row in ROWS)
    (location / "labels.csv").write_bytes(text.encode())
    assert source == read_image_table(location / "labels.csv", location)
    assert [(image.image_id, image.labels) for image in source.images] == [("0", ("Käse", "dog")), ("1", ())]


def test_numbers_and_truth_values_are_those_of_csv(location: Location) -> None:
    source = read(workbook([["image", "cat", "dog"], [1, 1, 0.0], [2.0, False, True]]), location)
    assert [(image.image_id, image.labels) for image in source.images] == [("1", ("cat",)), ("2", ("dog",))]


def test_the_first_visible_sheet_with_content_is_read_and_others_are_told(location: Location) -> None:
    def change(book: Workbook) -> None:
        book.create_sheet("Hidden", 0).append(["not", "this"])
        book["Hidden"].sheet_state = "hidden"
        book.create_sheet("Empty", 0)
        book.create_sheet("Legend").append(["a", "b"])

    source = read(workbook(ROWS, change), location)
    assert len(source.images) == 2
    assert source.notes == ("labels.xlsx: only the sheet 'Sheet' is read, not 'Legend'.",)


def test_a_row_that_names_no_image_has_the_number_that_excel_shows(location: Location) -> None:
    source = read(workbook([*ROWS[:3], [None, "cat", "train"]]), location)
    assert [(image.image_id, image.problem) for image in source.images][1] == ("line 4", "its row names no image")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (workbook([["image", "labels"], ["0.jpg", "=A1"]]), "row 2 of the sheet 'Sheet' has a formula without its"),
        (workbook([["image", "labels"], ["0.jpg", "#N/A"]]), "row 2 of the sheet 'Sheet' has the error #N/A"),
        (workbook([]), "an Excel workbook without content"),
        (workbook(ROWS)[:2000] + b"xl/workbook", "a damaged Excel workbook"),
        (workbook([["picture", "labels"], ["0.jpg", "cat"]]), "no column 'image'"),
    ],
)
def test_a_workbook_that_cannot_be_read_is_refused_in_one_sentence(data: bytes, sentence: str, location: Location):
    with pytest.raises(ValueError, match=sentence) as refusal:
        read(data, location)
    assert str(refusal.value).startswith(f"{location}/labels.xlsx: ") and "\n" not in str(refusal.value)


def test_a_label_that_excel_made_a_date_is_seen_as_one(location: Location) -> None:
    source = read(workbook([["image", "labels"], ["0.jpg", datetime(2026, 3, 4)]]), location)
    assert source.images[0].labels == ("2026-03-04 00:00:00",)
