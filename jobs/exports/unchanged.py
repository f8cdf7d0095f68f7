"""Finds imported masks that nobody corrected: they equal the run's own masks, or masks that were imported before.

Labelling tools export all images of a task, also those that nobody opened. Such a mask is the run's own result. If it
counted as drawn by hand, the run would be measured against itself.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf

import numpy as np

from cluster.words import plural
from jobs.exports.bring_back import Corrections
from jobs.exports.exported_masks import exported_digests, known_labels, mask_digest
from jobs.exports.exporter import LABELS
from jobs.exports.regions import regions, without_small
from jobs.maps.stored_geometry import stored_geometry
from jobs.run.corrected_masks import is_corrected
from jobs.run.directory import Run
from storage.errors import BadImage, Damaged
from storage.images import decode_mask, read_mask
from storage.location import Location
from storage.manifest import Manifest
from storage.masks import SPECK_PIXELS
from storage.receipts import Receipt
from storage.units import Unit, unit_of_row

ReceiptReader = Callable[[str, int], Receipt | None]  # of a step's name and a row of the manifest

SMALL_SHARE = 0.01  # of an image's pixels; an export may leave out smaller objects (--min-object-pixels)


@dataclass(frozen=True)
class OwnMask:
    """A mask of the run to which an imported mask is equal.

    Attributes:
        is_imported: it was imported before; else it is a result of the run.
        missing: pixels of its largest object that the imported mask does not have; 0 for none.
        is_earlier: the run has another mask now, and exported this one before.
    """

    is_imported: bool
    missing: int
    is_earlier: bool = False


def without_unchanged(run: Run, corrections: Corrections, place: Location, *, keep: bool = False) -> Corrections:
    """The corrections without the masks that equal the run's own; prints how many these are.

    Args:
        keep: leave out only those of images that were corrected before, whose masks would be lost.

    Raises:
        ValueError: all masks equal the run's own, and none is kept.
    """
    rows = [row for row, mask in corrections.masks.items() if mask.num_objects > 0]  # the user calls the others empty
    exported, receipt_of = exported_digests(run), receipt_reader(run)
    with ThreadPoolExecutor(run.config.images.read_concurrency) as pool:
        found = pool.map(lambda row: _own_mask(run, row, corrections.masks[row].data, exported, receipt_of), rows)
        unchanged = {row: own for row, own in zip(rows, found, strict=True) if own}
    if not unchanged:
        return corrections
    if keep:
        return _with_unchanged(run, corrections, unchanged)
    number, all_masks, why = len(unchanged), plural(len(corrections.masks), "mask"), _in_words(run, unchanged)
    if number == len(corrections.masks):
        raise ValueError(f"{place}: {all_masks}, and none is a new correction: {why}")
    print(
        f"import: {number:,} of {all_masks} left out, because nobody corrected {'it' if number == 1 else 'them'}: {why}"
    )
    return replace(corrections, masks={row: mask for row, mask in corrections.masks.items() if row not in unchanged})


def _in_words(run: Run, unchanged: Mapping[int, OwnMask]) -> str:
    """How many masks equal which masks of the run, and the flag that keeps them."""
    earlier = sum(own.is_earlier for own in unchanged.values())
    counts = Counter((own.is_imported, own.missing > 0) for own in unchanged.values() if not own.is_earlier)
    before, without_specks = counts[True, False], counts[True, True]
    equal, differ = counts[False, False], counts[False, True]
    row, largest = max(unchanged.items(), key=lambda item: (not item[1].is_imported, item[1].missing))
    image_id = run.manifest().rows(row, row + 1)[0].image_id
    parts = [
        f"{before:,} {'was' if before == 1 else 'were'} imported before" if before else "",
        f"{without_specks:,} {'was' if without_specks == 1 else 'were'} imported before with small objects that are "
        "missing now, and the masks from before stay"
        if without_specks
        else "",
        f"{equal:,} {'equals' if equal == 1 else 'equal'} the run's own mask of the image" if equal else "",
        f"{earlier:,} {'equals' if earlier == 1 else 'equal'} what the run exported before its masks changed"
        if earlier
        else "",
        f"{differ:,} {'lacks' if differ == 1 else 'lack'} only small objects of the run's own mask, which an export "
        f"can leave out (the largest has {plural(largest.missing, 'pixel')}, in {image_id})"
        if differ
        else "",
    ]
    own = equal + earlier + differ
    them = "it" if own == 1 else "them"
    remedy = f" If you looked at every mask, give --keep-unchanged, which keeps {them}." if own else ""
    return f"{', '.join(filter(None, parts))}.{remedy}"


def _with_unchanged(run: Run, corrections: Corrections, unchanged: Iterable[int]) -> Corrections:
    """The corrections without unchanged masks of images that were corrected before; prints how many masks these are.

    Raises:
        ValueError: no mask is left.
    """
    manifest = run.manifest()
    uris = {row: manifest.rows(row, row + 1)[0].mask_uri or "" for row in unchanged}
    corrected = sorted(
        row
        for row, uri in uris.items()
        if is_corrected(run, uri) and not _is_same(uri, corrections.masks[row].data, manifest.class_values)
    )
    masks = {row: mask for row, mask in corrections.masks.items() if row not in corrected}
    if corrected:
        first = manifest.rows(corrected[0], corrected[0] + 1)[0].image_id
        print(
            f"import: {plural(len(corrected), 'mask')} left out, because the image was corrected before, and this mask "
            f"equals the run's own (first: {first}). The corrected masks stay."
        )
    if not masks:
        raise ValueError("import: no mask is left, so nothing was imported.")
    kept = [row for row in uris if row in masks and not is_corrected(run, uris[row])]  # others are in the run
    if kept:
        replaced = sum(bool(uris[row]) for row in kept)
        instead = f" {replaced:,} of them replace a mask that the image has." if replaced else ""
        print(
            f"import: {len(kept):,} of {plural(len(masks), 'mask')} equal the run's own, so figures measured with them "
            f"are too good.{instead}"
        )
    return replace(corrections, masks=masks)


def _is_same(uri: str, data: bytes, class_values: Sequence[int]) -> bool:
    """Whether a stored mask and the content of a mask's file have the same labels."""
    try:
        return np.array_equal(read_mask(uri, class_values), decode_mask(data, class_values))
    except BadImage:
        return False


