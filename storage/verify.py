"""Compares the stored objects of a step with the checksums in its receipts, and marks damaged units as missing.

It compares bytes and does not look at their meaning. A repair replaces receipts by marks and deletes damaged
descriptions of arrays, but no data: the step's job then computes the units again and replaces their objects.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from storage.checksums import mismatch
from storage.location import Location
from storage.receipts import Receipt, repair_mark
from storage.records import read_json
from storage.steps import Step
from storage.units import Unit

HEADERS = ".checksums.json"  # suffix of the file with the checksums of the descriptions of a group of arrays
_READERS = 16


@dataclass(frozen=True)
class Damage:
    """A damaged stored object.

    Attributes:
        place: the object.
        what: what is wrong, in a few words.
    """

    place: Location
    what: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


def verify_unit(data: Location, receipt: Receipt) -> list[Damage]:
    """The damage in the objects of a finished unit; empty if there is none.

    Args:
        data: the folder of the start that the receipt belongs to (`Step.data`).
        receipt: the receipt with its objects (`Step.receipt`); if it is of an earlier version, it has no objects, and
            nothing can be compared.
    """
    return _compare(data, receipt.objects)


def verify_headers(data: Location) -> list[Damage]:
    """The damage in the descriptions of a start's arrays (``zarr.json``), and in the record of their checksums.

    Args:
        data: the folder of the start.
    """
    found: list[Damage] = []
    for name in data.list_names():
        if name.endswith(HEADERS):
            try:
                objects = read_json(data / name, "the checksums of arrays")["objects"]
                found += _compare(data, {str(path): str(value) for path, value in objects.items()})
            except (ValueError, KeyError, AttributeError):
                found.append(Damage(data / name, "cannot be read"))
    return found


def damaged_receipts(data: Location, receipts: Mapping[int, Receipt]) -> dict[int, Damage]:
    """The unreadable receipts of a start, and the marks of repairs that stopped, by unit; their units count as missing.

    Args:
        data: the folder of the start.
        receipts: the readable receipts.
    """
    done = data / "done"
    names = [name for name in done.list_names() if name.endswith(".json") and name[:-5].isdigit()]
    return {
        unit: Damage(done / name, _fault_of_receipt(done / name, unit))
        for name in names
        if (unit := int(name[:-5])) not in receipts
    }


def repair(step: Step, units: Sequence[Unit], headers: Sequence[Damage] = ()) -> None:
    """Mark damaged units as missing, and delete damaged descriptions of arrays; the step's job does the rest.

    Args:
        units: the damaged units.
        headers: the result of `verify_headers`.

    Raises:
        ValueError: a driver works on the step.
    """
    step.require_idle()
    step.mark_for_repair(units)
    for damage in headers:
        damage.place.delete()


def _fault_of_receipt(place: Location, unit: int) -> str:
    try:
        is_mark = place.read_bytes() == repair_mark(unit)
    except (FileNotFoundError, IsADirectoryError):
        is_mark = False
    return "a repair of this unit was not finished" if is_mark else "cannot be read"


def _compare(data: Location, objects: Mapping[str, str]) -> list[Damage]:
    with ThreadPoolExecutor(min(_READERS, max(1, len(objects)))) as pool:
        found = pool.map(lambda item: _look_at(data, *item), objects.items())
        return [damage for damage in found if damage is not None]


def _look_at(data: Location, path: str, expected: str) -> Damage | None:
    place = data / path
    try:
        wrong = mismatch(place.read_bytes(), expected)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        wrong = "the file is missing"
    return Damage(place, wrong) if wrong else None
