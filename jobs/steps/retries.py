"""Units that are computed again because images were skipped: when asked, or when missing images are back."""

from collections.abc import Sequence

from cluster.words import plural
from jobs.run.directory import Run
from jobs.steps.launch import UnitPlan
from jobs.steps.tally import Tally, is_refused
from storage.errors import MISSING, BadImage
from storage.headers import read_header
from storage.images import read_many
from storage.units import Unit

LOOKED_AT = 50


def finished_images(plan: UnitPlan) -> Tally:
    """The images of a launch's finished units, of all images of the launch."""
    tally = Tally(total=sum(unit.num_images for unit in plan.units))
    for unit in plan.finished:
        tally.add(plan.receipts[unit.index], unit.num_images)
    return tally


def units_to_retry(run: Run, plan: UnitPlan) -> list[Unit]:
    """The finished units that a launch computes again: those with skipped images where it was asked for.

    Otherwise those whose images were missing, where the step is refused because of them and images are back.
    """
    if plan.options.retry_skipped:
        return [unit for unit in plan.finished if plan.receipts[unit.index].skipped]
    return _units_with_found(run, plan)


def forget_skipped(title: str, plan: UnitPlan, units: Sequence[Unit]) -> None:
    """Deletes the receipts of units with skipped images, so that this launch tries these units again."""
    num_images = sum(len(plan.receipts[unit.index].skipped) for unit in units)
    plan.step.forget_units(units)
    print(f"{title}: {plural(num_images, 'skipped image')} in {plural(len(units), 'unit')} will be tried again.")


def _units_with_found(run: Run, plan: UnitPlan) -> list[Unit]:
    """All units with missing images, where a sample finds one image that is back, as after a folder was mounted."""
    tally = finished_images(plan)
    if not is_refused(tally.skipped.total(), tally.total, run.config.images.max_skipped_fraction):
        return []
    missing = {
        unit: skip.image_id
        for unit in plan.finished
        for skip in plan.receipts[unit.index].skipped
        if skip.reason == MISSING
    }
    sample = list(missing)[:: max(1, -(-len(missing) // LOOKED_AT))]
    manifest = run.manifest()
    uris = [
        row.uri
        for unit in sample
        for row in manifest.rows(unit.start, unit.stop)
        if row.image_id == missing[unit] and row.uri
    ]
    found = read_many(uris, read_header)
    is_back = any(not isinstance(each, BadImage) or each.reason != MISSING for each in found)
    return list(missing) if is_back else []
