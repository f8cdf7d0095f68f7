"""Receipts: the records of finished units, with the skipped images and the checksums of the stored objects.

A receipt contains its own checksum. A damaged receipt counts as missing, so its unit is computed again.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

from storage.location import Location
from storage.records import is_seal_broken, seal
from storage.text import printable

_OBJECTS = b', "objects": {'  # the last key before the checksum; JSON strings have no unescaped quotes, so it is unique

_LATEST = 1e11  # seconds since 1970: the year 5138, which date libraries can still print


@dataclass(frozen=True)
class Skipped:
    """A skipped image, and the reason."""

    image_id: str
    reason: str


@dataclass(frozen=True)
class Receipt:
    """The record of a finished unit.

    Attributes:
        unit: the unit's index; ``start`` and ``stop`` are its manifest rows.
        skipped: the skipped images; all other images of the unit are done.
        seconds: the time spent on the unit.
        finished: when it was finished, in seconds since 1970 (UTC).
        start_id: the id of the step's start that the unit belongs to; "" in receipts of earlier versions.
        code: the version of the code that computed the unit, such as the source's hash; "" if it was not recorded.
        packages: the versions of the packages that it used, "numpy 2.4.6, torch 2.14.1"; "" if they were not recorded.
        objects: the checksums of all stored objects, by path in the start's data folder; empty in receipts of earlier
            versions, and if they were not read.
    """

    unit: int
    start: int
    stop: int
    seconds: float
    finished: float
    skipped: tuple[Skipped, ...] = field(default=())
    start_id: str = ""
    code: str = ""
    packages: str = ""
    objects: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The receipt's file name."""
        return receipt_name(self.unit)

    def to_json(self) -> bytes:
        content = {**asdict(self), "objects": dict(self.objects)}  # `objects` must be last, see `from_json`
        return seal(content)

    @classmethod
    def from_json(cls, data: bytes, *, with_objects: bool = True) -> "Receipt":
        """Read a receipt; unknown keys are ignored.

        Args:
            with_objects: read the checksums too. Without them, reading millions is faster and takes little memory.

        Raises:
            ValueError: it is not a receipt, or it is damaged.
        """
        try:
            if is_seal_broken(data):
                raise ValueError("its bytes have changed")
            if not with_objects:
                head, mark, _ = data.partition(_OBJECTS)
                data = head + b"}" if mark else data
            found = json.loads(data)
            skipped = tuple(Skipped(str(each["image_id"]), printable(str(each["reason"]))) for each in found["skipped"])
            unit, start, stop = (int(found[key]) for key in ("unit", "start", "stop"))
            times = float(found["seconds"]), float(found["finished"])
            if not all(math.isfinite(value) and abs(value) < _LATEST for value in times):
                raise ValueError("its times are impossible")
            start_id = str(found.get("start_id", ""))
            code, packages = printable(str(found.get("code", ""))), printable(str(found.get("packages", "")))
            objects = (
                {str(path): str(value) for path, value in found.get("objects", {}).items()} if with_objects else {}
            )
            return cls(unit, start, stop, *times, skipped, start_id, code, packages, objects)
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise ValueError(f"not a receipt: {error!r}") from error


def repair_mark(unit: int) -> bytes:
    """What a repair writes in place of a unit's receipt. It is no receipt, so the unit counts as missing.

    If the repair stops before the unit is computed again, the mark remains, and the next verification finds it.
    """
    return seal({"unit": unit, "skipped": [], "repair": "this unit is to be computed again"})


def receipt_name(unit: int) -> str:
    """The file name of a unit's receipt."""
    return f"{unit:06d}.json"


def read_receipt(done: Location, name: str, *, with_objects: bool = True) -> Receipt | None:
    """The receipt with this file name in the folder; None if there is none, or if it is damaged.

    Args:
        done: the folder of a start's receipts.
    """
    try:
        receipt = Receipt.from_json((done / name).read_bytes(), with_objects=with_objects)
    except (ValueError, FileNotFoundError, IsADirectoryError):
        return None
    return receipt if name == receipt.name else None


def ids_by_reason(skipped: Iterable[Skipped]) -> dict[str, list[str]]:
    """The ids of skipped images by reason, the most frequent reason first."""
    found: dict[str, list[str]] = {}
    for skip in skipped:
        found.setdefault(skip.reason, []).append(skip.image_id)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))
