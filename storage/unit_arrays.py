"""Zarr arrays whose first axis is the manifest and whose shards are units: the ground of maps and seeds.

Zarr loses writes that share a shard, silently; so one write here is exactly one unit, and one unit is one
shard. Chunks equal to the fill value are stored too, so that an array without a unit's shard lacks that unit.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import zarr
from zarr.codecs import ZstdCodec
from zarr.errors import ContainsArrayError, ContainsGroupError

from storage.location import Location
from storage.s3 import storage_errors
from storage.units import Unit

Mode = Literal["r", "r+"]


@dataclass(frozen=True)
class ArraySpec:
    """One array: ``(num_images, *item_shape)``.

    Attributes:
        dimensions: names of the axes after ``image``.
        chunk_is_image: one chunk per image inside a shard per unit; else (small items) one chunk per unit.
    """

    name: str
    dtype: str
    fill: float
    item_shape: tuple[int, ...]
    dimensions: tuple[str, ...]
    chunk_is_image: bool


class UnitArrays:
    """An open group of arrays over the same manifest. Make it with `create` or `open`.

    Attributes:
        attributes: the group's attributes as plain data.
    """

    def __init__(self, location: Location, group: zarr.Group, names: Sequence[str]) -> None:
        self.location = location
        self.attributes = dict(group.attrs)
        if not {"num_images", "unit_size"} <= self.attributes.keys():
            raise ValueError(f"{location}: this zarr group was not made by this project; choose another run.")
        self.num_images = int(cast(int, self.attributes["num_images"]))
        self.unit_size = int(cast(int, self.attributes["unit_size"]))
        arrays = {name: cast(zarr.Array, group[name]) for name in names}
        self._arrays = {name: array.with_config({"write_empty_chunks": True}) for name, array in arrays.items()}

    @classmethod
    def create(
        cls,
        location: Location,
        specs: Sequence[ArraySpec],
        num_images: int,
        unit_size: int,
        attributes: Mapping[str, Any],
    ) -> "UnitArrays":
        """Create what is missing of the group and its arrays, verify what is there, and open it for writing.

        Raises:
            ValueError: something is there with another shape, type, unit size or attributes.
        """
        wanted = json.loads(json.dumps({"num_images": num_images, "unit_size": unit_size, **attributes}))
        with storage_errors(location.uri):
            group = _join_group(location, wanted)
            for spec in specs:
                _join_array(location, group, spec, num_images, unit_size)
        return cls.open(location, [spec.name for spec in specs], "r+")

    @classmethod
    def open(cls, location: Location, names: Sequence[str], mode: Mode = "r") -> "UnitArrays":
        """Open existing arrays, by name rather than by a listing.

        Raises:
            FileNotFoundError: there are none.
        """
        with storage_errors(location.uri):
            store = location.zarr_store(read_only=mode == "r")
            try:
                return cls(location, zarr.open_group(store=store, mode=mode), names)
            except (FileNotFoundError, KeyError) as error:
                raise FileNotFoundError(f"{location}: there are no arrays here yet.") from error

    def item_shape(self, name: str) -> tuple[int, ...]:
        """One image's part of an array, e.g. (slot, y, x)."""
        return tuple(self._arrays[name].shape[1:])

    def unit_of(self, index: int) -> Unit:
        """The unit that owns an image.

        Raises:
            IndexError: no such manifest row.
        """
        if not 0 <= index < self.num_images:
            raise IndexError(f"{self.location}: image {index} of {self.num_images}.")
        start = index - index % self.unit_size
        return Unit(index // self.unit_size, start, min(start + self.unit_size, self.num_images))

    def write(self, unit: Unit, values: Mapping[str, np.ndarray]) -> None:
        """Write one whole unit: every array, in their order.

        Raises:
            ValueError: not one of this store's units, or an array missing, misshapen or of another type.
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
        with storage_errors(self.location.uri):
            for name, value in values.items():
                self._arrays[name][unit.start : unit.stop] = value
                _sync_to_disk(self._shard(name, unit))

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop`` of one array."""
        with storage_errors(self.location.uri):
            return np.asarray(self._arrays[name][start:stop])

    def require_written(self, name: str, unit: Unit) -> None:
        """Refuse to read fill values in place of a shard that was never written.

        Raises:
            ValueError: the unit has no shard in this array.
        """
        if not self._shard(name, unit).exists():
            raise ValueError(
                f"{self.location}: unit {unit.name} (images {unit.start} to {unit.stop - 1}) is not written. "
                f"Run the job that makes {self.location.name} again; it computes what is missing."
            )

    def _shard(self, name: str, unit: Unit) -> Location:
        """The one object that holds a unit of an array: ``<name>/c/<unit>/0...`` by Zarr v3's naming."""
        return self.location / "/".join([name, "c", str(unit.index), *("0" for _ in self.item_shape(name))])

    def _check_unit(self, unit: Unit) -> None:
        if not 0 <= unit.start < self.num_images or unit != self.unit_of(unit.start):
            raise ValueError(
                f"{self.location}: {unit} is not one of {self.num_images} images by {self.unit_size}; "
                "writes that share a shard would be lost."
            )


def _join_group(location: Location, wanted: dict[str, Any]) -> zarr.Group:
    store = location.zarr_store()
    try:
        return zarr.create_group(store=store, attributes=wanted)
    except ContainsGroupError:
        group = zarr.open_group(store=store, mode="r+")
    found = dict(group.attrs)
    if found != wanted:
        keys = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
        raise ValueError(_differs(location, ", ".join(f"{key} {found.get(key)} -> {wanted.get(key)}" for key in keys)))
    return group


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
            compressors=ZstdCodec(level=1),
            fill_value=spec.fill,
            dimension_names=("image", *spec.dimensions),
        )
    except ContainsArrayError:
        array = cast(zarr.Array, group[spec.name])
        found = (array.shape, str(array.dtype), (array.shards or array.chunks)[0])
        if found != (shape, str(np.dtype(spec.dtype)), unit_size):
            raise ValueError(_differs(location, f"{spec.name} {found[0]} {found[1]} -> {shape} {spec.dtype}")) from None


def _sync_to_disk(shard: Location) -> None:
    """Zarr renames into place without fsync; a marker must not outlive a power cut that its data does not."""
    if shard.is_local:
        with open(shard.uri, "rb") as file:
            os.fsync(file.fileno())


def _differs(location: Location, what: str) -> str:
    return (
        f"{location}: the arrays there were made for something else ({what}). "
        f"Use another run, or --restart {location.uri.rsplit('/', 2)[-2]}."
    )
