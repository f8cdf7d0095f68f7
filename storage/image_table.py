"""A table of images and their labels, CSV, Excel or Parquet, as a label source.

It has the columns ``image`` and ``labels``, and optionally ``id``, ``split``, ``mask`` and ``saliency``. Other columns
are ignored.

    image,labels,split
    photos/0001.jpg,cat;potted plant,train
    s3://bucket/more/0002.jpg,,unlabelled

Labels are separated by ``;`` or ``|`` (spaces belong to names), or written as a list, or there is one column per class
with 0 and 1. Several rows may name the same image. Paths are relative to the folder, absolute, or ``s3://``. Without
``id``, the id is made from the image's path, without the suffix and with ``__`` for ``/``.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from storage.image_paths import id_of_path, resolve_path
from storage.label_cells import SEPARATORS, is_list, parse_labels, read_flag, unique_names
from storage.location import Location
from storage.parquet import parquet_errors
from storage.sources import Source, SourceImage
from storage.table_columns import KNOWN, Columns, find_columns
from storage.text import csv_rows, decode_text
from storage.tree import words
from storage.workbook import is_workbook, workbook_rows

MinusOne = Literal["absent", "present", "skip"]

Cell = str | list[str]  # a list if the cell of a Parquet table is a list


@dataclass(frozen=True)
class TableOptions:
    """How to read a table.

    Attributes:
        columns: meaning -> name of the column, such as ``{"image": "filename"}``.
        class_names: the classes to use, in a table with one column per class.
        label_separators: the characters that separate the labels of an image.
        encoding: the encoding of a CSV table; None: UTF-8, or what its byte order mark says.
        minus_one: the meaning of -1 in a column per class: the class is absent or present, or the image is left out.
        splits: the splits to read; empty: all.
        needs_labels: refuse a table without labels; otherwise all its images may be unlabelled.
    """

    columns: dict[str, str] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    label_separators: str = SEPARATORS
    encoding: str | None = None
    minus_one: MinusOne | None = None
    splits: tuple[str, ...] = ()
    needs_labels: bool = True


def read_image_table(table: Location, folder: Location, options: TableOptions = TableOptions()) -> Source:
    """Read a table in CSV text or in an Excel workbook; an unusable row becomes an image with a problem.

    Raises:
        ValueError: a column is missing or misspelt, or the file is neither CSV nor a workbook.
        FileNotFoundError, IsADirectoryError: there is no such table.
    """
    try:
        data = table.read_bytes()
        numbered, note = workbook_rows(data) if is_workbook(data) else _csv_rows(data, options.encoding)
        (_, header), *rows = numbered or [(1, [])]
        source = _read(header, [row for _, row in rows], [f"line {line}" for line, _ in rows], folder, options)
    except ValueError as error:
        raise ValueError(f"{table}: {str(error).rstrip('.')}.") from error
    return _with_notes(table, source, [note] if note else [])


def _csv_rows(data: bytes, encoding: str | None) -> tuple[list[tuple[int, list[str]]], str]:
    """The rows of CSV text with their line numbers, and a sentence if the encoding is neither UTF-8 nor as given."""
    text = decode_text(data, encoding, "CSV text")
    note = f"read as {text.encoding}." if text.encoding not in ("UTF-8", encoding) else ""
    return list(csv_rows(text.content)), note


def read_parquet_table(table: Location, folder: Location, options: TableOptions = TableOptions()) -> Source:
    """Read a Parquet table; an unusable row becomes an image with a problem.

    Raises:
        ValueError: a column is missing, misspelt or not text, or the file is not Parquet.
        FileNotFoundError: there is no such table.
    """
    with table.open_input() as file, parquet_errors(table):
        columns = pq.read_table(file)
    try:
        for name in columns.column_names:
            _require_readable(name, columns.schema.field(name).type)
        texts = [[_cell(value) for value in column.to_pylist()] for column in columns.columns]
        rows = [list(row) for row in zip(*texts, strict=True)]
        source = _read(columns.column_names, rows, [f"row {n}" for n in range(1, len(rows) + 1)], folder, options)
    except ValueError as error:
        raise ValueError(f"{table}: {str(error).rstrip('.')}.") from error
    return _with_notes(table, source, ())


def _read(
    header: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    places: Sequence[str],
    folder: Location,
    options: TableOptions,
) -> Source:
    """The images of a table's rows; `places` identify rows that name no image."""
    texts = [[cell if isinstance(cell, str) else "[]" for cell in row] for row in rows]
    columns = find_columns(header, texts, options.columns, options.class_names, needs_labels=options.needs_labels)
    reader = _RowReader(header, columns, folder, options)
    minus_one = reader.require_minus_one(texts)
    found = [reader.image(row, place, minus_one) for row, place in zip(rows, places, strict=True)]
    images = [image for image in found if image and (not options.splits or image.split in options.splits)]
    if options.splits and not images:
        known = sorted({image.split for image in found if image})
        near = difflib.get_close_matches(options.splits[0], known, n=1)
        hint = (
            f"Did you mean {near[0]!r}?" if near else f"The table has {words([each or 'no split' for each in known])}."
        )
        raise ValueError(f"no row has the split {options.splits[0]!r}. {hint}")
    notes = [*columns.notes]
    if reader.num_lists:
        notes.append(f"the labels of {reader.num_lists:,} rows are read as lists, such as {reader.first_list}.")
    if reader.num_unsure:
        notes.append(f"{reader.num_unsure:,} rows with -1 are left out.")
    return Source(tuple(images), tuple(columns.classes) or None, notes=tuple(notes))


