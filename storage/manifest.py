"""``manifest.parquet``: the frozen list of a run's images, labels and class names.

Columns: image_id, uri, labels (list<int16>, ascending class numbers 0..C-1), height, width, split, mask_uri,
saliency_uri, problem, negative, source_number. Class names and their values in source masks are in the schema's
metadata. Row groups are small, so that the rows of a unit can be read without reading a million others.

Files are read at their current addresses. An address without a leading ``/`` or a scheme is relative to the run, and
`moves` gives the new places of moved folders. Fingerprints use the addresses as they were first written. So a run and
its images can be moved, and no results become outdated. For other readers, the file itself has full addresses, and the
place of the run when it was written (`home`).

Images may be added behind the others. The file says where each addition begins, so that what was computed of the
earlier rows is still known to be theirs (`part_hashes`).
"""

import difflib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import islice, pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.column_text import joined, json_texts
from storage.label_values import translation_table
from storage.location import Location
from storage.manifest_damage import ADVICE, SEAL, require_columns_in_place, require_undamaged_footer, seal
from storage.parquet import parquet_errors

ROW_GROUP_SIZE = 1024
_GROUPS_AT_ONCE = 16  # of a walk over all rows
_READ_WHOLE = 8 << 20  # bytes: about 100,000 rows
_MOST_COMPARED = 50_000  # ids with a wrong one, to suggest a similar one: 30 microseconds each

_COLUMNS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("labels", pa.list_(pa.int16()), nullable=False),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("split", pa.string(), nullable=False),
        pa.field("mask_uri", pa.string()),
        pa.field("saliency_uri", pa.string()),
        pa.field("problem", pa.string()),
        pa.field("negative", pa.bool_(), nullable=False),
        pa.field("source_number", pa.int64()),
    ]
)
_LATER = {"negative": False, "source_number": None}  # columns that earlier versions did not write
_ADDRESSES = ("uri", "mask_uri", "saliency_uri")


@dataclass(frozen=True)
class ManifestRow:
    """One image.

    Attributes:
        labels: ascending class numbers 0..C-1; empty for an unlabelled image.
        height, width: in pixels, if the source has them.
        split: the part of the data set, such as ``"train_aug"``.
        mask_uri, saliency_uri: absolute, or relative to the run for files that belong to it.
        problem: why the image cannot be used, if this is known at preparation.
        negative: the image is known to show none of the classes. Then it has no labels and no maps, and the training
            uses it as an example without any class.
        source_number: the image's id in its source if the id is a number, as in COCO's files; exports use it again.
    """

    image_id: str
    uri: str
    labels: tuple[int, ...] = ()
    height: int | None = None
    width: int | None = None
    split: str = ""
    mask_uri: str | None = None
    saliency_uri: str | None = None
    problem: str | None = None
    negative: bool = False
    source_number: int | None = None


def write_manifest(
    location: Location,
    rows: Iterable[ManifestRow],
    class_names: Sequence[str],
    class_values: Sequence[int] | None = None,
    moves: Mapping[str, str] | None = None,
    home: Location | None = None,
    additions: Sequence[int] = (),
) -> int:
    """Write the manifest as a stream, whole or not at all; the same rows give the same bytes.

    Args:
        class_values: the value of each class in source masks; by default 1..C in order.
        moves: folder as in the rows -> its current place.
        home: the run, to which addresses may be relative; by default the manifest's folder.
        additions: the first row of each group of images that was added behind the others, ascending.

    Returns:
        The number of images.

    Raises:
        ValueError: class names or values repeat, a row's labels are not ascending class numbers, or a negative image
            has labels.
    """
    values = list(class_values) if class_values is not None else list(range(1, len(class_names) + 1))
    if len(values) != len(class_names) or len(set(class_names)) != len(class_names):
        raise ValueError(
            f"{len(values)} class values for classes {list(class_names)}: "
            "expected names that differ, and one value for each."
        )
    translation_table(values)
    metadata = {"class_names": json.dumps(list(class_names)), "class_values": json.dumps(values)}
    metadata |= {"moves": json.dumps(dict(moves))} if moves else {}
    home = home or location.parent
    metadata |= {"home": home.uri}
    metadata |= {"additions": json.dumps(list(additions))} if additions else {}
    schema = _COLUMNS.with_metadata(metadata | {SEAL: seal(metadata)})
    remaining, count = iter(rows), 0
    options: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}
    with location.open_output() as file, pq.ParquetWriter(file, schema, **options) as writer:
        while batch := list(islice(remaining, ROW_GROUP_SIZE)):
            for row in batch:
                _check_labels(row, len(class_names))
            writer.write_table(_to_table(batch, schema, home))
            count += len(batch)
    Manifest.forget()
    return count


