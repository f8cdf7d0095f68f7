"""``seeds.zarr``: one label map per image at map resolution.

Array: ``label`` (image, y, x): 0 background, class number + 1, `ignore_value` for unknown cells. Chunk = one image,
shard = one unit.
"""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from storage.label_values import ignore_value, label_dtype
from storage.location import Location
from storage.unit_arrays import ArraySpec, Mode, UnitArrays
from storage.units import Unit


class SeedStore:
    """The seeds of a run. The driver makes it with `create`, before the fan-out; workers and readers use `open`."""

    def __init__(self, arrays: UnitArrays) -> None:
        self._arrays = arrays
        self.location = arrays.location
        self.num_images = arrays.num_images
        self.unit_size = arrays.unit_size
        self.attributes = arrays.attributes
        height, width = arrays.item_shape("label")
        self.grid = (height, width)
        self.num_classes = int(cast(int, arrays.attributes["num_classes"]))

    @classmethod
    def create(
        cls,
        location: Location,
        num_images: int,
        num_classes: int,
        grid: tuple[int, int],
        unit_size: int,
        attributes: Mapping[str, Any] | None = None,
    ) -> "SeedStore":
        """Create the array, or verify and open an existing one.

        Raises:
            ValueError: the existing array was made for something else.
        """
        dtype, fill = str(label_dtype(num_classes)), ignore_value(num_classes)
        specs = [ArraySpec("label", dtype, fill, grid, ("y", "x"), chunk_is_image=True)]
        wanted = {"num_classes": num_classes, "ignore_value": fill, **(attributes or {})}
        return cls(UnitArrays.create(location, specs, num_images, unit_size, wanted))

    @classmethod
    def open(cls, location: Location, mode: Mode = "r") -> "SeedStore":
        """Open an existing store: ``"r"`` to read, ``"r+"`` to write units.

        Raises:
            FileNotFoundError: it does not exist.
        """
        return cls(UnitArrays.open(location, ["label"], mode))

    def write_unit(self, unit: Unit, label: np.ndarray) -> dict[str, str]:
        """Write exactly one unit's (n, h, w) integer labels.

        Returns:
            The checksums of the written objects, for the unit's receipt.

        Raises:
            ValueError: it is not one of the store's units, it has another shape, or a label is not a class.
        """
        label = np.asarray(label)
        is_valid = ((label >= 0) & (label <= self.num_classes)) | (label == ignore_value(self.num_classes))
        if not is_valid.all():
            raise ValueError(
                f"label {label[~is_valid][0]}: expected 0 (background) to {self.num_classes}, "
                f"or {ignore_value(self.num_classes)} (ignore)."
            )
        return self._arrays.write(unit, {"label": label.astype(label_dtype(self.num_classes))})

    def read(self, index: int) -> np.ndarray:
        """One image's (h, w) labels; they are compared only with the image's own checksum.

        Raises:
            IndexError: there is no such manifest row.
            Damaged: the labels have changed since they were written.
            ValueError: the image's unit is not written yet.
        """
        self._arrays.unit_of(index)
        return self._arrays.read("label", index, index + 1)[0]

    def read_unit(self, unit: Unit) -> np.ndarray:
        """A whole unit's (n, h, w) labels.

        Raises:
            Damaged: the labels have changed since they were written.
            ValueError: the unit is not written yet.
        """
        return self._arrays.read_unit(unit)["label"]
