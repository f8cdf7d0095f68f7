"""Hugging Face's ``datasets`` as a label source: Parquet shards and folders of ``save_to_disk``.

The pictures are bytes inside these files. They are written into the run, so that the steps can read files as usual.
Labels are class numbers with names in the schema (`ClassLabel`), lists of such numbers, or text.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.image_paths import id_of_path, resolve_path
from storage.label_cells import parse_labels, unique_names
from storage.location import Location
from storage.names import safe_name
from storage.parquet import parquet_errors
from storage.sources import Source, SourceImage
from storage.table_columns import NAMES
from storage.tree import files_below, is_image_name, words

IMAGES = "images"  # the folder in the run
_BATCH = 100  # rows in memory at the same time
_SUFFIXES = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"GIF8": ".gif", b"RIFF": ".webp", b"BM": ".bmp"}

Write = Callable[[str, bytes], None]


@dataclass(frozen=True)
class _Shard:
    """One file of a split."""

    split: str
    place: Location


def is_hugging_face_table(place: Location) -> bool:
    """Whether a Parquet file contains pictures, or the schema that ``datasets`` writes.

    Raises:
        ValueError: it is not a Parquet file. FileNotFoundError: it does not exist.
    """
    with place.open_input() as file, parquet_errors(place):
        schema = pq.read_schema(file)
    return b"huggingface" in (schema.metadata or {}) or _image_column(schema) is not None


def read_hugging_face(
    place: Location,
    write: Write,
    splits: Sequence[str] = (),
    columns: dict[str, str] | None = None,
) -> Source:
    """Read a Parquet file, a folder of Parquet shards, or a folder that ``save_to_disk`` wrote.

    Args:
        write: writes a picture's bytes to a path relative to the run; called once for each picture.
        splits: the splits to read; empty: all. The names of files and folders give the splits.
        columns: "image" and "labels" -> the names of the columns; needed if it is not clear which columns are meant.

    Raises:
        ValueError: there are no such files, no column of pictures, or no labels.
    """
    shards = _shards(place)
    unknown = [split for split in splits if split not in {shard.split for shard in shards}]
    if unknown:
        known = words(sorted({shard.split for shard in shards}))
        raise ValueError(f"--split {unknown[0]}: no such split in {place}; there are {known}.")
    images: list[SourceImage] = []
    names: list[str] | None = None
    given = columns or {}
    for shard in (shard for shard in shards if not splits or shard.split in splits):
        schema, batches = _open(shard.place)
        image_column, label_column = _columns(shard.place, schema, given)
        names = _class_names(schema, label_column) or names
        for batch in batches:
            for record in batch.select([image_column, label_column]).to_pylist():
                number = len(images)
                labels = _labels(record[label_column], names)
                images.append(_image(shard, number, record[image_column], labels, write))
    if not images:
        raise ValueError(f"{place}: it has no rows. Give a data set with rows.")
    note = f"pictures of {place.name} are written into the run, in {IMAGES}/."
    return Source(tuple(images), tuple(names) if names else None, notes=(note,))


def _image(shard: _Shard, number: int, value: Any, labels: tuple[str, ...], write: Write) -> SourceImage:
    """One row's picture: bytes are written into the run; if there is only a path, the file is read there."""
    path = value if isinstance(value, str) else (value or {}).get("path") or ""
    data = None if isinstance(value, str) else (value or {}).get("bytes")
    name = path.rsplit("/", 1)[-1] or f"{number:06d}"
    if data is None:
        if not path:
            return SourceImage(name, "", labels, shard.split, problem="its row has no image")
        try:
            return SourceImage(id_of_path(path), resolve_path(shard.place.parent, path), labels, shard.split)
        except ValueError as error:
            return SourceImage(name, "", labels, shard.split, problem=f"the path of its image {error}")
    suffix = next((suffix for start, suffix in _SUFFIXES.items() if data.startswith(start)), ".img")
    stem = re.sub(r"\.[^.]*$", "", name) if is_image_name(name) else name
    # with a number, because only the last part of the path is kept, and it may repeat
    below = f"{IMAGES}/{safe_name(shard.split) if shard.split else 'all'}/{number:06d}-{safe_name(stem)[:100]}{suffix}"
    write(below, data)
    return SourceImage(stem if path else f"{shard.split or 'image'}_{number:06d}", below, labels, shard.split)


