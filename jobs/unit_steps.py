"""What every step made of units does: find the missing units, run them, book the receipts, say how it went."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cluster.fanout import Payload
from jobs.progress import Progress, summary_line
from storage.steps import Receipt, Skipped, Step
from storage.units import Unit


@dataclass(frozen=True)
class UnitPlan:
    """The units of one launch.

    Attributes:
        units: those of this launch's shard.
        receipts: of all finished units, by index.
        missing: the units to run.
    """

    units: Sequence[Unit]
    receipts: Mapping[int, Receipt]
    missing: Sequence[Unit]

    @classmethod
    def of(cls, step: Step, units: Sequence[Unit]) -> "UnitPlan":
        receipts = step.receipts()
        return cls(units, receipts, step.missing_units(units, receipts))

    @property
    def rows(self) -> list[Payload]:
        """The missing units as the fan-out takes them."""
        return [{"unit": unit.index, "start": unit.start, "stop": unit.stop} for unit in self.missing]


def unit_of(row: Payload) -> Unit:
    """The unit a payload belongs to."""
    return Unit(int(row["unit"]), int(row["start"]), int(row["stop"]))


def finish_unit(step: Step, unit: Unit, skipped: Sequence[Skipped], seconds: float) -> Payload:
    """Writes a unit's receipt, after all of its data, and returns it for the driver."""
    receipt = Receipt(unit.index, unit.start, unit.stop, seconds, time.time(), tuple(skipped))
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
            tally.add(plan.receipts[unit.index])
    print(f"{name}: {len(to_do):,} of {len(plan.units):,} units to do ({tally.left:,} images).", flush=True)
    progress, start = Progress(name, tally.total, tally.total - tally.left), time.monotonic()
    try:
        for result in results:
            receipt = Receipt.from_json(result["receipt"])
            tally.add(receipt)
            progress.advance(receipt.stop - receipt.start)
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

    def add(self, receipt: Receipt) -> None:
        self.done += receipt.num_done
        self.skipped.update(skip.reason for skip in receipt.skipped)

    def check(self, name: str, max_fraction: float) -> None:
        """Raises ValueError when more than that share of all images had to be skipped."""
        if self.skipped.total() > max_fraction * self.total:
            raise ValueError(
                f"{name}: {self.skipped.total():,} of {self.total:,} images had to be skipped (mostly: "
                f"{self.skipped.most_common(1)[0][0]}), more than images.max_skipped_fraction = {max_fraction:g}. "
                "Mend the images or the manifest, or raise the fraction."
            )
