"""Reads a unit's images as inputs of the backbone."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cluster.fanout import Payload
from ficklenet.resampling import resize_square
from jobs.run.directory import Run
from jobs.steps.unit_rows import known_problems
from storage.errors import BadImage
from storage.images import read_image, read_many
from storage.manifest import ManifestRow
from storage.steps import Skipped


@dataclass(frozen=True)
class UnitImages:
    """The images of a unit.

    Attributes:
        entries: the rows of the manifest.
        images: uint8 (n, 3, side, side); zeros for images that are not present.
        is_present: bool (n,), whether an image is usable and wanted.
        skipped: the unusable images, with the reasons.
    """

    entries: list[ManifestRow]
    images: np.ndarray
    is_present: np.ndarray
    skipped: tuple[Skipped, ...]


def read_unit_images(
    run: Run, row: Payload, num_kept: int = 0, is_wanted: Callable[[ManifestRow], bool] | None = None
) -> UnitImages:
    """A unit's images, fetched concurrently, at the size of the network's input.

    Args:
        row: a `jobs.steps.unit_rows.UnitRow`.
        num_kept: so many first images are left out: neither present nor skipped.
        is_wanted: whether to read an image; others are not present, and skipped only if they cannot be used anyway.
    """
    config, unit = run.config, row["unit"]
    entries = run.manifest().rows(unit.start, unit.stop)
    size = config.images.input_size

    def read_input(uri: str) -> np.ndarray:
        return resize_square(read_image(uri, **config.images.limits, target_side=size), size)

    images = np.zeros((len(entries), 3, size, size), np.uint8)
    is_present = np.zeros(len(entries), bool)
    problems = {number: why for number, why in known_problems(row, entries).items() if number >= num_kept}
    skipped = [Skipped(entries[number].image_id, problem) for number, problem in problems.items()]
    usable = [
        number
        for number in range(num_kept, len(entries))
        if number not in problems and (is_wanted is None or is_wanted(entries[number]))
    ]
    uris = [entries[number].uri for number in usable]
    for number, found in zip(usable, read_many(uris, read_input, config.images.read_concurrency), strict=True):
        if isinstance(found, BadImage):
            skipped.append(Skipped(entries[number].image_id, found.reason))
        else:
            images[number], is_present[number] = found, True
    return UnitImages(entries, images, is_present, tuple(skipped))