class Manifest:
    """A written manifest. An open manifest is cached in the process; rows are read from the file when needed.

    Attributes:
        class_names: the name of class 0, 1, ...
        class_values: the value of each class in source masks (VOC: cat = 8).
        moves: folder as in the rows -> its current place.
        additions: the first row of each group of images that was added behind the others.
    """

    def __init__(self, location: Location, metadata: pq.FileMetaData) -> None:
        self.location = location
        self.num_images: int = metadata.num_rows
        self._metadata = metadata
        self._hashes: dict[Any, str] = {}  # of columns; status asks for those of all steps
        self._starts = [0]
        for group in range(metadata.num_row_groups):
            self._starts.append(self._starts[-1] + metadata.row_group(group).num_rows)
        stored = metadata.metadata or {}
        try:
            self.class_names: tuple[str, ...] = tuple(json.loads(stored[b"class_names"]))
            self.class_values: tuple[int, ...] = tuple(json.loads(stored[b"class_values"]))
            self.moves: dict[str, str] = json.loads(stored.get(b"moves", b"{}"))
            self._home = stored.get(b"home", b"").decode()
            self.additions: tuple[int, ...] = tuple(json.loads(stored.get(b"additions", b"[]")))
        except (KeyError, ValueError) as error:
            raise ValueError(f"{location}: a Parquet file, but no manifest; make one with prepare_dataset.") from error
        require_undamaged_footer(location, metadata, _COLUMNS)
        there = set(metadata.schema.to_arrow_schema().names) | _LATER.keys()
        if missing := [name for name in _COLUMNS.names if name not in there]:
            raise ValueError(
                f"{location}: not a whole manifest, it has no column {missing[0]}. Put it back from a copy, or make it "
                "again with prepare_dataset."
            )

    @staticmethod
    def open(location: Location) -> "Manifest":
        """Open ``<run>/manifest.parquet``.

        Raises:
            FileNotFoundError: there is none.
            ValueError: the file is not a manifest.
        """
        return _open(location)

    @staticmethod
    def forget() -> None:
        """Clear this process's caches of manifests; call it after a manifest was replaced."""
        _open.cache_clear()
        _read_row_group.cache_clear()

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def rows(self, start: int, stop: int) -> list[ManifestRow]:
        """Rows ``start`` to ``stop``; only their row groups are read.

        Raises:
            IndexError: the rows are outside the manifest.
        """
        if not 0 <= start <= stop <= self.num_images:
            raise IndexError(f"{self.location}: rows {start} to {stop} of {self.num_images}.")
        found: list[ManifestRow] = []
        for group, (first, end) in enumerate(zip(self._starts, self._starts[1:], strict=False)):
            if first < stop and start < end:
                table = _read_row_group(self, group)
                found += self._to_rows(table.slice(max(start - first, 0), min(stop, end) - max(start, first)))
        return found

    def iter_rows(self) -> Iterator[ManifestRow]:
        """All rows in order; some row groups are read at a time."""
        for table in self._iter_tables(None):
            yield from self._to_rows(table)

    def iter_written_rows(self) -> Iterator[ManifestRow]:
        """All rows in order, with their addresses as they were written; for writing them again."""
        for table in self._iter_tables(None):
            records = table.to_pylist()
            for record in records:
                record.update({name: self._written(record[name]) for name in _ADDRESSES})
            yield from map(_to_row, records)

    def iter_columns(self, columns: Sequence[str]) -> Iterator[dict[str, list[Any]]]:
        """The named columns in order, as lists, some row groups at a time; much cheaper than whole rows.

        Raises:
            ValueError: a column is unknown.
        """
        for table in self._iter_tables(columns):
            batch = {name: table.column(name).to_pylist() for name in columns}
            yield {name: self._resolved(values) if name in _ADDRESSES else values for name, values in batch.items()}

    def iter_image_ids(self, start: int, stop: int) -> Iterator[pa.Array]:
        """The ids of some rows in order, as Arrow's strings; no text becomes a Python object."""
        for table in self._iter_tables(["image_id"], start, stop):
            yield from table.column("image_id").chunks

    def max_labels(self) -> int:
        """The largest number of labels of an image, which is the number of slots that the maps need."""
        return max((pc.max(lengths).as_py() or 0 for lengths in self._label_counts()), default=0)

    def num_labels(self) -> int:
        """The number of labels of all images together."""
        return sum(pc.sum(lengths).as_py() or 0 for lengths in self._label_counts())

    def splits(self) -> list[str]:
        """The names of the splits that occur, in the order of their first images."""
        return list(self.split_counts())

    def verify(self) -> None:
        """Read everything, and compare it with the file's own checksums.

        Raises:
            ValueError: the file is damaged.
        """
        for _ in self._iter_tables(None):  # every page has a checksum
            pass
        require_columns_in_place(self.location, self._metadata)

    def split_counts(self) -> dict[str, int]:
        """The number of images of each split, in the order of their first images."""
        counts = Counter[str]()
        for table in self.iter_tables(["split"]):
            for each in pc.value_counts(table["split"]).to_pylist():
                counts[each["values"]] += each["counts"]
        return dict(counts)

    def index_of(self, image_id: str) -> int:
        """The first row of an image id.

        Raises:
            KeyError: no such image.
        """
        start = 0
        for batch in self.iter_columns(["image_id"]):
            if image_id in batch["image_id"]:
                return start + batch["image_id"].index(image_id)
            start += len(batch["image_id"])
        raise KeyError(f"no image {image_id!r}{self._example(image_id)}")

    def _example(self, wrong: str) -> str:
        """The end of the sentence about a wrong id: an id that starts with it, a similar id, or the first one."""
        if self.num_images <= _MOST_COMPARED:
            ids = [name for batch in self.iter_columns(["image_id"]) for name in batch["image_id"]]
            begun = [name for name in ids if name.startswith(wrong)] if wrong else []
            if near := begun or difflib.get_close_matches(wrong, ids, n=1):
                return f". Did you mean {near[0]!r}?"
        return f"; the first id is {self.rows(0, 1)[0].image_id!r}." if self.num_images else "."

    @property
    def has_counted_values(self) -> bool:
        """Whether the class values of source masks are 1, 2, ... in the order of the classes, as labels are."""
        return list(self.class_values) == list(range(1, self.num_classes + 1))

    @property
    def parts(self) -> list[tuple[int, int]]:
        """The rows (start, stop) that the manifest began with, then those of each addition."""
        bounds = [0, *self.additions, self.num_images]
        return list(pairwise(bounds))

    def part_hashes(self, columns: Sequence[str], masks_of: Collection[str] | None = None) -> list[str]:
        """`column_hash` of each part. Additions change no earlier hash, so the first is that of the first manifest."""
        return [self.column_hash(columns, start, stop, masks_of) for start, stop in self.parts]

    def column_hash(
        self,
        columns: Sequence[str],
        start: int = 0,
        stop: int | None = None,
        masks_of: Collection[str] | None = None,
    ) -> str:
        """SHA-256 of the named columns and the class list; it does not depend on the file's layout and place.

        The hash of the labels includes which images are negative. For a manifest without negative images it is the
        same as in versions that did not know negative images.

        Args:
            start, stop: only these rows; all unless given.
            masks_of: only the masks of these splits; those of all images unless given.

        Raises:
            ValueError: a column is unknown.
        """
        stop = self.num_images if stop is None else stop
        key = (frozenset(columns), start, stop, None if masks_of is None else frozenset(masks_of))
        if key not in self._hashes:
            self._hashes[key] = self._column_hash(columns, start, stop, masks_of)
        return self._hashes[key]

    def _column_hash(self, columns: Sequence[str], start: int, stop: int, masks_of: Collection[str] | None) -> str:
        hashes = {name: hashlib.sha256() for name in columns}
        others = {"negative"} if "labels" in columns else set()
        others |= {"split"} if masks_of is not None else set()
        for table in self.iter_tables([*columns, *sorted(others - {*columns})], start, stop):
            for name in columns:
                column = table[name]
                if name == "mask_uri" and masks_of is not None:
                    is_of = pc.is_in(table["split"], pa.array(sorted(masks_of), pa.string()))
                    column = pc.if_else(is_of, column, pa.scalar(None, pa.string()))
                texts = json_texts(self.as_written(column) if name in _ADDRESSES else column)
                if name == "labels":
                    texts = pc.if_else(table["negative"], "null", texts)
                hashes[name].update(joined(texts) + b", ")
        digests = {name: each.hexdigest() for name, each in hashes.items()}
        whole = [stop - start, self.class_names, self.class_values, digests]
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()

    def iter_tables(
        self, columns: Sequence[str] | None = None, start: int = 0, stop: int | None = None
    ) -> Iterator[dict[str, pa.Array]]:
        """The named columns in order as Arrow arrays, some row groups at a time: the way to scan millions of rows.

        Addresses are as in the file; `resolved` says where the files lie now.

        Args:
            start, stop: only these rows; all unless given.

        Raises:
            ValueError: an unknown column.
        """
        for table in self._iter_tables(columns, start, stop):
            yield {name: table.column(name).combine_chunks() for name in table.column_names}

    def _label_counts(self) -> Iterator[pa.Array]:
        return (pc.list_value_length(table["labels"]) for table in self.iter_tables(["labels"]))

    def _iter_tables(
        self, columns: Sequence[str] | None, start: int = 0, stop: int | None = None
    ) -> Iterator[pa.Table]:
        stop = self.num_images if stop is None else stop
        unknown = set(columns or ()) - set(_COLUMNS.names)
        if unknown:
            raise ValueError(f"manifest columns {sorted(unknown)}: expected some of {_COLUMNS.names}.")
        with _open_for_arrow(self.location) as file, parquet_errors(self.location, ADVICE):
            parquet = pq.ParquetFile(file, metadata=self._metadata, pre_buffer=True, page_checksum_verification=True)
            there = parquet.schema_arrow.names
            names = None if columns is None else [name for name in columns if name in there] or ["image_id"]
            for first in range(0, self._metadata.num_row_groups, _GROUPS_AT_ONCE):
                last = min(first + _GROUPS_AT_ONCE, self._metadata.num_row_groups)
                begin, end = self._starts[first], self._starts[last]
                if end <= start or stop <= begin:
                    continue
                table = parquet.read_row_groups(range(first, last), columns=names)
                table = table.slice(max(start - begin, 0), min(stop, end) - max(start, begin))
                yield _with_later_columns(table, tuple(_LATER) if columns is None else columns)

    def _to_rows(self, table: pa.Table) -> list[ManifestRow]:
        records = _with_later_columns(table).to_pylist()
        for name in _ADDRESSES:
            for record, address in zip(records, self._resolved([each[name] for each in records]), strict=True):
                record[name] = address
        return [_to_row(record) for record in records]

    def _resolved(self, addresses: Sequence[str | None]) -> list[Any]:
        """The current addresses of files."""
        run = self.location.parent
        return [address and resolve_address(self._written(address) or "", run, self.moves) for address in addresses]

    def resolved(self, address: str) -> str:
        """Where a file lies now, from its address in the file."""
        return self._resolved([address])[0]

    def as_written(self, addresses: pa.Array) -> pa.Array:
        """Addresses of `iter_tables` as in the rows: relative to the run, or full. They do not depend on its place."""
        prefix = f"{self._home}/"
        if not self._home:
            return addresses
        is_below = pc.starts_with(addresses, pattern=prefix)
        return pc.if_else(is_below, pc.utf8_slice_codeunits(addresses, start=len(prefix)), addresses)

    def _written(self, address: str | None) -> str | None:
        """An address as in the row: relative to the run, or full."""
        return address.removeprefix(f"{self._home}/") if address and self._home else address


