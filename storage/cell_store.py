"""``cells.zarr``: some labelled feature cells of each image, on which the network of cells is trained.

Arrays (a cell is a position of the feature grid; its features come from several stages of the backbone):

    features  float16 (image, cell, channel)  0 in unused places; chunk = one image, shard = one unit
    label     uint8 or uint16 (image, cell)   0 background, class number + 1, the ignore value in unused places
    classes   int16 (image, slot)             the image's class numbers, ascending, then -1; none: all classes
"""

from typing import cast

import numpy as np

from storage.label_values import ignore_value, label_dtype
from storage.location import Location
from storage.receipts import Receipt
from storage.unit_arrays import ArraySpec, Mode, UnitArrays
from storage.units import Unit

_NAMES = ("features", "label", "classes")


class CellStore:
    """The cells of a run. The driver makes it with `create`, before the fan-out; workers and readers use `open`."""

    def __init__(self, arrays: UnitArrays) -> None:
        self._arrays = arrays
        self.num_cells, self.num_channels = arrays.item_shape("features")
        self.num_classes = int(cast(int, arrays.attributes["num_classes"]))

    @classmethod
    def create(
        cls,
        location: Location,
        num_images: int,
        num_classes: int,
        num_slots: int,
        shape: tuple[int, int],
        unit_size: int,
    ) -> "CellStore":
        """Create the arrays, or verify and open existing ones.

        Args:
            num_slots: the largest number of classes of an image.
            shape: (cells of an image, channels).

        Raises:
            ValueError: the existing arrays were made for something else.
        """
        dtype, ignore = str(label_dtype(num_classes)), ignore_value(num_classes)
        specs = [
            ArraySpec("features", "float16", 0, shape, ("cell", "channel"), chunk_is_image=True),
            ArraySpec("label", dtype, ignore, shape[:1], ("cell",), chunk_is_image=False),
            ArraySpec("classes", "int16", -1, (num_slots,), ("slot",), chunk_is_image=False),
        ]
        attributes = {"num_classes": num_classes, "ignore_value": ignore}
        return cls(UnitArrays.create(location, specs, num_images, unit_size, attributes))

    @classmethod
    def open(cls, location: Location, mode: Mode = "r") -> "CellStore":
        """Open an existing store: ``"r"`` to read, ``"r+"`` to write units.

        Raises:
            FileNotFoundError: it does not exist.
        """
        return cls(UnitArrays.open(location, _NAMES, mode))

    def write_unit(self, unit: Unit, features: np.ndarray, label: np.ndarray, classes: np.ndarray) -> dict[str, str]:
        """Write exactly one unit.

        Args:
            features: (n, cell, channel) floats.
            label: (n, cell) integers.
            classes: (n, slot) integers.

        Returns:
            The checksums of the written objects, for the unit's receipt.

        Raises:
            ValueError: it is not one of the store's units, it has another shape, or features are not finite in float16.
        """
        with np.errstate(over="ignore"):  # an overflow to infinity is refused below
            stored = np.asarray(features, np.float16)
        if not np.isfinite(stored).all():
            raise ValueError("cells: features are not finite in float16; the classifier's backbone is broken.")
        values = {
            "features": stored,
            "label": np.asarray(label).astype(label_dtype(self.num_classes)),
            "classes": np.asarray(classes, np.int16),
        }
        return self._arrays.write(unit, values)

    def read_unit(self, unit: Unit) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A whole unit's features, labels and classes, in the form of `write_unit`.

        Raises:
            Damaged: they have changed since they were written.
            ValueError: the unit is not written yet.
        """
        found = self._arrays.read_unit(unit)
        return found["features"], found["label"], found["classes"]

    def read_earlier(self, receipt: Receipt) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same of an earlier receipt's rows, which were the whole unit before images were added to it.

        Raises:
            Damaged: they are not what was written then.
        """
        found = self._arrays.read_earlier(receipt)
        return found["features"], found["label"], found["classes"]
