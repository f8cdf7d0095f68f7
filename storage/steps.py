"""A step of a run: how it was started (``step.json``), where the results of each start are, which units are finished.

Each start begins the step without any results. The results of the first start are in the step's folder itself. After a
restart, the results and receipts are in its subfolder ``start-<id>/``. So if a driver or worker was suspended and did
not notice a restart, it continues to write into the folder of its own start, and nobody mistakes its results for those
of the new start. Only receipts show which units are finished.
"""

import contextlib
import json
import re
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from storage.errors import NotYet, StorageError
from storage.heartbeat import STALE_AFTER, Heartbeat, heartbeats, living_launches
from storage.location import Location
from storage.manifest import Manifest
from storage.receipts import Receipt, Skipped, ids_by_reason, read_receipt, receipt_name, repair_mark
from storage.records import parse_json, seal
from storage.units import Unit

__all__ = ["Receipt", "Skipped", "Step", "differences", "ids_by_reason", "require_complete"]

ADDED = "added"  # of a fingerprint: a hash for each group of images that was added to the manifest, see `fingerprints`
UNRECORDED = {"seeds.maps": "maps"}  # the values of keys that fingerprints leave out if they have their default
MOST_DIFFERENCES = 6  # printed in a refusal
MOST_DRIVERS = 3  # named in a refusal
_READERS = 32  # receipts are small, so reading them is nearly all latency
_LATER_START = re.compile(r"([1-9][0-9]*)-[0-9a-f]{8}")  # the id of a start after a restart: its number, random digits
_SHARED_NAMES = {"step.json", "drivers"}  # all starts share these


