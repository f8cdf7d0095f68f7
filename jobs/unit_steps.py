"""What every step made of units does: find the missing units, run them, book the receipts, say how it went."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.fanout import Payload
from cluster.live_metrics import count_images
from cluster.quarantine import LEFT_OUT
from cluster.words import plural
from jobs.progress import Progress, summary_line
from storage.heartbeat import beating
from storage.manifest import ManifestRow
from storage.steps import Receipt, Skipped, Step
from storage.units import Unit, units_of_shard

Shard = tuple[int, int]
"""(i, n): every n-th unit, from the i-th on."""


@dataclass(frozen=True)
class UnitPlan:
    """The units of one launch.

    Attributes:
        step: what they belong to.
        start_id: the id of the step's start; "" where it is not started.
        shard: this launch's share of all units.
        units: those of the shard.
        receipts: of all finished units, by index.
        missing: the units to run.
        images: how many each unit of the step has, by index.
    """

    step: Step
    start_id: str
    shard: Shard
    units: Sequence[Unit]
    receipts: Mapping[int, Receipt]
    missing: Sequence[Unit]
    images: Mapping[int, int]

    @classmethod
    def of(cls, step: Step, units: Sequence[Unit], shard: Shard = (1, 1), *, anew: bool = False) -> "UnitPlan":
        """What is left of a step; everything where it is foretold that the step begins anew."""
        receipts, chosen = {} if anew else step.receipts(), units_of_shard(units, shard)
        images = {unit.index: unit.num_images for unit in units}
        return cls(step, step.start_id(), shard, chosen, receipts, step.missing_units(chosen, receipts), images)

    @property
    def num_finished(self) -> int:
        """Images of all finished units, of this launch's share or not."""
        return sum(self.images.get(index, 0) for index in self.receipts)

    @property
    def launch(self) -> str:
        """The name of this launch's sign of life."""
        return f"{self.shard[0]}-of-{self.shard[1]}"

    @property
    def rows(self) -> list[Payload]:
        """The missing units as the fan-out takes them; stages hand these keys on to `finish_unit`."""
        return [
            {"unit": unit.index, "start": unit.start, "stop": unit.stop, "start_id": self.start_id}
            for unit in self.missing
        ]


@dataclass(frozen=True)
class Launch:
    """One launch of a step that is made of units.

    Attributes:
        fingerprint: everything that changes the step's results.
        command: of this launch, for the record and for refusals.
        units: all units of the step.
        shard: this launch's share of them.
        restart: delete what the step has and begin anew.
    """

    step: Step
    fingerprint: Mapping[str, Any]
    command: str
    units: Sequence[Unit]
    shard: Shard = (1, 1)
    restart: bool = False

    def begin(self) -> UnitPlan:
        """Starts the step, or joins it.

        Raises:
            ValueError: it was started with other settings, or is to be deleted under a driver at work.
        """
        if self.restart:
            self.step.restart()
        self.step.open(self.fingerprint, self.command)
        return UnitPlan.of(self.step, self.units, self.shard)

    def foresee(self) -> UnitPlan:
        """What `begin` would return, or raise; writes nothing."""
        self.step.check_start(self.fingerprint, self.command, restart=self.restart)
        return UnitPlan.of(self.step, self.units, self.shard, anew=self.restart)


UNIT_KEYS = ("unit", "start", "stop", "start_id")  # of a row; every stage hands them on


def unit_of(row: Payload) -> Unit:
    """The unit a payload belongs to."""
    return Unit(int(row["unit"]), int(row["start"]), int(row["stop"]))


def known_problems(row: Payload, entries: Sequence[ManifestRow]) -> dict[int, str]:
    """Why images of a unit are not even tried, by their number in it: by the manifest, or by the quarantine.

    Args:
        entries: the unit's rows of the manifest.
    """
    problems = {number: entry.problem for number, entry in enumerate(entries) if entry.problem}
    return problems | row.get(LEFT_OUT, {})


def finish_unit(step: Step, row: Payload, skipped: Sequence[Skipped], seconds: float) -> Payload:
    """Writes a unit's receipt, after all of its data, and returns it for the driver."""
    unit = unit_of(row)
    receipt = Receipt(unit.index, unit.start, unit.stop, seconds, time.time(), tuple(skipped), row["start_id"])
    step.write_receipt(receipt)
    return {"receipt": receipt.to_json()}


def book_units(name: str, plan: UnitPlan, results: Iterable[Payload], max_skipped_fraction: float) -> None:
    """Follows a launch's units to the end, with progress, and prints the last line.

    Raises:
        ValueError: more images were skipped than the configuration accepts; everything finished is kept.
    """
    tally = Tally(total=sum(unit.num_images for unit in plan.units))
    to_do = {unit.index for unit in plan.missing}
    for unit in plan.units:
        if unit.index not in to_do:
            tally.add(plan.receipts[unit.index], unit.num_images)
    of_all, images = plural(len(plan.units), "unit"), plural(tally.left, "image")
    print(f"{name}: {len(to_do):,} of {of_all} to do ({images}).", flush=True)
    progress, start = Progress(name, tally.total, tally.total - tally.left), time.monotonic()
    try:
        with beating(plan.step.location, plan.launch):
            for result in results:
                receipt = Receipt.from_json(result["receipt"])
                num_images = plan.images[receipt.unit]
                tally.add(receipt, num_images)
                count_images(name, num_images - len(receipt.skipped), len(receipt.skipped))
                progress.advance(num_images)
                tally.check(name, max_skipped_fraction)
    finally:
        progress.close()
        print(summary_line(name, tally.done, tally.skipped, tally.left, time.monotonic() - start), flush=True)


@dataclass
class Tally:
    """Images of a launch so far, those of its finished units at the start included."""

    total: int
    done: int = 0
    skipped: Counter[str] = field(default_factory=Counter)  # by reason

    @property
    def left(self) -> int:
        return self.total - self.done - self.skipped.total()

    def add(self, receipt: Receipt, num_images: int) -> None:
        self.done += num_images - len(receipt.skipped)
        self.skipped.update(skip.reason for skip in receipt.skipped)

    def check(self, name: str, max_fraction: float) -> None:
        """Raises ValueError when more than that share of all images had to be skipped."""
        if self.skipped.total() > max_fraction * self.total:
            raise ValueError(
                f"{name}: {self.skipped.total():,} of {plural(self.total, 'image')} had to be skipped (mostly: "
                f"{self.skipped.most_common(1)[0][0]}), more than images.max_skipped_fraction = {max_fraction:g}. "
                "Mend the images or the manifest, or raise the fraction."
            )
