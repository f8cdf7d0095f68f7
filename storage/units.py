"""Units: contiguous ranges of manifest rows. Work, storage and resuming go by whole units.

They depend only on the number of images and the unit size, never on workers or blocks.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

Shard = tuple[int, int]
"""(i, n): every n-th unit, starting at the i-th."""


@dataclass(frozen=True, order=True)
class Unit:
    """Manifest rows ``start`` (inclusive) to ``stop`` (exclusive); only the last unit may be shorter.

    Attributes:
        others: the number of rows that the step does not cover, such as images of splits that are not predicted.
    """

    index: int
    start: int
    stop: int
    others: int = 0

    @property
    def name(self) -> str:
        """The unit's name in receipts and messages, such as ``"000012"``."""
        return f"{self.index:06d}"

    @property
    def num_rows(self) -> int:
        return self.stop - self.start

    @property
    def num_images(self) -> int:
        """The number of images of the step, which progress and totals count."""
        return self.num_rows - self.others


def plan_units(num_images: int, unit_size: int) -> list[Unit]:
    """All units of a manifest, in order.

    Raises:
        ValueError: ``unit_size`` < 1 or ``num_images`` < 0.
    """
    if unit_size < 1 or num_images < 0:
        raise ValueError(f"{num_images} images in units of {unit_size}: a unit has at least 1 image.")
    starts = range(0, num_images, unit_size)
    return [Unit(index, start, min(start + unit_size, num_images)) for index, start in enumerate(starts)]


def unit_of_row(row: int, num_images: int, unit_size: int) -> Unit:
    """The unit of `plan_units` that has a row of the manifest."""
    start = row - row % unit_size
    return Unit(row // unit_size, start, min(start + unit_size, num_images))


def units_with(is_wanted: Sequence[bool] | np.ndarray, unit_size: int) -> list[Unit]:
    """The units with a wanted row, in order; only wanted rows count as images.

    Args:
        is_wanted: whether each row of the manifest is wanted.
    """
    units = plan_units(len(is_wanted), unit_size)
    starts = [unit.start for unit in units]
    counts = np.add.reduceat(np.asarray(is_wanted, bool), starts, dtype=np.int64).tolist() if units else []
    return [replace(unit, others=unit.num_rows - count) for unit, count in zip(units, counts, strict=True) if count]


def parse_shard(text: str) -> Shard:
    """Read ``--shard i/n``: launch i (counted from 1) of n.

    Raises:
        ValueError: it is not ``i/n`` with 1 <= i <= n.
    """
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text.strip())
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"--shard {text!r}: expected I/N with 1 <= I <= N, e.g. 2/4.")
    return int(match[1]), int(match[2])


def units_of_shard(units: Sequence[Unit], shard: Shard) -> list[Unit]:
    """Every n-th unit, starting at the i-th; the shards 1/n to n/n together have all units."""
    number, count = shard
    return [unit for unit in units if unit.index % count == number - 1]