@dataclass(frozen=True)
class Step:
    """A step's folder in a run, such as ``<run>/maps``. The driver calls `open`; workers only construct it."""

    location: Location

    # Starts

    def open(self, fingerprint: Mapping[str, Any], command: str, *, restart: bool = False, images: str = "") -> str:
        """Start the step, verify that it was started with the same fingerprint, or start it again.

        If images were added to the manifest since, the record is written again with them. The data of earlier starts
        is deleted unless a living launch works on it. Heartbeats of dead launches are deleted too.

        Args:
            fingerprint: everything that changes the step's results, as plain (nested) data.
            command: the command of this launch; it is recorded, and a refusal prints it.
            restart: start the step again without its results.
            images: the id of the manifest's images (`image_identity.images_id`), which readers compare.

        Returns:
            The id of the step's start, for `data` and for receipts.

        Raises:
            ValueError: the step was started with another fingerprint; the message names each difference and says what
                to do. Or another launch works on the step during a restart.
        """
        record = {"command": command, "fingerprint": fingerprint, "images": images}
        if restart and (number := self._last_start()):
            self.require_idle()
            start_id = f"{number + 1}-{uuid4().hex[:8]}"
            self._record.write_bytes(seal({**record, "start_id": start_id}, indent=1))
        elif not self.is_started_with(fingerprint, command):
            self._record.create_bytes(seal({**record, "start_id": uuid4().hex}, indent=1))
        elif num_added(fingerprint) > num_added(self.fingerprint() or {}):
            self._record.write_bytes(seal({**record, "start_id": self.start_id()}, indent=1))
        self.is_started_with(fingerprint, command)  # if another launch was faster, verify its record
        start_id = self.start_id()
        self._delete_starts_before(start_id, {beat.start_id for beat in living_launches(self.location)})
        return start_id

    def check_start(self, fingerprint: Mapping[str, Any], command: str, *, restart: bool) -> None:
        """Make all checks of `open`, but write nothing.

        Raises:
            ValueError: as in `open`.
        """
        if restart:
            self.require_idle()
        else:
            self.is_started_with(fingerprint, command)

    def is_started_with(self, fingerprint: Mapping[str, Any], command: str) -> bool:
        """Whether the step was started with this fingerprint, or before images were added; False if it never was.

        Writes nothing.

        Raises:
            ValueError: as in `open`.
        """
        wanted = json.loads(json.dumps(fingerprint))  # as in the stored record, where tuples are lists
        found = self.fingerprint()
        if found is not None and found != _before_additions(wanted, num_added(found)):
            alive = [beat for beat in heartbeats(self.location) if not beat.is_stale]
            first = f"Stop {_drivers(alive)} first and then start" if alive else "Start"
            raise ValueError(
                f"{self.location}: was started with other settings ({differences(found, wanted)}). "
                f"{first} over with '{command} --restart {self.location.name}', which deletes this step's results. To "
                "keep them, first copy the run's folder, or use another run."
            )
        return found is not None

    def fingerprint(self) -> dict[str, Any] | None:
        """The fingerprint with which the step was started; None if it never was.

        Raises:
            ValueError: ``step.json`` is not a step's record.
        """
        return None if (record := self._read_record()) is None else record["fingerprint"]

    def start_id(self) -> str:
        """The id of the step's current start; "" if it never was started, or was started by an earlier version."""
        return "" if (record := self._read_record()) is None else str(record.get("start_id", ""))

    def data(self, start_id: str | None = None) -> Location:
        """The folder of a start's results.

        Args:
            start_id: the id of the start that the caller writes or reads. Give it if it is known: a worker that uses
                the current start during a restart would mix two starts.
        """
        start_id = self.start_id() if start_id is None else start_id
        return self.location / f"start-{start_id}" if _LATER_START.fullmatch(start_id) else self.location

    def require_images(self, *images: str) -> None:
        """Refuse to read the step's results with a manifest that has other images than those they were made for.

        Args:
            images: `image_identity.images_ids` of this manifest: the last is its own, the others are those that it had
                before images were added.

        Raises:
            ValueError: the step has none of these ids.
        """
        record = self._read_record()
        recorded = str(record.get("images", "")) if record else ""
        if recorded and recorded not in images:
            raise ValueError(
                f"{self.location}: was made for other images or classes (id {recorded[:8]}) than those in the manifest "
                f"now (id {images[-1][:8]}), so its results would be given to wrong images. Put the old "
                f"manifest.parquet back, use another run, or start again with --restart {self.location.name}."
            )

    def require_here(self) -> None:
        """Refuse to work on a node that does not see the step's folder.

        Raises:
            StorageError: there is no ``step.json``, although every driver first writes one.
        """
        if self.location.is_local and not self._record.exists():
            raise StorageError(
                f"{self.location}: not on node {socket.gethostname()}, although the job's driver has made it: the path "
                "is on the driver's own disk. Use an s3:// run, or a folder that all nodes mount."
            )

    def require_idle(self, reason: str = "") -> None:
        """Refuse to start again while another launch works on the step.

        Args:
            reason: why another step must not be started again meanwhile, such as ``", which reads the seeds"``.

        Raises:
            ValueError: a launch works on it; the message says which ones, and how long to wait if they were killed.
        """
        alive = [beat for beat in heartbeats(self.location, may_write=True) if not beat.is_stale]
        if alive:
            is_running = f"is running this step{reason}. Stop it first, or wait until it ends. If it was killed"
            are_running = f"are running this step{reason}. Stop them first, or wait until they end. If they were killed"
            raise ValueError(
                f"{self.location}: {_drivers(alive)} {is_running if len(alive) == 1 else are_running}, wait "
                f"{STALE_AFTER:.0f} s."
            )

    def require_record(self, command: str) -> None:
        """Refuse results of a start without the ``step.json`` that says how the step was started.

        Args:
            command: the command that starts the step again.

        Raises:
            ValueError: there are results, but no ``step.json``.
        """
        if self.has_lost_record():
            raise ValueError(
                f"{self._record}: missing, so nobody can say how the results beside it were made. Put the file back "
                f"from a copy, or compute the step again: '{command}'."
            )

    def has_lost_record(self) -> bool:
        """Whether there are results, but no ``step.json``."""
        names = {name for name in self.location.list_names() if not name.endswith(".partial")}
        return bool(names - _SHARED_NAMES) and not self._record.exists()

    # Units

    def write_receipt(self, receipt: Receipt) -> None:
        """Record a finished unit; call it only after all its data is stored.

        Raises:
            ValueError: the step was started again after the unit was begun.
        """
        if receipt.start_id:
            self.require_current(receipt.start_id)
        (self._done(receipt.start_id or self.start_id()) / receipt.name).write_bytes(receipt.to_json())

    def require_current(self, start_id: str) -> None:
        """Refuse to go on with an earlier start of the step.

        Raises:
            ValueError: the step was started again since.
        """
        if start_id != self.start_id():
            raise ValueError(
                f"{self.location}: another launch restarted this step while this launch was running, so the results of "
                "this launch are not used. To continue, run the command again with the settings of the other launch."
            )

    def receipts(self, *, with_objects: bool = False) -> dict[int, Receipt]:
        """All receipts of the current start, by unit index; it lists once and reads the files concurrently.

        Args:
            with_objects: read the checksums of the stored objects too; they take much memory.
        """
        start_id = self.start_id()
        done, counted = self._done(start_id), _counted(start_id)
        names = [name for name in done.list_names() if name.endswith(".json") and name[:-5].isdigit()]
        slices = [names[start::_READERS] for start in range(_READERS)]
        with ThreadPoolExecutor(_READERS) as pool:
            read = pool.map(lambda some: [read_receipt(done, name, with_objects=with_objects) for name in some], slices)
            found = [receipt for some in read for receipt in some if receipt and receipt.start_id in counted]
        return {receipt.unit: receipt for receipt in sorted(found, key=lambda each: each.unit)}

    def receipt(self, unit: Unit, start_id: str | None = None) -> Receipt | None:
        """One unit's receipt, with the checksums of its stored objects; None if the unit is not finished.

        Args:
            start_id: as in `data`.
        """
        start_id = self.start_id() if start_id is None else start_id
        receipt = read_receipt(self._done(start_id), receipt_name(unit.index))
        return receipt if receipt and receipt.start_id in _counted(start_id) and _is_of(receipt, unit) else None

    def earlier_receipt(self, unit: Unit, start_id: str) -> Receipt | None:
        """The receipt of a unit that ended earlier when it was finished, because images were added since; else None.

        Args:
            start_id: as in `data`.
        """
        receipt = read_receipt(self._done(start_id), receipt_name(unit.index))
        is_counted = receipt is not None and receipt.start_id in _counted(start_id)
        return receipt if receipt and is_counted and _is_earlier(receipt, unit) else None

    def forget_units(self, units: Sequence[Unit]) -> None:
        """Delete the receipts of units, so that they count as missing. Their data remains until it is overwritten."""
        done = self._done(self.start_id())
        for unit in units:
            (done / receipt_name(unit.index)).delete()

    def mark_for_repair(self, units: Sequence[Unit]) -> None:
        """Replace the receipts of damaged units by marks, so that they count as missing until they are computed again.

        Unlike a deleted receipt, a mark shows that the unit was finished once.
        """
        done = self._done(self.start_id())
        for unit in units:
            (done / receipt_name(unit.index)).write_bytes(repair_mark(unit.index))

    def missing_units(self, units: Sequence[Unit], receipts: Mapping[int, Receipt] | None = None) -> list[Unit]:
        """The ``units`` without a receipt; give ``receipts`` if they are already read."""
        known = self.receipts() if receipts is None else receipts
        return [unit for unit in units if (receipt := known.get(unit.index)) is None or not _is_of(receipt, unit)]

    def receipts_of(self, units: Sequence[Unit]) -> list[Receipt]:
        """The receipts of these units, also of those that were finished before images were added to them."""
        known = self.receipts()
        found = [(unit, known[unit.index]) for unit in units if unit.index in known]
        return [receipt for unit, receipt in found if _is_of(receipt, unit) or _is_earlier(receipt, unit)]

    @property
    def _record(self) -> Location:
        return self.location / "step.json"

    def _done(self, start_id: str) -> Location:
        return self.data(start_id) / "done"

    def _read_record(self) -> dict[str, Any] | None:
        try:
            data = self._record.read_bytes()
        except FileNotFoundError:
            return None
        remedy = f"Use another run, or start again with --restart {self.location.name}."
        record = parse_json(data, self._record, "a step's record", remedy)
        if not isinstance(record.get("fingerprint"), dict):
            raise ValueError(f"{self._record}: damaged, cannot be read as a step's record (no fingerprint). {remedy}")
        return record

    def _last_start(self) -> int:
        """The number of the latest start with any data; 0 if there is none."""
        names = set(self.location.list_names()) - {"drivers"}
        with contextlib.suppress(ValueError):  # if the record is damaged, the folders show which numbers are taken
            names.add(f"start-{self.start_id()}")
        numbers = [_number(name.removeprefix("start-")) for name in names if name != "start-"]
        return max(numbers, default=0)

    def _delete_starts_before(self, start_id: str, in_use: set[str]) -> None:
        """Delete the data of earlier starts, except those on which living launches work."""
        if _number(start_id) == 1:
            return
        is_first_in_use = any(_number(used) == 1 for used in in_use)
        for name in self.location.list_names():
            number = _number(name.removeprefix("start-"))
            is_in_use = is_first_in_use if number == 1 else name.removeprefix("start-") in in_use
            is_shared = name in _SHARED_NAMES or name.endswith(".partial")
            if number < _number(start_id) and not is_in_use and not is_shared:
                (self.location / name).delete_tree()
                if (self.location / name).exists():
                    (self.location / name).delete()


