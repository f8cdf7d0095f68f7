"""The fan-out of an evaluation: it selects the units with selected images, and adds up their confusion matrices."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.connect import Connection
from cluster.fanout import Stages
from jobs.evaluation.unit_meter import MADE_BY, Counts, Measurement, Recipe, UnitMeter
from jobs.run.directory import Run
from jobs.run.selection import Resolution, Selection
from jobs.steps.compute import resolved_device, run_stages
from jobs.steps.finished import FinishedStep
from jobs.steps.progress import Progress
from storage.manifest import Manifest
from storage.steps import Receipt
from storage.units import Unit, units_with

SECONDS = 0.005
"""About how long one worker needs to measure one kind of labels of an image."""


def count(
    run: Run,
    connection: Connection,
    finished: Mapping[str, FinishedStep],
    selection: Selection,
    resolutions: tuple[Resolution, ...],
    recipes: Sequence[Recipe],
    units: Sequence[Unit],
) -> Counts:
    """The confusion matrices of these units' selected images.

    Args:
        finished: the finished steps that the recipes measure.
    """
    needs_backbone = any(recipe.source == "deterministic maps" for recipe in recipes)
    device = resolved_device(run.config.maps.device, connection, "maps.device") if needs_backbone else "cpu"
    names = {name for recipe in recipes for name in MADE_BY[recipe.source]}
    run = run.reading(*(names - run.starts.keys()))  # the steps that the caller does not read yet
    measurement = Measurement(run, selection, resolutions, tuple(recipes), device)
    receipts = {name: finished[name].receipts if name in finished else run.step(name).receipts() for name in names}
    rows = [
        {"unit": unit, "skipped_by": {name: _reasons(receipts[name].get(unit.index)) for name in names}}
        for unit in units
    ]
    stages = Stages(partial(UnitMeter, measurement))
    num_images = sum(unit.num_images for unit in units)
    total, progress = Counts(), Progress("evaluate", num_images)
    seconds = None if needs_backbone else SECONDS * len(recipes) * len(resolutions) * num_images
    for result in run_stages(rows, stages, run.config.cluster, connection, device, seconds=seconds):
        total.add(result["counts"])  # the order does not matter
        progress.advance(result["num_images"])
    progress.close()
    return total


def selected_units(manifest: Manifest, selection: Selection, unit_size: int) -> list[Unit]:
    """The units with selected images.

    Raises:
        ValueError: no selected image has a mask.
    """
    is_selected, has_mask, others = [np.zeros(0, bool)], False, set[str]()
    for table in manifest.iter_tables(["image_id", "split", "mask_uri"]):
        chosen = selection.of(table["image_id"], table["split"])
        with_mask = table["mask_uri"].is_valid().to_numpy(zero_copy_only=False)
        has_mask |= bool((chosen & with_mask).any())
        others.update(pc.unique(table["split"].filter(pa.array(with_mask))).to_pylist())
        is_selected.append(chosen)
    if not has_mask:
        elsewhere = sorted(others - set(selection.splits))
        if elsewhere:
            names = ", ".join(name or "no split" for name in elsewhere)
            remedy = f"Images of {names} have masks: give --split {elsewhere[-1]}."
        elif others:
            remedy = "Other images of these splits have masks: give --part all."
        else:
            remedy = (
                "If you have masks, import_masks.py --masks FOLDER brings them in; or prepare the run again with a "
                "column mask in the table."
            )
        raise ValueError(
            f"evaluate: none of the images ({named(selection)}) has a mask, so there is nothing to measure. {remedy}"
        )
    return units_with(np.concatenate(is_selected), unit_size)


def named(selection: Selection) -> str:
    """A selection in words, such as 'train, report part'."""
    part = "" if selection.part == "all" else f", {selection.part} part"
    return f"{', '.join(name or 'no split' for name in selection.splits)}{part}"


def _reasons(receipt: Receipt | None) -> dict[str, str]:
    """The reasons why images of a unit were skipped, by id."""
    return {skip.image_id: skip.reason for skip in receipt.skipped} if receipt else {}