class _RowReader:
    """Turns rows into images, and collects the notes that are printed once for the whole table."""

    def __init__(self, header: Sequence[str], columns: Columns, folder: Location, options: TableOptions) -> None:
        self.width, self.columns, self.folder, self.options = len(header), columns, folder, options
        self.num_lists = self.num_unsure = 0
        self.first_list = ""

    def require_minus_one(self, rows: Sequence[Sequence[str]]) -> MinusOne:
        """The meaning of -1: the given one, or absent if no cell is 0.

        Raises:
            ValueError: the table has both -1 and 0, and no meaning was given.
        """
        positions = self.columns.classes.values()
        values = {read_flag(row[position]) for row in rows for position in positions if position < len(row)}
        if -1 in values and 0 in values and self.options.minus_one is None:
            raise ValueError(
                "its columns of classes have the values 0, 1 and -1. For some programs -1 means absent, for others "
                "uncertain. Say which: --minus-one absent, --minus-one present, or --minus-one skip, which leaves such "
                "images out"
            )
        return self.options.minus_one or "absent"

    def image(self, row: Sequence[Cell], place: str, minus_one: MinusOne) -> SourceImage | None:
        """One row's image; None if its labels are uncertain and such rows are left out."""
        is_whole = max(self.columns.of["image"], self.columns.of.get("labels", self.width - 1)) < len(row)
        num_fields, has_more = len(row), any(row[self.width :])
        row = [*row, *[""] * (self.width - len(row))]  # some programs leave out empty cells at the end
        cells = {meaning: row[position] for meaning, position in self.columns.of.items()}
        texts = {meaning: cell if isinstance(cell, str) else "" for meaning, cell in cells.items()}
        path, split = texts["image"], texts.get("split", "")
        own_id = texts.get("id", "")
        image_id = own_id or id_of_path(path) or place
        start = {"image_id": image_id, "split": split, "has_own_id": bool(own_id)}
        if has_more or not is_whole:
            hint = "put labels with commas in quotes, or separate them by ';'" if has_more else "a cell is missing"
            problem = f"its row has {num_fields} fields, but the first line has {self.width}; {hint}"
            return SourceImage(uri="", problem=problem, **start)  # type: ignore[arg-type]
        uris, problem = self._uris(texts)
        try:
            labels = self._labels(cells.get("labels", ""))
        except ValueError as error:
            return SourceImage(uri=uris.get("image", ""), problem=problem or str(error), **start)  # type: ignore[arg-type]
        flags = {name: read_flag(str(row[position])) for name, position in self.columns.classes.items()}
        if -1 in flags.values() and minus_one == "skip":
            self.num_unsure += 1
            return None
        present = (1, -1) if minus_one == "present" else (1,)
        labels += tuple(name for name, flag in flags.items() if flag in present)
        if problem:  # its labels are kept, because a class must not get lost without a word
            return SourceImage(uri="", labels=labels, problem=problem, **start)  # type: ignore[arg-type]
        return SourceImage(
            uri=uris["image"],
            labels=labels,
            mask_uri=uris.get("mask"),
            saliency_uri=uris.get("saliency"),
            is_negative=bool(flags) and not labels and None not in flags.values(),
            **start,  # type: ignore[arg-type]
        )

    def _uris(self, texts: dict[str, str]) -> tuple[dict[str, str], str]:
        """The addresses of an image and its files, and why they cannot be used, "" if they can."""
        if not texts["image"]:
            return {}, "its row names no image"
        uris: dict[str, str] = {}
        for meaning in ("image", "mask", "saliency"):
            try:
                uris |= {meaning: resolve_path(self.folder, texts[meaning])} if texts.get(meaning) else {}
            except ValueError as error:
                return {}, f"the path of its {meaning} {error}"
        return uris, ""

    def _labels(self, cell: Cell) -> tuple[str, ...]:
        if isinstance(cell, list):
            return unique_names(cell)
        if is_list(cell):
            self.num_lists += 1
            self.first_list = self.first_list or cell[:60]
        return parse_labels(cell, self.options.label_separators)


def _with_notes(table: Location, source: Source, notes: Sequence[str]) -> Source:
    said = tuple(f"{table.name}: {note}" for note in (*notes, *source.notes))
    return Source(source.images, source.class_names, source.class_values, source.drawings, said)


# Parquet's cells


def _require_readable(name: str, kind: pa.DataType) -> None:
    """Refuses nested cells in a column that is read."""
    if name.lower() not in KNOWN:
        return
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_list_of = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    inner = kind.value_type if is_list_of else kind
    if pa.types.is_nested(inner) or pa.types.is_binary(inner) or (is_list_of and name.lower() != "labels"):
        wanted = "text, numbers or lists of these" if name.lower() == "labels" else "text"
        raise ValueError(f"column {name!r} is {kind}, expected {wanted}")


def _cell(value: Any) -> Cell:
    """A value as text, as in CSV. Lists remain lists, and separators do not split their names."""
    if isinstance(value, list | tuple):
        return [_text(item) for item in value]
    return _text(value)


def _text(value: Any) -> str:
    if value is None or value != value:  # NaN, as pandas writes an empty cell
        return ""
    return value.strip() if isinstance(value, str) else str(value)
