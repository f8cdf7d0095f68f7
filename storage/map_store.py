"""``maps.zarr``: the maximum and the mean over the stochastic maps, and a score, for each image and mapped class.

Arrays (Zarr v3, sharded, with dimension names; ``xarray.open_zarr(uri, consolidated=False)`` opens them):

    max, mean  float16 (image, slot, y, x)  in [0, 1], NaN in empty slots; chunk = one image, shard = one unit
    score      float32 (image, slot)        expected logit, NaN in empty slots
    classes    int16   (image, slot)        class numbers 0..C-1, ascending, then -1 for empty slots

A slot is one of the image's mapped classes, so the store grows with labels and not with the class list.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.errors import Damaged
from storage.location import Location
from storage.receipts import Receipt
from storage.unit_arrays import ArraySpec, Mode, UnitArrays
from storage.units import Unit

# In the order of writing: `classes` is last, so if it is there, the others are there too.
_NAMES = ("max", "mean", "score", "classes")
LARGEST_CLASS = int(np.iinfo(np.int16).max)
_READ = ("classes", "max", "mean", "score")


@dataclass(frozen=True, repr=False)
class ImageMaps:
    """One image's maps, without empty slots (S slots; none for a skipped or unlabelled image).

    Attributes:
        classes: (S,) int16, ascending where they are read from a store.
        max, mean: (S, h, w) float16 in [0, 1]; the store's attributes give the positions of the cells.
        score: (S,) float32, the expected logit.
    """

    classes: np.ndarray
    max: np.ndarray
    mean: np.ndarray
    score: np.ndarray

    def __repr__(self) -> str:
        rows, columns = self.max.shape[-2:]
        return f"ImageMaps(classes {self.classes.tolist()}, {rows} x {columns} cells)"


@dataclass(frozen=True)
class UnitMaps:
    """The maps of a whole unit with all slots, shapes (n, slot, ...); empty slots have fill values."""

    classes: np.ndarray
    max: np.ndarray
    mean: np.ndarray
    score: np.ndarray


class MapStore:
    """The maps of a run. The driver makes it with `create`, before the fan-out; workers and readers use `open`."""

    def __init__(self, arrays: UnitArrays) -> None:
        self._arrays = arrays
        self.location = arrays.location
        self.num_images = arrays.num_images
        self.unit_size = arrays.unit_size
        self.attributes = arrays.attributes
        self.num_slots, height, width = arrays.item_shape("max")
        self.grid = (height, width)

    @classmethod
    def create(
        cls,
        location: Location,
        num_images: int,
        num_slots: int,
        grid: tuple[int, int],
        unit_size: int,
        attributes: Mapping[str, Any] | None = None,
    ) -> "MapStore":
        """Create the arrays, or verify and open existing ones.

        Args:
            num_slots: the largest number of mapped classes of an image.
            grid: (h, w) of the feature grid.
            attributes: plain data for readers, such as the class names.

        Raises:
            ValueError: the existing arrays were made for something else.
        """
        slots, maps = ("slot",), ("slot", "y", "x")
        specs = [
            ArraySpec("max", "float16", np.nan, (num_slots, *grid), maps, chunk_is_image=True),
            ArraySpec("mean", "float16", np.nan, (num_slots, *grid), maps, chunk_is_image=True),
            ArraySpec("score", "float32", np.nan, (num_slots,), slots, chunk_is_image=False),
            ArraySpec("classes", "int16", -1, (num_slots,), slots, chunk_is_image=False),
        ]
        return cls(UnitArrays.create(location, specs, num_images, unit_size, attributes or {}))

    @classmethod
    def open(cls, location: Location, mode: Mode = "r") -> "MapStore":
        """Open an existing store: ``"r"`` to read, ``"r+"`` to write units.

        Raises:
            FileNotFoundError: it does not exist.
        """
        return cls(UnitArrays.open(location, _NAMES, mode))

    def write_unit(
        self, unit: Unit, max: np.ndarray, mean: np.ndarray, score: np.ndarray, classes: np.ndarray
    ) -> dict[str, str]:
        """Write exactly one unit. Writing it again replaces it; the same arrays give the same bytes.

        Args:
            max, mean: (n, slot, h, w) floats; values in empty slots are ignored.
            score: (n, slot) floats.
            classes: (n, slot) integers, ascending, then -1.

        Returns:
            The checksums of the written objects, for the unit's receipt.

        Raises:
            ValueError: it is not one of the store's units, it has another shape, classes are out of order or beyond
                int16, or a map or score of a used slot is not finite.
        """
        is_real = _real_slots(np.asarray(classes))
        values = {
            "max": _filled(max, is_real, "float16", "max"),
            "mean": _filled(mean, is_real, "float16", "mean"),
            "score": _filled(score, is_real, "float32", "score"),
            "classes": np.asarray(classes, dtype=np.int16),
        }
        return self._arrays.write(unit, values)

    def read(self, index: int) -> ImageMaps:
        """One image's maps. They are compared only with the image's own checksums; `read_unit` also uses the receipt.

        Raises:
            IndexError: there is no such manifest row.
            Damaged: the maps have changed since they were written.
            ValueError: the image's unit is not written yet.
        """
        self._arrays.unit_of(index)
        classes, max_, mean, score = self._checked({name: self._arrays.read(name, index, index + 1) for name in _READ})
        is_real = classes[0] >= 0
        return ImageMaps(classes[0][is_real], max_[0][is_real], mean[0][is_real], score[0][is_real])

    def read_unit(self, unit: Unit) -> UnitMaps:
        """A whole unit's maps.

        Raises:
            Damaged: the maps have changed since they were written.
            ValueError: the unit is not written yet.
        """
        return UnitMaps(*self._checked(self._arrays.read_unit(unit)))

    def read_earlier(self, receipt: Receipt) -> UnitMaps:
        """The maps of an earlier receipt's rows, which were the whole unit before images were added to it.

        Raises:
            Damaged: they are not what was written then.
        """
        return UnitMaps(*self._checked(self._arrays.read_earlier(receipt)))

    def _checked(self, found: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        is_real = found["classes"] >= 0
        for name in ("max", "mean", "score"):
            if not np.isfinite(found[name][is_real]).all():
                raise Damaged.of(self.location / name, "a map or score of a class is not a number")
        return tuple(found[name] for name in _READ)


def _real_slots(classes: np.ndarray) -> np.ndarray:
    """(n, slot) bool: the used slots. Classes must be ascending, with the empty slots last."""
    is_real = classes >= 0
    are_ascending = classes[..., 1:] > classes[..., :-1]
    if (is_real[..., 1:] & ~(is_real[..., :-1] & are_ascending)).any():
        raise ValueError("classes: each image's class numbers must ascend, empty slots (-1) last.")
    if (classes > LARGEST_CLASS).any():  # the conversion to int16 would silently wrap around
        raise ValueError(f"classes: {classes.max()} given; the store can have class numbers up to {LARGEST_CLASS}.")
    return is_real


def _filled(values: np.ndarray, is_real: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """The values in the store's type, NaN in empty slots."""
    values = np.asarray(values)
    if values.shape[:2] != is_real.shape:
        raise ValueError(f"{name}: expected the shape of classes, {is_real.shape}, plus a map; given {values.shape}.")
    with np.errstate(over="ignore"):  # an overflow to infinity is refused below
        stored = values.astype(dtype)
    if not np.isfinite(stored[is_real]).all():
        raise ValueError(f"{name}: not finite in {dtype}; the classifier's features or weights are broken.")
    stored[~is_real] = np.nan
    return stored