def _own_mask(
    run: Run, row: int, data: bytes, exported: Mapping[str, set[str]], receipt_of: ReceiptReader
) -> OwnMask | None:
    """The mask of the run that a mask equals; if there are several, the one with the fewest differences.

    If the run has recorded what it exported of the image, only these masks and those that it has now count. Else the
    mask may also lack small objects, which an export can leave out.

    Args:
        exported: `exported_digests`.
        receipt_of: `receipt_reader`.
    """
    manifest = run.manifest()
    try:
        mask = decode_mask(data, manifest.class_values)
    except BadImage:
        return None
    digests = exported.get(manifest.rows(row, row + 1)[0].image_id, set())
    is_exported = mask_digest(mask, manifest.num_classes) in digests
    nearest = None
    for own, small, is_imported in _own_masks(run, manifest, row, mask.shape, receipt_of):
        least = inf if is_exported else 1 if digests else small
        missing = missing_pixels(mask, own, manifest.num_classes, least)
        if missing == 0:
            return OwnMask(is_imported, 0)
        if missing is not None:
            nearest = nearest or OwnMask(is_imported, missing)
    return nearest or (OwnMask(False, 0, is_earlier=True) if is_exported else None)


def _own_masks(
    run: Run, manifest: Manifest, row: int, size: tuple[int, ...], receipt_of: ReceiptReader
) -> Iterator[tuple[np.ndarray, float, bool]]:
    """The masks that the run can export for an image: corrected, predicted, pseudo-labels and seeds, as they exist.

    With each comes the number of pixels below which an object may be missing, and whether it was imported. In a
    corrected mask only specks may be missing: whoever deletes a larger object has corrected it once more. A file that
    was changed since the step wrote it is left out.
    """
    small = SMALL_SHARE * size[0] * size[1]
    entry = manifest.rows(row, row + 1)[0]
    image_id = entry.image_id
    if entry.mask_uri and is_corrected(run, entry.mask_uri):
        with suppress(BadImage):  # a mask that cannot be read is replaced
            yield read_mask(entry.mask_uri, manifest.class_values), float(SPECK_PIXELS), True
    for step in LABELS:
        if run.step(step).fingerprint() is None:
            continue
        if step == "seeds":
            store = run.seeds()
            yield stored_geometry(store).resize_labels(store.read(row), (size[0], size[1])), small, False
        elif (folder := run.labels(step)).place(image_id).exists():
            try:
                own = folder.read(image_id, receipt_of(step, row))
            except Damaged:
                folder.read(
                    image_id
                )  # refuses what cannot be read; else somebody edited it there, so it is not the own
                continue
            yield own, small, False


def receipt_reader(run: Run) -> ReceiptReader:
    """A function that gives the receipt of a step's unit with a row of the manifest; it keeps the last ones."""
    num_images = run.manifest().num_images
    recorded = {name: run.step(name).fingerprint() or {} for name in LABELS}
    unit_sizes = {name: each.get("unit_size", run.config.unit_size) for name, each in recorded.items()}

    @lru_cache(maxsize=64)
    def read(name: str, unit: Unit) -> Receipt | None:
        step = run.step(name)
        return step.receipt(unit) or step.earlier_receipt(unit, step.start_id())

    return lambda name, row: read(name, unit_of_row(row, num_images, unit_sizes[name]))


def missing_pixels(mask: np.ndarray, own: np.ndarray, num_classes: int, small: float) -> int | None:
    """The pixels of the largest object of the run's own mask that a mask (H, W) does not have; 0 if it has all.

    Unknown pixels count as background, because most tools have no unknown pixels.

    Args:
        small: objects of so many pixels or more must not be missing.

    Returns:
        None if the mask is not the own one without all objects below some small size.
    """
    mask, own = known_labels(mask, num_classes), known_labels(own, num_classes)
    if mask.shape != own.shape or not own.any():
        return None
    differs = mask != own
    if mask[differs].any():
        return None
    areas = [each.area for each in regions(np.where(differs, own, 0), num_classes)]
    largest = max(areas, default=0)  # of the objects that are background now
    if largest >= small or not np.array_equal(without_small(own, num_classes, largest + 1)[0], mask):
        return None
    return largest
