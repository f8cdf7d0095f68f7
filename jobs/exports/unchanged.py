"""Finds imported masks that nobody corrected: they equal the run's own masks.

Labelling tools export all images of a task, also those that nobody opened. Such a mask is the run's own result. If it
counted as drawn by hand, the run would be measured against itself.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from cluster.words import plural
from jobs.exports.bring_back import Corrections
from jobs.exports.exporter import LABELS
from jobs.exports.regions import regions, without_small
from jobs.maps.stored_geometry import stored_geometry
from jobs.run.directory import Run
from storage.errors import BadImage
from storage.images import decode_mask
from storage.label_values import ignore_value
from storage.location import Location
from storage.manifest import Manifest

SMALL_SHARE = 0.01  # of an image's pixels; an export may leave out smaller objects (--min-object-pixels)


def without_unchanged(run: Run, corrections: Corrections, place: Location) -> Corrections:
    """The corrections without the masks that equal the run's own; prints how many these are.

    Raises:
        ValueError: all masks equal the run's own.
    """
    rows = [row for row, mask in corrections.masks.items() if mask.num_objects > 0]  # the user calls the others empty
    with ThreadPoolExecutor(run.config.images.read_concurrency) as pool:
        found = pool.map(lambda row: _is_own(run, row, corrections.masks[row].data), rows)
        unchanged = {row for row, is_own in zip(rows, found, strict=True) if is_own}
    if not unchanged:
        return corrections
    number, all_masks = len(unchanged), plural(len(corrections.masks), "mask")
    if number == len(corrections.masks):
        raise ValueError(
            f"{place}: {all_masks}, and each equals the run's own mask of its image, so nothing was corrected. If you "
            "looked at every one and found it right, give --keep-unchanged."
        )
    print(
        f"import: {number:,} of {all_masks} left out, because nobody corrected {'it' if number == 1 else 'them'}: "
        "equal to the run's own mask of the image. If you looked at every mask, give --keep-unchanged."
    )
    return replace(corrections, masks={row: mask for row, mask in corrections.masks.items() if row not in unchanged})


def _is_own(run: Run, row: int, data: bytes) -> bool:
    """Whether a mask equals one of the masks that the run has for the image of a row."""
    manifest = run.manifest()
    try:
        mask = decode_mask(data, manifest.class_values)
    except BadImage:
        return False
    return any(is_unchanged(mask, own, manifest.num_classes) for own in _own_masks(run, manifest, row, mask.shape))


def _own_masks(run: Run, manifest: Manifest, row: int, size: tuple[int, ...]) -> Iterator[np.ndarray]:
    """The labels that the run can export for an image: predictions, pseudo-labels and seeds, as far as they exist."""
    image_id = manifest.rows(row, row + 1)[0].image_id
    for step in LABELS:
        if run.step(step).fingerprint() is None:
            continue
        if step == "seeds":
            store = run.seeds()
            yield stored_geometry(store).resize_labels(store.read(row), (size[0], size[1]))
        elif (folder := run.labels(step)).place(image_id).exists():
            yield folder.read(image_id)


def is_unchanged(mask: np.ndarray, own: np.ndarray, num_classes: int) -> bool:
    """Whether a mask (H, W) is the run's own, or the own one without all objects below some small size.

    Unknown pixels count as background, because most tools have no unknown pixels.
    """
    ignore = ignore_value(num_classes)
    if mask.shape != own.shape or not ((own > 0) & (own != ignore)).any():
        return False
    mask, own = np.where(mask == ignore, 0, mask), np.where(own == ignore, 0, own)
    differs = mask != own
    if mask[differs].any():
        return False
    areas = [each.area for each in regions(np.where(differs, own, 0), num_classes)]
    largest = max(areas, default=0)  # of the objects that are background now
    if largest >= SMALL_SHARE * mask.size:
        return False
    return bool(np.array_equal(without_small(own, num_classes, largest + 1)[0], mask))
