"""Zarr arrays for maps and seeds. Their first axis is the manifest, and each shard is a unit.

Zarr silently loses data if two writes share a shard. So each write here is exactly one unit, and one unit is one shard.
Chunks that equal the fill value are stored too, so a missing shard always means a missing unit. Whole units are encoded
and decoded by `shards`; zarr reads single images. Each chunk has a CRC-32C in its shard. Each shard has a checksum in
its unit's receipt, which is beside the group in ``done/``.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import zarr
from zarr.errors import ContainsArrayError, ContainsGroupError

from storage.checksums import checksum, mismatch
from storage.errors import Damaged
from storage.location import Location
from storage.receipts import Receipt, read_receipt, receipt_name
from storage.records import seal
from storage.s3 import storage_errors
from storage.shards import CHUNK_CODECS, decode_chunk, decode_shard, encode_chunk, encode_shard
from storage.strict_store import ShardMissing, StrictStore
from storage.units import Unit

Mode = Literal["r", "r+"]


@dataclass(frozen=True)
class ArraySpec:
    """One array: ``(num_images, *item_shape)``.

    Attributes:
        dimensions: the names of the axes after ``image``.
        chunk_is_image: each shard has one chunk per image; otherwise (for small items) one chunk per unit.
    """

    name: str
    dtype: str
    fill: float
    item_shape: tuple[int, ...]
    dimensions: tuple[str, ...]
    chunk_is_image: bool


class _Refused(ValueError):  # noqa: N818
    """An error of this module itself, as opposed to errors of zarr about damaged bytes."""


class UnitArrays:
    """An open group of arrays over the same manifest. Make it with `create` or `open`.

    Attributes:
        attributes: the group's attributes as plain data.
    """

    def __init__(self, location: Location, group: zarr.Group, names: Sequence[str]) -> None:
        self.location = location
        self.attributes = dict(group.attrs)
        if not {"num_images", "unit_size"} <= self.attributes.keys():
            if header_record(location).exists():
                raise Damaged.of(location / "zarr.json", "its attributes are missing")
            raise _Refused(f"{location}: this zarr group was not made by this project; choose another run.")
        self.num_images = int(cast(int, self.attributes["num_images"]))
        self.unit_size = int(cast(int, self.attributes["unit_size"]))
        self._arrays = {name: cast(zarr.Array, group[name]) for name in names}

    @classmethod
    def create(
        cls,
        location: Location,
        specs: Sequence[ArraySpec],
        num_images: int,
        unit_size: int,
        attributes: Mapping[str, Any],
    ) -> "UnitArrays":
        """Create the group and its arrays if they are missing, verify existing ones, and open them for writing.

        Arrays of fewer images grow: the caller knows that these are the first ones of the manifest.

        Raises:
            ValueError: existing arrays have another shape, type, unit size or attributes, or more images.
        """
        wanted = json.loads(json.dumps({"num_images": num_images, "unit_size": unit_size, **attributes}))
        with storage_errors(location.uri), _damage_named(location):
            group = _join_group(location, wanted)
            for spec in specs:
                _join_array(location, group, spec, num_images, unit_size)
        record_headers(location, [spec.name for spec in specs])
        return cls.open(location, [spec.name for spec in specs], "r+")

    @classmethod
    def open(cls, location: Location, names: Sequence[str], mode: Mode = "r") -> "UnitArrays":
        """Open existing arrays by their names, without listing the group.

        Raises:
            FileNotFoundError: they do not exist.
            Damaged: they cannot be opened.
        """
        with storage_errors(location.uri), _damage_named(location):
            store = StrictStore(location.zarr_store(read_only=mode == "r"))
            try:
                return cls(location, zarr.open_group(store=store, mode=mode), names)
            except (FileNotFoundError, KeyError) as error:
                if header_record(location).exists():
                    raise Damaged.of(location, "the description of an array is missing") from error
                raise FileNotFoundError(
                    f"{location}: there are no arrays here. Either the step was not started yet, or another launch has "
                    "started it again (--restart); then run this command again when that launch is finished, a "
                    "pipeline with --redo-outdated."
                ) from error

    def item_shape(self, name: str) -> tuple[int, ...]:
        """The shape of one image's part of an array, such as (slot, y, x)."""
        return tuple(self._arrays[name].shape[1:])

    def unit_of(self, index: int) -> Unit:
        """The unit of an image.

        Raises:
            IndexError: there is no such manifest row.
        """
        if not 0 <= index < self.num_images:
            raise IndexError(f"{self.location}: image {index} of {self.num_images}.")
        start = index - index % self.unit_size
        return Unit(index // self.unit_size, start, min(start + self.unit_size, self.num_images))

    def write(self, unit: Unit, values: Mapping[str, np.ndarray]) -> dict[str, str]:
        """Write one whole unit of every array, in their order.

        Returns:
            The checksums of the written objects for the unit's receipt, by path relative to the folder of the group.

        Raises:
            ValueError: it is not one of this store's units, an array is missing or has another shape or type, or the
                store was opened to read.
        """
        self._check_unit(unit)
        if values.keys() != self._arrays.keys():
            raise ValueError(f"{self.location}: a unit is {sorted(self._arrays)}, given {sorted(values)}.")
        for name, value in values.items():
            wanted, dtype = (unit.num_rows, *self.item_shape(name)), self._arrays[name].dtype
            if value.shape != wanted or value.dtype != dtype:
                raise ValueError(
                    f"{self.location}: {name} of unit {unit.name} must be {dtype} {wanted}, "
                    f"given {value.dtype} {value.shape}; only whole units are written."
                )
        written = {}
        for name, value in values.items():
            key = self._key(name, unit)
            data = self._encode(name, value)
            (self.location / key).write_bytes(data)
            written[f"{self.location.name}/{key}"] = checksum(data)
        return written

    def _encode(self, name: str, values: np.ndarray) -> bytes:
        array = self._arrays[name]
        if array.read_only:
            raise ValueError(f"{self.location}: opened to read, so nothing can be written.")
        if array.shards:
            return encode_shard(values, self.unit_size)
        return encode_chunk(values, self.unit_size, cast(float, array.fill_value))

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop`` of one array; each image is compared with its own checksum.

        Raises:
            Damaged: the data has changed since it was written.
            ValueError: the unit of these rows is not written yet.
        """
        with storage_errors(self.location.uri), _damage_named(self.location / name):
            try:
                return np.asarray(self._arrays[name][start:stop])
            except ShardMissing as error:
                raise self._missing(name, self.unit_of(start)) from error

    def read_unit(self, unit: Unit) -> dict[str, np.ndarray]:
        """A whole unit of every array; the objects are compared with the checksums in the unit's receipt.

        If the unit has no receipt, or a receipt of an earlier version, only the images' own checksums are compared.

        Raises:
            Damaged: the data has changed since it was written.
            ValueError: the unit is not written yet, or is not one of this store's.
        """
        self._check_unit(unit)
        receipt = self._receipt(unit)
        if receipt is None or not receipt.objects:
            return {name: self.read(name, unit.start, unit.stop) for name in self._arrays}
        return self._read_as_receipt_says({name: self._key(name, unit) for name in self._arrays}, receipt)

    def _read_as_receipt_says(self, keys: Mapping[str, str], receipt: Receipt) -> dict[str, np.ndarray]:
        """A receipt's rows of the arrays, out of objects that are compared with its checksums."""
        found = {}
        for name, key in keys.items():
            data = self._checked_bytes(key, receipt)
            array = self._arrays[name]
            decode = decode_shard if array.shards else decode_chunk
            shape = (receipt.stop - receipt.start, *self.item_shape(name))
            with _damage_named(self.location / key):
                found[name] = decode(data, self.unit_size, shape, array.dtype)
        return found

    def read_earlier(self, receipt: Receipt) -> dict[str, np.ndarray]:
        """The rows of every array that an earlier receipt of a unit names, before images were added to the unit.

        Raises:
            Damaged: they are not what was written then; for example, the unit has been written again since.
        """
        unit = self.unit_of(receipt.start)
        keys = {name: self._key(name, unit) for name in self._arrays}
        return self._read_as_receipt_says(keys, receipt)

    def _checked_bytes(self, key: str, receipt: Receipt) -> bytes:
        """The bytes of an object of a finished unit, after comparison with its checksum."""
        place = self.location / key
        try:
            data = place.read_bytes()
        except FileNotFoundError as error:
            raise Damaged.of(place, "the file is missing") from error
        wrong = mismatch(data, receipt.objects.get(f"{self.location.name}/{key}", "no checksum"))
        if wrong:
            raise Damaged.of(place, wrong)
        return data

    def _missing(self, name: str, unit: Unit) -> ValueError:
        """The error for a unit without a shard in an array: it was never written, or it was deleted."""
        if self._receipt(unit) is not None:
            return Damaged.of(self.location / self._key(name, unit), "the file is missing")
        return _Refused(
            f"{self.location}: unit {unit.name} (images {unit.start} to {unit.stop - 1}) is not written yet. "
            f"Run the job that makes {self.location.name} again; it computes the missing units."
        )

    def _receipt(self, unit: Unit) -> Receipt | None:
        """The unit's receipt, from beside the group, in the folder of the same start of the step."""
        receipt = read_receipt(self.location.parent / "done", receipt_name(unit.index))
        return receipt if receipt and (receipt.start, receipt.stop) == (unit.start, unit.stop) else None

    def _key(self, name: str, unit: Unit) -> str:
        """The key of the object that stores a unit of an array: ``<name>/c/<unit>/0...`` in Zarr v3."""
        return "/".join([name, "c", str(unit.index), *("0" for _ in self.item_shape(name))])

    def _check_unit(self, unit: Unit) -> None:
        owner = self.unit_of(unit.start) if 0 <= unit.start < self.num_images else None
        if owner is None or (unit.index, unit.start, unit.stop) != (owner.index, owner.start, owner.stop):
            raise ValueError(
                f"{self.location}: {unit} is not a unit of {self.num_images} images in units of {self.unit_size}. "
                "Only whole units are written, because writes that share a shard would be lost."
            )


def header_record(location: Location) -> Location:
    """The file with the checksums of a group's own metadata; it is beside the group."""
    return location.parent / f"{location.name}.checksums.json"


def record_headers(location: Location, names: Sequence[str]) -> None:
    """Record the checksums of the metadata of a group and its arrays, if they are not recorded yet."""
    place = header_record(location)
    if not place.exists():
        keys = [f"{location.name}/{key}" for key in ("zarr.json", *(f"{name}/zarr.json" for name in names))]
        place.create_bytes(seal({"objects": {key: checksum((location.parent / key).read_bytes()) for key in keys}}))


@contextmanager
def _damage_named(place: Location) -> Iterator[None]:
    """Turns the errors of zarr and its codecs about damaged bytes into `Damaged`."""
    try:
        yield
    except (OSError, Damaged, _Refused):
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, OverflowError) as error:
        reason = str(error).split("\n")[0].split(". Stored: ")[0]  # a codec adds the checksums as raw bytes
        raise Damaged.of(place, reason.rstrip(".")[:200] or type(error).__name__) from error


