"""Which images are measured: splits of the manifest, and the tune and report parts of their ids.

Thresholds are chosen on the tune part, a quarter of the training ids. Metrics are reported on the rest. The part
depends only on the id, so it is the same in every run, for any order and number of images.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.words import plural
from jobs.run.config_keys import Config
from jobs.run.split_names import nearest
from jobs.run.steps import StepRow
from storage.column_text import joined, json_texts
from storage.manifest import Manifest
from storage.units import Unit, plan_units, units_with

Part = Literal["tune", "report", "all"]
Resolution = Literal["map", "image"]

FEW_MASKS = 20  # images with a mask; fewer do not judge a run


def is_tuning_image(image_id: str) -> bool:
    """Whether an id is in the tune part: a quarter of all ids, chosen by a hash."""
    digest = hashlib.blake2b(image_id.encode("utf-8", "surrogatepass"), digest_size=8, key=b"tune part")
    return int.from_bytes(digest.digest(), "little") % 4 == 0


@dataclass(frozen=True)
class Selection:
    """Images by split and part."""

    splits: tuple[str, ...]
    part: Part

    def includes(self, image_id: str, split: str) -> bool:
        return split in self.splits and (self.part == "all" or is_tuning_image(image_id) == (self.part == "tune"))

    def of(self, image_ids: pa.Array, splits: pa.Array) -> np.ndarray:
        """Whether each of some images is included, bool."""
        chosen = np.array(pc.is_in(splits, pa.array(self.splits, pa.string())))
        if self.part != "all":
            is_tuning = [is_tuning_image(image_id) for image_id in image_ids.filter(pa.array(chosen)).to_pylist()]
            chosen[chosen] = np.array(is_tuning, bool) == (self.part == "tune")
        return chosen


def units_of_step(
    row: StepRow, manifest: Manifest, config: Config, recorded: Mapping[str, Any] | None = None
) -> list[Unit]:
    """All units of a step; each has the number of images that the step covers.

    Args:
        recorded: the step's fingerprint, to use the unit size and splits that the step was started with; None: those
            of the configuration.
    """
    unit_size = (recorded or {}).get("unit_size", config.unit_size)
    if not row.is_of_splits:
        return plan_units(manifest.num_images, unit_size)
    splits = recorded[row.section]["splits"] if recorded else config.predicted_splits
    wanted = pa.array(splits, pa.string())
    is_wanted = [pc.is_in(table["split"], wanted).to_numpy(False) for table in manifest.iter_tables(["split"])]
    return units_with(np.concatenate([np.zeros(0, bool), *is_wanted]), unit_size)


def measurable_splits(manifest: Manifest, config: Config) -> list[list[str]]:
    """The training splits and the validation splits; each group only if some of its images have masks."""
    validation, chosen = config.data.val_splits, config.data.train_splits
    masked: set[str] = set()
    for table in manifest.iter_tables(["split", "mask_uri"]):
        masked.update(pc.unique(table["split"].filter(table["mask_uri"].is_valid())).to_pylist())
    training = {split for split in masked if split not in validation and (not chosen or split in chosen)}
    return [sorted(splits) for splits in (training, masked & set(validation)) if splits]


def masks_id(manifest: Manifest, selection: Selection) -> str:
    """SHA-256 of the ids and masks of the selected images that have a mask; other masks give another value.

    It does not depend on the run's place. Imported masks have their content in their address, so it shows these too.
    """
    digest = hashlib.sha256()
    for table in manifest.iter_tables(["image_id", "split", "mask_uri"]):
        is_masked = table["mask_uri"].is_valid()
        image_ids, splits, masks = (table[name].filter(is_masked) for name in ("image_id", "split", "mask_uri"))
        chosen = pa.array(selection.of(image_ids, splits))
        texts = [json_texts(column.filter(chosen)) for column in (image_ids, manifest.as_written(masks))]
        digest.update(joined(pc.binary_join_element_wise(*texts, "\n", " "), ""))  # a line for each image
    return digest.hexdigest()


def unused_saliency(manifest: Manifest, config: Config) -> str:
    """The start of a sentence if images have saliency maps that the seeds do not use; else ""."""
    if config.seeds.background_cue == "saliency":
        return ""
    addresses = (table["saliency_uri"] for table in manifest.iter_tables(["saliency_uri"]))
    count = sum(len(each) - each.null_count for each in addresses)
    if not count:
        return ""
    have, them = ("has a saliency map", "it") if count == 1 else ("have saliency maps", "them")
    return f"{plural(count, 'image')} {have}, and seeds.background_cue=evidence does not use {them}. To use {them}"


def resolve_selection(manifest: Manifest, config: Config, splits: list[str], part: Part | None) -> Selection:
    """The images that a command line selects.

    Args:
        splits: names; empty for the training splits.
        part: None for "report" of training splits, or "all" if no image of the report part has a mask; and for "all"
            of validation splits.

    Raises:
        ValueError: a split that the manifest does not have, training and validation splits mixed, or a part of a
            validation split.
    """
    known = sorted(manifest.splits())
    unknown = [split for split in splits if split not in known]
    if unknown:
        there = ", ".join(known) or "none"
        raise ValueError(f"--split {unknown[0]}: no such split; the manifest has {there}.{nearest(unknown[0], known)}")
    validation, training = config.data.val_splits, config.data.train_splits
    chosen = splits or [name for name in training or known if name not in validation]
    is_validation = [split in validation for split in chosen]
    if any(is_validation):
        if not all(is_validation):
            raise ValueError(f"--split {', '.join(chosen)}: give training splits or validation splits, not both.")
        if part not in (None, "all"):
            raise ValueError(f"--part {part}: only training splits have parts; leave it out for {', '.join(chosen)}.")
        return Selection(tuple(chosen), "all")
    to_report = Selection(tuple(chosen), "report")
    if part is None:
        return to_report if num_masks(manifest, to_report, enough=1) else Selection(tuple(chosen), "all")
    return Selection(tuple(chosen), part)


def num_masks(manifest: Manifest, selection: Selection, enough: int) -> int:
    """The number of selected images with a mask; the counting stops when there are `enough`."""
    found = 0
    for table in manifest.iter_tables(["image_id", "split", "mask_uri"]):
        is_masked = table["mask_uri"].is_valid()
        found += int(selection.of(table["image_id"].filter(is_masked), table["split"].filter(is_masked)).sum())
        if found >= enough:
            break
    return found
