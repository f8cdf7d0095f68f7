"""Finds an image's row in the manifest and, in the results of a step, the receipt of its unit."""

import warnings
from collections.abc import Sequence

from jobs.evaluation.counting import selected_units
from jobs.notebook.arguments import require_id
from jobs.run.directory import Run
from jobs.run.fingerprints import outdated_in_words
from jobs.run.origin import only_masks
from jobs.run.selection import resolve_selection
from jobs.run.steps import BY_NAME
from storage.errors import NotYet
from storage.receipts import Receipt
from storage.units import plan_units, unit_of_row


def row_of(run: Run, image_id: str) -> int:
    """The row of an image in the manifest.

    Raises:
        TypeError: the id is not a text. KeyError: there is no such image.
    """
    require_id(image_id, "image_id")
    return run.manifest().index_of(image_id)


def warn_if_unknown(run: Run, image_id: str) -> None:
    """Warns if the run has no image with this id. The warning names the line that called the caller of this."""
    try:
        row_of(run, image_id)
    except KeyError as error:
        text = error.args[0] if error.args[0].endswith((".", "?")) else f"{error.args[0]}."
        warnings.warn(
            f"{text} Maps with this id are equal to no stored ones. For a picture that is not in the run, leave the id "
            "out.",
            stacklevel=3,
        )


def warn_if_outdated(run: Run, name: str) -> None:
    """Warns if a step is outdated. The warning names the line that called the caller of this function."""
    if outdated := outdated_in_words(run, name):
        warnings.warn(outdated, stacklevel=3)


def finished_row(run: Run, name: str, image_id: str) -> tuple[int, Receipt]:
    """The row of an image that a step has finished, and its unit's receipt, also if the unit has grown since.

    Raises:
        TypeError, KeyError: as in `row_of`. ValueError: the step does not compute this image. NotYet: it has not
            computed it yet.
    """
    row, step, manifest = row_of(run, image_id), run.step(name), run.manifest()
    if BY_NAME[name].is_of_splits:
        split, splits = manifest.rows(row, row + 1)[0].split, _computed_splits(run, name)
        if split not in splits:
            raise ValueError(
                f"{image_id}: no {name} are made of its split {split!r}, only of {', '.join(splits)} ({name}.splits). "
                f"To compute its mask, call run.predict(run.image({image_id!r}))."
            )
    unit = unit_of_row(row, manifest.num_images, _unit_size(run, name))
    receipt = step.receipt(unit) or step.earlier_receipt(unit, step.start_id())
    if receipt is None or row >= receipt.stop:
        remedy = only_masks(run) or f"Run '{run.step_command(name)}' first."
        raise NotYet(f"{image_id}: the step {name} is not done for this image yet. {remedy}")
    return row, receipt


def finished_ids(run: Run, name: str) -> list[str]:
    """The ids of the images that a step has finished and did not skip, in the order of the manifest."""
    manifest, step, found = run.manifest(), run.step(name), list[str]()
    splits = _computed_splits(run, name) if BY_NAME[name].is_of_splits else None
    for receipt in step.receipts_of(plan_units(manifest.num_images, _unit_size(run, name))):
        skipped = {skip.image_id for skip in receipt.skipped}
        for row in manifest.rows(receipt.start, receipt.stop):
            if row.image_id not in skipped and not row.problem and (splits is None or row.split in splits):
                found.append(row.image_id)
    return found


def _computed_splits(run: Run, name: str) -> Sequence[str]:
    """The splits whose images a step computes, or will compute."""
    recorded = run.step(name).fingerprint()
    return recorded[name]["splits"] if recorded else run.config.predicted_splits


def _unit_size(run: Run, name: str) -> int:
    return int((run.step(name).fingerprint() or {}).get("unit_size", run.config.unit_size))


def nothing_to_measure(run: Run) -> str:
    """The sentence with which `evaluate` refuses a run whose images have no masks; "" if they have some."""
    manifest = run.manifest()
    try:
        selected_units(manifest, resolve_selection(manifest, run.config, [], None), run.config.unit_size)
    except ValueError as refusal:
        return str(refusal)
    return ""


def require_used(receipt: Receipt, name: str, image_id: str) -> None:
    """Refuses an image that a step has skipped, because its stored results are empty.

    Raises:
        ValueError: see above.
    """
    for skip in receipt.skipped:
        if skip.image_id == image_id:
            raise ValueError(f"{image_id}: the step {name} skipped this image ({skip.reason}).")
