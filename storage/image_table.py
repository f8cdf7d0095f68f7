"""A folder of images and a table of their labels, CSV or Parquet, as a label source.

Columns ``image`` and ``labels``; optionally ``id``, ``split``, ``mask`` and ``saliency``; others are ignored.

    image,labels,split
    photos/0001.jpg,cat;potted plant,train
    s3://bucket/more/0002.jpg,,unlabelled

Labels are separated by ``;`` or ``|`` (spaces belong to names); in Parquet they may be a list. Paths are below the
folder, absolute, or ``s3://``. Without ``id`` the image's path is its id: suffix dropped, ``/`` written ``__``.
"""

import csv
import difflib
import re
from collections.abc import Iterator, Sequence
from io import TextIOWrapper

import pyarrow as pa
import pyarrow.parquet as pq

from storage.location import Location
from storage.sources import SourceImage, id_of_path, resolve_path

_REQUIRED = ("image", "labels")
_KNOWN = (*_REQUIRED, "id", "split", "mask", "saliency")


def read_image_table(table: Location, folder: Location) -> Iterator[SourceImage]:
    """Read a CSV table row by row; a row that cannot be used is an image with a problem.

    Raises:
        ValueError: a column is missing or misspelt, or the file is no CSV text.
        FileNotFoundError: there is no such table.
    """
    with table.open_input() as file:
        reader = csv.reader(TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
        try:
            columns = [name.strip() for name in next(reader, [])]
            _check_columns(table, columns)
            for row in reader:
                if row:
                    yield _to_image(columns, row, folder, f"line {reader.line_num}")
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{table}: line {reader.line_num}: not CSV text in UTF-8 ({error}).") from error


def read_parquet_table(table: Location, folder: Location) -> Iterator[SourceImage]:
    """Read a Parquet table, a batch of rows at a time; a row that cannot be used is an image with a problem.

    Raises:
        ValueError: a column is missing, misspelt or no text, or the file is no Parquet.
        FileNotFoundError: there is no such table.
    """
    with table.open_input() as file:
        try:
            parquet = pq.ParquetFile(file)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{table}: not a Parquet file.") from error
        schema = parquet.schema_arrow
        _check_columns(table, schema.names)
        columns = [name for name in schema.names if name in _KNOWN]
        for name in columns:
            if not _is_text(schema.field(name).type) and not (name == "labels" and _is_texts(schema.field(name).type)):
                wanted = "text or lists of text" if name == "labels" else "text"
                raise ValueError(f"{table}: column {name!r} is {schema.field(name).type}, expected {wanted}.")
        number = 0
        for batch in parquet.iter_batches(columns=columns):
            for record in batch.to_pylist():
                number += 1
                yield _to_image(columns, [_cell(record[name]) for name in columns], folder, f"row {number}")


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)


def _is_texts(kind: pa.DataType) -> bool:
    return (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _is_text(kind.value_type)


def _cell(value: str | list[str | None] | None) -> str:
    return ";".join(name for name in value if name) if isinstance(value, list) else value or ""


def _check_columns(table: Location, columns: Sequence[str]) -> None:
    separator = next((sign for sign in ";\t|" if len(columns) == 1 and sign in columns[0]), None)
    if separator:
        raise ValueError(
            f"{table}: its columns are separated by {separator!r}; save it with commas, as in "
            f"'{columns[0].replace(separator, ',')}'. Only an image's labels are separated by ';' or '|'."
        )
    for name in columns:
        near = difflib.get_close_matches(name.lower(), _KNOWN, n=1, cutoff=0.75)
        if name not in _KNOWN and near and near[0] not in columns:
            raise ValueError(f"{table}: column {name!r}: unknown. Did you mean {near[0]!r}?")
    missing = [name for name in _REQUIRED if name not in columns]
    if missing or len(set(columns)) != len(columns):
        what = f"no column {missing[0]!r}" if missing else "a column repeats"
        raise ValueError(f"{table}: {what}; it must name image and labels, found {list(columns)[:20]}.")


def _to_image(columns: Sequence[str], row: Sequence[str], folder: Location, place: str) -> SourceImage:
    cells = {name: cell.strip() for name, cell in zip(columns, row, strict=False)}
    path = cells.get("image", "")
    image_id = cells.get("id") or id_of_path(path) or place
    split = cells.get("split", "")
    if len(row) != len(columns):
        problem = f"its row ({place}) has {len(row)} fields, the first line has {len(columns)}"
        return SourceImage(image_id, uri="", split=split, problem=problem)
    if not path:
        return SourceImage(image_id, uri="", split=split, problem=f"its row ({place}) names no image")
    uris: dict[str, str] = {}
    for name in ("image", "mask", "saliency"):
        try:
            uris |= {name: resolve_path(folder, cells[name])} if cells.get(name) else {}
        except ValueError:
            problem = f"the path of its {name} leads out of the folder; write it absolute"
            return SourceImage(image_id, uri="", split=split, problem=problem)
    labels = tuple(name for name in (part.strip() for part in re.split("[;|]", cells["labels"])) if name)
    return SourceImage(image_id, uris["image"], labels, split, uris.get("mask"), uris.get("saliency"))