def _driver(beat: Heartbeat) -> str:
    """A launch, for people."""
    return f"a driver on {beat.host} (process {beat.pid}, last heartbeat {max(0.0, beat.age):.0f} s ago)"


def _drivers(beats: Sequence[Heartbeat]) -> str:
    """Launches, for people: the first ones by name, and how many more there are."""
    named = [_driver(beat) for beat in beats[:MOST_DRIVERS]]
    return " and ".join([*named, *([f"{len(beats) - len(named)} more"] if len(beats) > len(named) else [])])


def _number(start_id: str) -> int:
    """The number of a start (1, 2, ...), from its id or from the name of its folder without ``start-``."""
    match = _LATER_START.fullmatch(start_id)
    return int(match[1]) if match else 1


def _counted(start_id: str) -> set[str]:
    """The start ids of receipts that count for a start: its own id, and the empty id of earlier versions."""
    return {start_id} if _LATER_START.fullmatch(start_id) else {"", start_id}


def _is_of(receipt: Receipt, unit: Unit) -> bool:
    return (receipt.start, receipt.stop) == (unit.start, unit.stop)


def _is_earlier(receipt: Receipt, unit: Unit) -> bool:
    """Whether the unit was finished before images were added to it."""
    return receipt.start == unit.start and receipt.stop < unit.stop