def resolve_address(address: str, run: Location, moves: Mapping[str, str]) -> str:
    """The current address of a file in a manifest's row: in the run, in a moved folder, or as written."""
    if "://" not in address and not address.startswith("/"):
        return (run / address).uri
    for old, new in moves.items():
        if address.startswith(f"{old.rstrip('/')}/"):
            return new.rstrip("/") + address[len(old.rstrip("/")) :]
    return address


@contextmanager
def _open_for_arrow(location: Location) -> Iterator[Any]:
    """What pyarrow reads.

    It opens a local file itself, and gets a small file of S3 as bytes. With a file of Python, its threads need Python's
    lock, and a thread that waits for the lock while the process ends aborts the process: 3 of 211 short processes on a
    busy machine, and 0 of 221 without.
    """
    with location.open_input() as file:
        if location.is_local:
            with pa.OSFile(location.uri) as native:
                yield native
        elif file.seek(0, os.SEEK_END) <= _READ_WHOLE:
            file.seek(0)
            yield pa.BufferReader(file.read())
        else:
            file.seek(0)
            yield file


@lru_cache(maxsize=8)
def _open(location: Location) -> Manifest:
    try:
        with _open_for_arrow(location) as file, parquet_errors(location, ADVICE):
            return Manifest(location, pq.read_metadata(file))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{location}: there is no manifest here; make it with prepare_dataset.") from error


