"""Receipts: the record that a finished unit leaves, with the images it skipped and the checksum of all it stored.

A receipt is sealed with a checksum of its own. One that is damaged counts as absent: its unit is computed again.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

from storage.location import Location
from storage.records import is_seal_broken, seal
from storage.text import printable

_OBJECTS = b', "objects": {'  # in a sealed receipt the last key but the seal; no JSON string holds an unescaped quote

_LATEST = 1e11  # seconds since 1970: the year 5138, which every date library can still print


@dataclass(frozen=True)
class Skipped:
    """An image left out of a unit, and why."""

    image_id: str
    reason: str


@dataclass(frozen=True)
class Receipt:
    """What a finished unit leaves.

    Attributes:
        unit: the unit's index; ``start`` and ``stop`` its manifest rows.
        skipped: the images left out; all others of the step are done.
        seconds: time spent on the unit.
        finished: when, in seconds since 1970 (UTC).
        start_id: the id of the step's start that the unit belongs to; "" in receipts of earlier versions.
        code: which code computed the unit, e.g. the source's hash; "" where it was not recorded.
        packages: the versions of the packages that it used, "numpy 2.4.6, torch 2.14.1"; "" where not recorded.
        objects: checksums of everything the unit stored, by path below the start's data folder; empty in receipts of
            earlier versions, and where they were read without.
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
        content = {**asdict(self), "objects": dict(self.objects)}  # `objects` last, see `from_json`
        return seal(content)

    @classmethod
    def from_json(cls, data: bytes, *, with_objects: bool = True) -> "Receipt":
        """Read a receipt; keys that this version does not know are ignored.

        Args:
            with_objects: also the checksums. Without them reading millions is faster and takes little memory.

        Raises:
            ValueError: anything but a receipt, or a damaged one.
        """
        try:
            if is_seal_broken(data):
                raise ValueError("its bytes are not those that were written")
            if not with_objects:
                head, mark, _ = data.partition(_OBJECTS)
                data = head + b"}" if mark else data
            found = json.loads(data)
            skipped = tuple(
                Skipped(str(each["image_id"]), printable(str(each["reason"]))) for each in found["skipped"]
            )
            unit, start, stop = (int(found[key]) for key in ("unit", "start", "stop"))
            times = float(found["seconds"]), float(found["finished"])
            if not all(math.isfinite(value) and abs(value) < _LATEST for value in times):
                raise ValueError("its times are no times")
            start_id = str(found.get("start_id", ""))
            code, packages = printable(str(found.get("code", ""))), printable(str(found.get("packages", "")))
            objects = (
                {str(path): str(value) for path, value in found.get("objects", {}).items()} if with_objects else {}
            )
            return cls(unit, start, stop, *times, skipped, start_id, code, packages, objects)
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise ValueError(f"not a receipt: {error!r}") from error


def receipt_name(unit: int) -> str:
    """The file name of a unit's receipt."""
    return f"{unit:06d}.json"


def read_receipt(done: Location, name: str, *, with_objects: bool = True) -> Receipt | None:
    """The receipt of that file name in the folder; None where there is none, or one that does not count.

    Args:
        done: the folder of a start's receipts.
    """
    try:
        receipt = Receipt.from_json((done / name).read_bytes(), with_objects=with_objects)
    except (ValueError, FileNotFoundError, IsADirectoryError):
        return None
    return receipt if name == receipt.name else None


def ids_by_reason(skipped: Iterable[Skipped]) -> dict[str, list[str]]:
    """Ids of images by the reason why they were skipped, the most frequent first."""
    found: dict[str, list[str]] = {}
    for skip in skipped:
        found.setdefault(skip.reason, []).append(skip.image_id)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))