def _join_group(location: Location, wanted: dict[str, Any]) -> zarr.Group:
    store = location.zarr_store()
    try:
        return zarr.create_group(store=store, attributes=wanted)
    except ContainsGroupError:
        group = zarr.open_group(store=store, mode="r+")
    found = dict(group.attrs)
    if found == wanted:
        return group
    if _is_earlier(found, wanted):
        header_record(location).delete()  # written again at the end, of what is there then
        for name in group.array_keys():
            array = cast(zarr.Array, group[name])
            array.resize((wanted["num_images"], *array.shape[1:]))
        group.attrs["num_images"] = wanted["num_images"]  # last: an interrupted growth begins again
    else:
        keys = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
        raise _Refused(_differs(location, ", ".join(f"{key} {found.get(key)} -> {wanted.get(key)}" for key in keys)))
    return group


def _is_earlier(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether the attributes are those of a group of fewer images."""
    number = found.get("num_images")
    return isinstance(number, int) and number < wanted["num_images"] and {**wanted, "num_images": number} == found


def _join_array(location: Location, group: zarr.Group, spec: ArraySpec, num_images: int, unit_size: int) -> None:
    shape = (num_images, *spec.item_shape)
    shard = (unit_size, *spec.item_shape)
    try:
        group.create_array(
            spec.name,
            shape=shape,
            dtype=spec.dtype,
            chunks=(1, *spec.item_shape) if spec.chunk_is_image else shard,
            shards=shard if spec.chunk_is_image else None,
            compressors=CHUNK_CODECS,
            fill_value=spec.fill,
            dimension_names=("image", *spec.dimensions),
        )
    except ContainsArrayError:
        array = cast(zarr.Array, group[spec.name])
        found = (array.shape, str(array.dtype), (array.shards or array.chunks)[0])
        if found != (shape, str(np.dtype(spec.dtype)), unit_size):
            raise _Refused(_differs(location, f"{spec.name} {found[0]} {found[1]} -> {shape} {spec.dtype}")) from None


def _differs(location: Location, what: str) -> str:
    return (
        f"{location}: the existing arrays were made for something else ({what}). "
        f"Use another run, or --restart {location.uri.rsplit('/', 2)[-2]}."
    )
