"""Comparing what a start of a step stored with the checksums that its receipts have, and forgetting what is damaged.

Reads bytes and compares them; what they mean is not looked at. Repairing deletes receipts (and damaged descriptions
of arrays), never data: the step's job then computes the units again and replaces their objects.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from storage.checksums import mismatch
from storage.location import Location
from storage.receipts import Receipt
from storage.records import read_json
from storage.steps import Step
from storage.units import Unit

HEADERS = ".checksums.json"  # ends the name of the file with the checksums of a group of arrays' descriptions
_READERS = 16


@dataclass(frozen=True)
class Damage:
    """One stored object that is not what was written.

    Attributes:
        place: of the object.
        what: is wrong, in a few words.
    """

    place: Location
    what: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


def verify_unit(data: Location, receipt: Receipt) -> list[Damage]:
    """What is wrong with the objects of a finished unit; empty where nothing is.

    Args:
        data: the folder of the start that the receipt belongs to (`Step.data`).
        receipt: with its objects (`Step.receipt`); one of an earlier version has none, so nothing can be compared.
    """
    return _compare(data, receipt.objects)


def verify_headers(data: Location) -> list[Damage]:
    """What is wrong with the descriptions of a start's arrays (``zarr.json``), and with the record of their checksums.

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
    """The receipts of a start that cannot be read, by unit; their units count as missing.

    Args:
        data: the folder of the start.
        receipts: those that can be read.
    """
    done = data / "done"
    names = [name for name in done.list_names() if name.endswith(".json") and name[:-5].isdigit()]
    return {int(name[:-5]): Damage(done / name, "cannot be read") for name in names if int(name[:-5]) not in receipts}


def repair(step: Step, units: Sequence[Unit], headers: Sequence[Damage] = ()) -> None:
    """Make damaged units count as missing, and delete damaged descriptions of arrays; the step's job does the rest.

    Args:
        units: those with damage.
        headers: what `verify_headers` found.

    Raises:
        ValueError: a driver is at work on the step.
    """
    step.require_idle()
    step.forget_units(units)
    for damage in headers:
        damage.place.delete()


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