def _labels(value: Any, names: list[str] | None) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return parse_labels(value)
    values = value if isinstance(value, list) else [value]
    numbered = [names[each] if names and isinstance(each, int) and 0 <= each < len(names) else each for each in values]
    if names and any(isinstance(each, int) and each >= 0 for each in numbered):
        raise ValueError(f"label {max(values)}: the schema names {len(names)} classes, numbered from 0.")
    return unique_names([str(each) for each in numbered if each is not None and each != -1])  # -1: no label known


# Files


def _shards(place: Location) -> list[_Shard]:
    if place.name.endswith(".parquet"):
        return [_Shard(_split_of(place.name), place)]
    paths = [path for path in files_below(place) if path.endswith((".parquet", ".arrow"))]
    shards = [
        _Shard(_split_of(path), place / path) for path in paths if not path.rsplit("/", 1)[-1].startswith("cache-")
    ]
    if not shards:
        raise ValueError(
            f"{place}: no .parquet and no .arrow files. Give the folder of a data set of Hugging Face, or a folder "
            "that save_to_disk wrote."
        )
    return shards


def _split_of(path: str) -> str:
    """The split in a path such as ``data/train-00000-of-00002.parquet`` or ``default/train/0000.parquet``."""
    *folders, name = path.split("/")
    named = re.fullmatch(r"(.+?)-\d{5}-of-\d{5}\.\w+", name)
    split = named[1] if named else re.sub(r"\.\w+$", "", name)
    if split == "data" or split.isdigit():
        return folders[-1] if folders else ""
    return split


def _open(place: Location) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    data = pa.BufferReader(place.read_bytes())
    with parquet_errors(place):
        if place.name.endswith(".arrow"):
            table = pa.ipc.open_stream(data).read_all()
            return table.schema, iter(table.to_batches(max_chunksize=_BATCH))
        parquet = pq.ParquetFile(data)
    return parquet.schema_arrow, _batches(place, parquet)


def _batches(place: Location, parquet: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    with parquet_errors(place):
        yield from parquet.iter_batches(batch_size=_BATCH)


# Columns


def _columns(place: Location, schema: pa.Schema, given: dict[str, str]) -> tuple[str, str]:
    for meaning, name in given.items():
        if meaning in ("image", "labels") and name not in schema.names:
            raise ValueError(f"{place}: no column {name!r}; there are {words(schema.names)}.")
    image = given.get("image") or _image_column(schema)
    labels = given.get("labels") or _label_column(schema)
    if image is None or labels is None:
        flag = "--image-column" if image is None else "--label-column"
        what = "pictures" if image is None else "labels"
        raise ValueError(
            f"{place}: which column has the {what}? There are {words(schema.names)}. Give its name: {flag} NAME."
        )
    return image, labels


def _image_column(schema: pa.Schema) -> str | None:
    """The column of pictures (bytes and a path), if there is only one."""
    found = [field.name for field in schema if _is_picture(field.type)]
    return found[0] if len(found) == 1 else None


def _is_picture(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and {"bytes", "path"} <= {kind.field(n).name for n in range(kind.num_fields)}


def _label_column(schema: pa.Schema) -> str | None:
    """The column with a name such as label, else the only column of type `ClassLabel`."""
    named = [name for name in NAMES["labels"] if name in schema.names]
    classes = [name for name in schema.names if _class_names(schema, name)]
    return named[0] if named else classes[0] if len(classes) == 1 else None


def _class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """The class names of a column, which ``datasets`` keeps in the schema; None if it is not a `ClassLabel`."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        feature = features[column]
        while isinstance(feature, list) or "feature" in feature:  # a list of labels
            feature = feature[0] if isinstance(feature, list) else feature["feature"]
        return list(feature["names"])
    except (KeyError, IndexError, TypeError, ValueError):
        return None