def num_added(fingerprint: Mapping[str, Any]) -> int:
    """How many lists of images had been added to the manifest."""
    return len(fingerprint.get(ADDED, ()))


def _before_additions(fingerprint: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The fingerprint as it was when only so many lists of images had been added."""
    rest = {key: value for key, value in fingerprint.items() if key != ADDED}
    return rest | ({ADDED: fingerprint.get(ADDED, [])[:number]} if number else {})


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The differences between two fingerprints in words: ``"maps.num_samples: 200 -> 100, ..."``.

    A fingerprint has only the ids of upstream steps, so for these it says ``"its maps changed since"``.
    Of the manifest it has only hashes.
    """
    parts = [[each.get("manifest"), *each.get(ADDED, ())] for each in (old, new)]
    has_other_rows = any(one != other for one, other in zip(*parts, strict=False))
    flat_old, flat_new = _flatten(_in_words(old)), _flatten(_in_words(new))
    keys = sorted(key for key in flat_old.keys() | flat_new.keys() if flat_old.get(key) != flat_new.get(key))
    named = [
        f"its {key.removeprefix('upstream.')} changed since"
        if key.startswith("upstream.")
        else f"{key}: {_short(flat_old, key)} -> {_short(flat_new, key)}"
        for key in keys[:MOST_DIFFERENCES]
    ]
    if has_other_rows:
        named.insert(0, "images, labels, splits, saliency maps or masks in the manifest were changed since")
    return ", ".join(named) + (f" and {len(keys) - MOST_DIFFERENCES} more" if len(keys) > MOST_DIFFERENCES else "")


def _in_words(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """A fingerprint for people: without hashes of the manifest, but with how often images were added."""
    rest = {key: value for key, value in fingerprint.items() if key not in ("manifest", ADDED)}
    return rest | ({"lists of added images": num_added(fingerprint)} if ADDED in fingerprint else {})


def _short(flat: Mapping[str, Any], key: str) -> str:
    """A value for people; only the first characters of hashes, such as those of networks."""
    text = str(flat.get(key, UNRECORDED.get(key, "absent")))
    return text[:8] if re.fullmatch("[0-9a-f]{64}", text) else text


def require_complete(
    step: Step,
    units: Sequence[Unit],
    manifest: Manifest,
    asked_by: str,
    command: str,
    receipts: Mapping[int, Receipt] | None = None,
) -> None:
    """Refuse to use a step that is not finished.

    Args:
        units: all units of the manifest.
        asked_by: the job that needs it, such as ``"aggregate_seeds"``.
        command: the command that completes it, such as ``"python jobs/generate_maps.py --run s3://b/run1"``.
        receipts: the step's receipts, if they are already read.

    Raises:
        NotYet: it is incomplete; the message has the number of images, the first missing one, and the command.
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


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {prefix: value}
    flat = {}
    for key, child in value.items():
        flat.update(_flatten(child, f"{prefix}.{key}" if prefix else key))
    return flat
