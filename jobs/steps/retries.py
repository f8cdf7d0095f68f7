"""Computes units with skipped images again: with ``--retry-skipped``, or when missing images are back."""

from collections.abc import Sequence

from cluster.words import plural
from jobs.run.directory import Run
from jobs.steps.launch import UnitPlan
from jobs.steps.tally import Tally
from storage.errors import MISSING, BadImage
from storage.headers import read_header
from storage.images import read_many
from storage.steps import Skipped
from storage.units import Unit

LOOKED_AT = 50


def finished_images(plan: UnitPlan) -> Tally:
    """Counts of the images whose results are stored; the total counts all images of the launch.

    Where images were added to a unit, the others count too if their results are copied.
    """
    tally = Tally(total=sum(unit.num_images for unit in plan.units))
    for unit in plan.finished:
        tally.add(plan.receipts[unit.index], unit.num_images)
    for index, num_images in plan.copied.items():
        tally.add(plan.receipts[index], num_images)
    return tally


def units_to_retry(run: Run, plan: UnitPlan) -> list[Unit]:
    """The units with a receipt that a launch computes again.

    With ``--retry-skipped`` these are all units with skipped images. Without it, they are the units with missing
    images, if some of the missing images are back.
    """
    if plan.options.retry_skipped:
        return [unit for unit in plan.units if (receipt := plan.receipts.get(unit.index)) and receipt.skipped]
    return _units_with_found(run, plan)


def forget_skipped(title: str, plan: UnitPlan, units: Sequence[Unit]) -> None:
    """Deletes the receipts of units with skipped images, so that this launch tries these units again."""
    num_images = sum(len(plan.receipts[unit.index].skipped) for unit in units)
    plan.step.forget_units(units)
    print(f"{title}: {plural(num_images, 'skipped image')} in {plural(len(units), 'unit')} will be tried again.")


def _units_with_found(run: Run, plan: UnitPlan) -> list[Unit]:
    """All units with missing files, if one file of a sample is back (a folder was mounted, for example)."""
    missing = {
        unit: skip
        for unit in (*plan.finished, *plan.extended)
        for skip in plan.receipts[unit.index].skipped
        if skip.reason.endswith(MISSING)
    }
    sample = list(missing)[:: max(1, -(-len(missing) // LOOKED_AT))]
    found = read_many([_address(run, unit, missing[unit]) for unit in sample], read_header)
    is_back = any(not isinstance(each, BadImage) or each.reason != MISSING for each in found)
    return list(missing) if is_back else []


def _address(run: Run, unit: Unit, skip: Skipped) -> str:
    """The file that was missing: an image, or its saliency map."""
    row = next(row for row in run.manifest().rows(unit.start, unit.stop) if row.image_id == skip.image_id)
    return row.saliency_uri if skip.reason.startswith("saliency") and row.saliency_uri else row.uri
