"""A step of a run: how it was started (``step.json``), a receipt per finished unit (``done/<unit>.json``).

The receipt is the only truth about completion; one that does not parse, or is another unit's, is absent.
"""

import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from storage.location import Location
from storage.manifest import Manifest
from storage.units import Unit

MOST_DIFFERENCES = 6  # named in a refusal
_READERS = 32  # markers are small: their reading is all latency


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
        skipped: the images left out; all others are done.
        seconds: time spent on the unit.
        finished: when, in seconds since 1970 (UTC).
    """

    unit: int
    start: int
    stop: int
    seconds: float
    finished: float
    skipped: tuple[Skipped, ...] = field(default=())

    @property
    def num_done(self) -> int:
        return self.stop - self.start - len(self.skipped)

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Receipt":
        """Read a receipt; keys that this version does not know are ignored.

        Raises:
            ValueError: anything but a receipt.
        """
        try:
            found = json.loads(data)
            skipped = tuple(Skipped(str(each["image_id"]), str(each["reason"])) for each in found["skipped"])
            unit, start, stop = (int(found[key]) for key in ("unit", "start", "stop"))
            return cls(unit, start, stop, float(found["seconds"]), float(found["finished"]), skipped)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a receipt: {error!r}") from error


@dataclass(frozen=True)
class Step:
    """A step's folder under a run, e.g. ``<run>/maps``. The driver opens it, workers just make it."""

    location: Location

    def open(self, fingerprint: Mapping[str, Any], command: str) -> None:
        """Start the step, or verify that it was started with the same fingerprint.

        Args:
            fingerprint: everything that changes the step's results, as plain (nested) data.
            command: the command of this launch, recorded and named in the refusal.

        Raises:
            ValueError: started with another fingerprint; the sentence names each difference and the remedy.
        """
        wanted = json.loads(json.dumps(fingerprint))  # as it will be read back: tuples become lists
        if self.fingerprint() is None:
            record = json.dumps({"fingerprint": wanted, "command": command}, indent=1, sort_keys=True)
            self._record.create_bytes(record.encode())  # where another launch was first, it is verified below
        found = self.fingerprint()
        if found != wanted:
            raise ValueError(
                f"{self.location}: was started with other settings ({differences(found or {}, wanted)}). "
                f"Use another run, or start over with '{command} --restart {self.location.name}'."
            )

    def write_receipt(self, receipt: Receipt) -> None:
        """Record a finished unit; only after all of its data is stored."""
        (self._done / f"{receipt.unit:06d}.json").write_bytes(receipt.to_json())

    def receipts(self) -> dict[int, Receipt]:
        """All receipts by unit index: one listing, bodies read concurrently."""
        names = [name for name in self._done.list_names() if name.endswith(".json") and name[:-5].isdigit()]
        with ThreadPoolExecutor(_READERS) as pool:
            found = pool.map(self._read_receipt, names)
            return {receipt.unit: receipt for receipt in found if receipt is not None}

    def missing_units(self, units: Sequence[Unit], receipts: Mapping[int, Receipt] | None = None) -> list[Unit]:
        """Those of ``units`` that have no receipt; give ``receipts`` where they are already read."""
        known = self.receipts() if receipts is None else receipts
        return [unit for unit in units if not _is_done(unit, known)]

    def fingerprint(self) -> dict[str, Any] | None:
        """What the step was started with; None when it never was."""
        try:
            return json.loads(self._record.read_bytes())["fingerprint"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self._record}: not a step's record ({type(error).__name__}). "
                f"Use another run, or --restart {self.location.name}."
            ) from error

    def restart(self) -> None:
        """Delete the step: receipts first, so that an interrupted restart leaves none without its data."""
        self._done.delete_tree()
        self.location.delete_tree()

    @property
    def _done(self) -> Location:
        return self.location / "done"

    @property
    def _record(self) -> Location:
        return self.location / "step.json"

    def _read_receipt(self, name: str) -> Receipt | None:
        try:
            receipt = Receipt.from_json((self._done / name).read_bytes())
        except (ValueError, FileNotFoundError):
            return None
        return receipt if name == f"{receipt.unit:06d}.json" else None


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Name what differs between two fingerprints: ``"maps.num_samples: 200 -> 100, ..."``."""
    flat_old, flat_new = _flatten(old), _flatten(new)
    keys = sorted(key for key in flat_old.keys() | flat_new.keys() if flat_old.get(key) != flat_new.get(key))
    named = [f"{key}: {_short(flat_old, key)} -> {_short(flat_new, key)}" for key in keys[:MOST_DIFFERENCES]]
    return ", ".join(named) + (f" and {len(keys) - len(named)} more" if len(keys) > len(named) else "")


def _short(flat: Mapping[str, Any], key: str) -> str:
    """A value for people: hashes by their first characters."""
    text = str(flat.get(key, "absent"))
    return text[:8] if re.fullmatch("[0-9a-f]{64}", text) else text


def require_complete(step: Step, units: Sequence[Unit], manifest: Manifest, asked_by: str, command: str) -> None:
    """Refuse to build on a step that is not finished.

    Args:
        units: all units of the manifest.
        asked_by: who needs it, e.g. ``"aggregate_seeds"``.
        command: what makes it, e.g. ``"python jobs/generate_maps.py --run s3://b/run1"``.

    Raises:
        ValueError: how many images are there, the first missing one, and the command.
    """
    missing = step.missing_units(units)
    if missing:
        total = sum(unit.num_images for unit in units)
        done = total - sum(unit.num_images for unit in missing)
        first = manifest.rows(missing[0].start, missing[0].start + 1)[0].image_id
        raise ValueError(
            f"{asked_by}: {step.location.name} are complete for {done:,} of {total:,} images "
            f"(first missing: {first}). Run '{command}' first."
        )


def _is_done(unit: Unit, receipts: Mapping[int, Receipt]) -> bool:
    receipt = receipts.get(unit.index)
    return receipt is not None and (receipt.start, receipt.stop) == (unit.start, unit.stop)


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {prefix: value}
    flat = {}
    for key, child in value.items():
        flat.update(_flatten(child, f"{prefix}.{key}" if prefix else key))
    return flat
