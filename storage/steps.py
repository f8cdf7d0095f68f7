"""A step of a run: how it was started (``step.json``), a receipt per finished unit (``done/<unit>.json``).

The receipt is the only truth about completion; one that does not parse, is another unit's, or was left by a driver
that did not notice the step's restart, is absent.
"""

import json
import re
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import uuid4

from storage.errors import NotYet, StorageError
from storage.heartbeat import STALE_AFTER, heartbeats
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
        skipped: the images left out; all others of the step are done.
        seconds: time spent on the unit.
        finished: when, in seconds since 1970 (UTC).
        start_id: the id of the step's start that the unit belongs to; "" in receipts of earlier versions.
    """

    unit: int
    start: int
    stop: int
    seconds: float
    finished: float
    skipped: tuple[Skipped, ...] = field(default=())
    start_id: str = ""

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
            times = float(found["seconds"]), float(found["finished"])
            return cls(unit, start, stop, *times, skipped, str(found.get("start_id", "")))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"not a receipt: {error!r}") from error


@dataclass(frozen=True)
class Step:
    """A step's folder under a run, e.g. ``<run>/maps``. The driver opens it, workers just make it."""

    location: Location

    def open(self, fingerprint: Mapping[str, Any], command: str) -> str:
        """Start the step, or verify that it was started with the same fingerprint.

        Args:
            fingerprint: everything that changes the step's results, as plain (nested) data.
            command: the command of this launch, recorded and named in the refusal.

        Returns:
            The id of the step's start, for its receipts.

        Raises:
            ValueError: started with another fingerprint; the sentence names each difference and the remedy.
        """
        if not self.is_started_with(fingerprint, command):
            content = {"fingerprint": fingerprint, "command": command, "start_id": uuid4().hex}
            self._record.create_bytes(json.dumps(content, indent=1, sort_keys=True).encode())
            self.is_started_with(fingerprint, command)  # where another launch was first, it is verified
        return self.start_id()

    def is_started_with(self, fingerprint: Mapping[str, Any], command: str) -> bool:
        """Whether the step was started, with this fingerprint; False when it never was. Writes nothing.

        Raises:
            ValueError: as `open`.
        """
        wanted = json.loads(json.dumps(fingerprint))  # as it is read back: tuples become lists
        found = self.fingerprint()
        if found is not None and found != wanted:
            raise ValueError(
                f"{self.location}: was started with other settings ({differences(found, wanted)}). "
                f"Use another run, or start over with '{command} --restart {self.location.name}'."
            )
        return found is not None

    def require_here(self) -> None:
        """Refuse to work on a node that does not see the step's folder.

        Raises:
            StorageError: there is no ``step.json``, though every driver makes one first.
        """
        if self.location.is_local and not self._record.exists():
            raise StorageError(
                f"{self.location}: not on node {socket.gethostname()}, though the job's driver has made it: the path "
                "is on the driver's own disk. Use an s3:// run, or a folder that all nodes mount."
            )

    def write_receipt(self, receipt: Receipt) -> None:
        """Record a finished unit; only after all of its data is stored.

        Raises:
            ValueError: the step was started anew since the unit was begun.
        """
        if receipt.start_id and receipt.start_id != self.start_id():
            raise ValueError(
                f"{self.location}: was started anew by another launch while this one was at work. "
                f"Nothing of this one counts; run its command again if the new settings are yours."
            )
        (self._done / f"{receipt.unit:06d}.json").write_bytes(receipt.to_json())

    def receipts(self) -> dict[int, Receipt]:
        """All receipts by unit index: one listing, bodies read concurrently."""
        names = [name for name in self._done.list_names() if name.endswith(".json") and name[:-5].isdigit()]
        counted = {"", self.start_id()}
        with ThreadPoolExecutor(_READERS) as pool:
            found = pool.map(self._read_receipt, names)
            return {receipt.unit: receipt for receipt in found if receipt is not None and receipt.start_id in counted}

    def forget_units(self, units: Sequence[Unit]) -> None:
        """Delete the receipts of units, so that they count as missing; their data stays until it is written again."""
        for unit in units:
            (self._done / f"{unit.name}.json").delete()

    def missing_units(self, units: Sequence[Unit], receipts: Mapping[int, Receipt] | None = None) -> list[Unit]:
        """Those of ``units`` that have no receipt; give ``receipts`` where they are already read."""
        known = self.receipts() if receipts is None else receipts
        return [unit for unit in units if not _is_done(unit, known)]

    def fingerprint(self) -> dict[str, Any] | None:
        """What the step was started with; None when it never was.

        Raises:
            ValueError: ``step.json`` is not a step's record.
        """
        return None if (record := self._read_record()) is None else record["fingerprint"]

    def start_id(self) -> str:
        """The id of the step's start; "" when it never was, or by an earlier version."""
        return "" if (record := self._read_record()) is None else str(record.get("start_id", ""))

    def restart(self) -> None:
        """Delete the step: receipts first, so that an interrupted restart leaves none without its data.

        Raises:
            ValueError: another driver is at work on it.
        """
        self.require_idle()
        self._done.delete_tree()
        self.location.delete_tree()

    def check_start(self, fingerprint: Mapping[str, Any], command: str, *, restart: bool) -> None:
        """All checks of `restart` and `open`; writes nothing.

        Raises:
            ValueError: as theirs.
        """
        if restart:
            self.require_idle()
        else:
            self.is_started_with(fingerprint, command)

    def require_idle(self) -> None:
        """Refuse to delete what a living driver still writes to.

        Raises:
            ValueError: whose sign of life there is, and how long to wait if it was killed.
        """
        now = time.time()
        for beat in heartbeats(self.location):
            if not beat.is_stale(now):
                raise ValueError(
                    f"{self.location}: a driver on {beat.host} (process {beat.pid}) is at work here, last seen "
                    f"{beat.age(now):.0f} s ago. Stop it first; if it was killed, wait {STALE_AFTER:.0f} s."
                )

    @property
    def _done(self) -> Location:
        return self.location / "done"

    @property
    def _record(self) -> Location:
        return self.location / "step.json"

    def _read_record(self) -> dict[str, Any] | None:
        try:
            record = json.loads(self._record.read_bytes())
            if not isinstance(record["fingerprint"], dict):
                raise TypeError("no fingerprint")
            return record
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{self._record}: not a step's record ({type(error).__name__}). "
                f"Use another run, or --restart {self.location.name}."
            ) from error

    def _read_receipt(self, name: str) -> Receipt | None:
        try:
            receipt = Receipt.from_json((self._done / name).read_bytes())
        except (ValueError, FileNotFoundError):
            return None
        return receipt if name == f"{receipt.unit:06d}.json" else None


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Name what differs between two fingerprints: ``"maps.num_samples: 200 -> 100, ..."``.

    Of upstream steps, which a fingerprint names by their ids, it says that they changed: ``"its maps changed since"``.
    """
    flat_old, flat_new = _flatten(old), _flatten(new)
    keys = sorted(key for key in flat_old.keys() | flat_new.keys() if flat_old.get(key) != flat_new.get(key))
    named = [
        f"its {key.removeprefix('upstream.')} changed since"
        if key.startswith("upstream.")
        else f"{key}: {_short(flat_old, key)} -> {_short(flat_new, key)}"
        for key in keys[:MOST_DIFFERENCES]
    ]
    return ", ".join(named) + (f" and {len(keys) - len(named)} more" if len(keys) > len(named) else "")


def _short(flat: Mapping[str, Any], key: str) -> str:
    """A value for people: hashes, of networks for example, by their first characters."""
    text = str(flat.get(key, "absent"))
    return text[:8] if re.fullmatch("[0-9a-f]{64}", text) else text


def ids_by_reason(skipped: Iterable[Skipped]) -> dict[str, list[str]]:
    """Ids of images by the reason why they were skipped, the most frequent first."""
    found: dict[str, list[str]] = {}
    for skip in skipped:
        found.setdefault(skip.reason, []).append(skip.image_id)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def require_complete(
    step: Step,
    units: Sequence[Unit],
    manifest: Manifest,
    asked_by: str,
    command: str,
    receipts: Mapping[int, Receipt] | None = None,
) -> None:
    """Refuse to build on a step that is not finished.

    Args:
        units: all units of the manifest.
        asked_by: who needs it, e.g. ``"aggregate_seeds"``.
        command: what makes it, e.g. ``"python jobs/generate_maps.py --run s3://b/run1"``.
        receipts: of the step, where they are already read.

    Raises:
        NotYet: how many images are there, the first missing one, and the command.
    """
    missing = step.missing_units(units, receipts)
    if missing:
        total = sum(unit.num_images for unit in units)
        done = total - sum(unit.num_images for unit in missing)
        first = manifest.rows(missing[0].start, missing[0].start + 1)[0].image_id
        raise NotYet(
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
