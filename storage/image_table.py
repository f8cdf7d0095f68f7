"""A folder of images and a CSV table of their labels as a label source.

Columns ``image`` and ``labels``; optionally ``id``, ``split``, ``mask`` and ``saliency``; others are ignored.

    image,labels,split
    photos/0001.jpg,cat;potted plant,train
    s3://bucket/more/0002.jpg,,unlabelled

Labels are separated by ``;`` or ``|`` (spaces belong to names). Paths are below the folder, absolute, or
``s3://``. Without ``id`` the image's path is its id: suffix dropped, ``/`` written ``__``.
"""

import csv
import difflib
import re
from collections.abc import Iterator, Sequence
from io import TextIOWrapper

from storage.location import Location
from storage.sources import SourceImage

_REQUIRED = ("image", "labels")
_KNOWN = (*_REQUIRED, "id", "split", "mask", "saliency")


def read_image_table(table: Location, folder: Location) -> Iterator[SourceImage]:
    """Read the table row by row; a row that cannot be used is an image with a problem.

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
                    yield _to_image(columns, row, folder, reader.line_num)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{table}: line {reader.line_num}: not CSV text in UTF-8 ({error}).") from error


def _check_columns(table: Location, columns: Sequence[str]) -> None:
    for name in columns:
        near = difflib.get_close_matches(name.lower(), _KNOWN, n=1, cutoff=0.75)
        if name not in _KNOWN and near and near[0] not in columns:
            raise ValueError(f"{table}: column {name!r}: unknown. Did you mean {near[0]!r}?")
    missing = [name for name in _REQUIRED if name not in columns]
    if missing or len(set(columns)) != len(columns):
        what = f"no column {missing[0]!r}" if missing else "a column repeats"
        raise ValueError(f"{table}: {what}; the first line must name image and labels, found {list(columns)[:20]}.")


def _to_image(columns: Sequence[str], row: Sequence[str], folder: Location, line: int) -> SourceImage:
    cells = {name: cell.strip() for name, cell in zip(columns, row, strict=False)}
    path = cells.get("image", "")
    image_id = cells.get("id") or _id_of(path) or f"line {line}"
    split = cells.get("split", "")
    if len(row) != len(columns):
        problem = f"its row (line {line}) has {len(row)} fields, the first line has {len(columns)}"
        return SourceImage(image_id, uri="", split=split, problem=problem)
    if not path:
        return SourceImage(image_id, uri="", split=split, problem=f"its row (line {line}) names no image")
    try:
        uris = {name: _resolve(folder, cells[name]) for name in ("image", "mask", "saliency") if cells.get(name)}
    except ValueError:
        return SourceImage(image_id, uri="", split=split, problem="a path in its row leads out of the folder")
    labels = tuple(name for name in (part.strip() for part in re.split("[;|]", cells["labels"])) if name)
    return SourceImage(image_id, uris["image"], labels, split, uris.get("mask"), uris.get("saliency"))


def _id_of(path: str) -> str:
    relative = path.rsplit("/", 1)[-1] if path.startswith("/") or "://" in path else path.removeprefix("./")
    return re.sub(r"\.[^./]*$", "", relative).replace("/", "__")


def _resolve(folder: Location, path: str) -> str:
    if path.startswith("/") or "://" in path:
        return Location.parse(path).uri
    return (folder / path.removeprefix("./")).uri
