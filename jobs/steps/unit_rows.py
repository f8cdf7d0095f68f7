"""The row of a unit on its way through the fan-out, and the receipt at its end."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NotRequired, TypedDict, TypeVar

from cluster.fanout import Payload
from jobs.run.directory import Run
from jobs.run.steps import BY_NAME, StepRow
from jobs.run.versions import code_id, computing_packages
from storage.errors import Damaged
from storage.manifest import ManifestRow
from storage.steps import Receipt, Skipped, Step
from storage.units import Unit

Stored = TypeVar("Stored")


class UnitRow(TypedDict):
    """What a worker gets for a unit; stages add their payload and keep these keys.

    Attributes:
        unit: the rows of the manifest.
        start_id: the id of the step's start, to which the data and the receipt belong.
        skipped: the images that an upstream step skipped.
        left_out: set by the quarantine: the reasons why images must not be tried, by their number in the unit.
    """

    unit: Unit
    start_id: str
    skipped: tuple[Skipped, ...]
    left_out: NotRequired[Mapping[int, str]]


ROW_KEYS = (*UnitRow.__required_keys__,)


def known_problems(row: Payload, entries: Sequence[ManifestRow]) -> dict[int, str]:
    """The reasons why images of a unit are not tried, by their number in the unit.

    The reasons come from the manifest, an upstream step or the quarantine.

    Args:
        entries: the unit's rows of the manifest.
    """
    reasons = {skip.image_id: skip.reason for skip in row["skipped"]}
    found = {number: entry.problem for number, entry in enumerate(entries) if entry.problem}
    found |= {n: reasons[entry.image_id] for n, entry in enumerate(entries) if entry.image_id in reasons}
    return found | dict(row.get("left_out", {}))


def earlier_receipt(run: Run, step: Step, row: Payload) -> Receipt | None:
    """The receipt of a unit's first images, where it was finished before the others were added to it; else None."""
    unit = row["unit"]
    if not any(unit.start < first < unit.stop for first in run.manifest().additions):
        return None
    return step.earlier_receipt(unit, row["start_id"])


def copied_rows(row: StepRow | None, units: Sequence[Unit], receipts: Mapping[int, Receipt]) -> dict[int, int]:
    """How many first rows of missing units have results that a launch copies, because images were added behind them.

    Args:
        row: of the step; None for an export, which copies nothing.
        units: the missing units.
        receipts: of all finished units, by index.

    Returns:
        By the unit's index; without units of which nothing is copied.
    """
    if row is None or not row.copies:
        return {}
    earlier = [(unit, receipts[unit.index]) for unit in units if unit.index in receipts]
    return {
        unit.index: receipt.stop - receipt.start
        for unit, receipt in earlier
        if receipt.start == unit.start and receipt.stop < unit.stop
    }


def copied_images(
    run: Run,
    step: Step,
    units: Sequence[Unit],
    receipts: Mapping[int, Receipt],
    splits: Sequence[str] | None = None,
) -> dict[int, int]:
    """The same as `copied_rows`, but only the images that the step covers count.

    Args:
        splits: the predicted splits that the step was started with; None: those of the configuration.
    """
    row, manifest = BY_NAME.get(step.location.name), run.manifest()
    copied = copied_rows(row, units, receipts)
    if row is None or not row.is_of_splits:
        return copied
    chosen, starts = (
        run.config.predicted_splits if splits is None else splits,
        {each.index: each.start for each in units},
    )
    return {
        index: sum(entry.split in chosen for entry in manifest.rows(starts[index], starts[index] + number))
        for index, number in copied.items()
    }


def earlier_part(
    run: Run, step: Step, row: Payload, read: Callable[[Receipt], Stored]
) -> tuple[Receipt | None, Stored | None]:
    """What a unit had stored before images were added to it, and its receipt; both stay as they are.

    None of both where there is nothing, or where it is damaged: then the whole unit is computed.

    Args:
        read: reads the stored values of a receipt.
    """
    receipt = earlier_receipt(run, step, row)
    try:
        return (receipt, read(receipt)) if receipt else (None, None)
    except Damaged:
        return None, None


def finish_unit(
    step: Step,
    row: Payload,
    skipped: Sequence[Skipped],
    seconds: float,
    objects: Mapping[str, str] | None = None,
) -> Payload:
    """Writes a unit's receipt after all its data, and returns it for the driver without the checksums.

    Args:
        objects: checksums of all stored objects, by their path in the folder of the step's results.
    """
    unit: Unit = row["unit"]
    receipt = Receipt(
        unit=unit.index,
        start=unit.start,
        stop=unit.stop,
        seconds=seconds,
        finished=time.time(),
        skipped=tuple(skipped),
        start_id=row["start_id"],
        code=code_id(),
        packages=computing_packages(),
        objects=objects or {},
    )
    step.write_receipt(receipt)
    return {"receipt": replace(receipt, objects={})}