@lru_cache(maxsize=8)  # neighbouring units are in the same row group
def _read_row_group(manifest: Manifest, group: int) -> pa.Table:
    with _open_for_arrow(manifest.location) as file, parquet_errors(manifest.location, ADVICE):
        found = pq.ParquetFile(file, metadata=manifest._metadata, page_checksum_verification=True)
        return found.read_row_group(group)


def _check_labels(row: ManifestRow, num_classes: int) -> None:
    in_range = all(0 <= label < num_classes for label in row.labels)
    if not in_range or any(a >= b for a, b in zip(row.labels, row.labels[1:], strict=False)):
        raise ValueError(f"{row.image_id}: labels {row.labels} must be ascending class numbers below {num_classes}.")
    if row.negative and row.labels:
        raise ValueError(f"{row.image_id}: a negative image has no labels, given {row.labels}.")


def _to_table(rows: Sequence[ManifestRow], schema: pa.Schema, home: Location) -> pa.Table:
    columns = {field.name: [getattr(row, field.name) for row in rows] for field in fields(ManifestRow)}
    for name in _ADDRESSES:
        columns[name] = [address and resolve_address(address, home, {}) for address in columns[name]]
    return pa.table(columns, schema=schema)


def _with_later_columns(table: pa.Table, wanted: Sequence[str] = tuple(_LATER)) -> pa.Table:
    """The table, with defaults for the wanted columns that earlier versions did not write."""
    for name in set(wanted) & _LATER.keys() - set(table.column_names):
        field = _COLUMNS.field(name)
        table = table.append_column(field, pa.array([_LATER[name]] * table.num_rows, field.type))
    return table


def _to_row(record: dict[str, Any]) -> ManifestRow:
    return ManifestRow(**{**record, "labels": tuple(record["labels"])})
