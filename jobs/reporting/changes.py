"""The images whose labels differ most between runs, for the page of `compare`.

It compares the finest labels that all runs have finished, at the size of a small picture. Labels that were made in
the same way in all runs are passed over: pseudo-labels, for example, do not depend on the threshold of the seeds. The
change of an image is the share of its pixels that differ from the first run, in the run that differs most. A pixel that
is labelled in one run and unknown in another also differs.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ficklenet.geometry import GridGeometry
from ficklenet.seeds import resize_labels
from jobs.maps.stored_geometry import stored_geometry
from jobs.reporting.gallery import read_truth, spread
from jobs.reporting.thumbnails import labels_uri, picture_uri
from jobs.run.directory import Run
from jobs.run.fingerprints import outdated_in_words, step_id
from jobs.run.selection import units_of_step
from jobs.run.steps import BY_NAME
from storage.errors import BadImage
from storage.images import image_size, read_image
from storage.label_values import ignore_value
from storage.manifest import ManifestRow
from storage.seed_store import SeedStore
from storage.units import Unit

LABELS = ("predictions", "pseudo_labels", "seeds")  # the finest first
SIDE = 160  # pixels, the longer side at which labels are compared


@dataclass(frozen=True)
class ChangedImage:
    """One image with its labels in each run.

    Attributes:
        share: the share of its pixels that differ, 0 to 1.
        right: for each run, the share of right labels among the pixels with a known true label; empty without a mask.
        photograph, labels, truth: data URIs; "" for none.
    """

    image_id: str
    split: str
    share: float
    right: tuple[float, ...]
    photograph: str
    labels: tuple[str, ...]
    truth: str


@dataclass(frozen=True)
class Changes:
    """The images that changed most.

    Attributes:
        step: the step that made the compared labels.
        num_compared: number of compared images.
        num_shared: number of images that have these labels in all runs.
        mean_share: the mean of `share` over the compared images.
        others: the other steps whose labels all runs have finished and made differently.
        outdated: a sentence for each run whose compared labels are outdated.
    """

    step: str
    num_compared: int
    num_shared: int
    mean_share: float
    images: tuple[ChangedImage, ...]
    others: tuple[str, ...] = ()
    outdated: tuple[str, ...] = ()


def find_changes(runs: Sequence[Run], labels: str = "", *, most_compared: int, most_shown: int) -> Changes:
    """Compares the labels of the images that all runs have. At most `most_compared` are taken, evenly spread.

    Args:
        labels: the step that made them; "" for the finest, as described above.

    Raises:
        ValueError: the runs have different classes, no image in common, or no labels that all of them have finished.
    """
    if len({run.manifest().class_names for run in runs}) > 1:
        raise ValueError("compare: the runs have different classes, so their labels cannot be compared.")
    finished = [name for name in LABELS if all(_is_finished(run, name) for run in runs)]
    if not finished or (labels and labels not in finished):
        raise ValueError(
            f"compare: no {labels or 'labels'} are finished in all of these runs. Compute them in each run, for "
            "example with aggregate_seeds.py."
        )
    made_differently = [name for name in finished if len({step_id(run, name) for run in runs}) > 1]
    step = labels or next(iter(made_differently), finished[0])
    others = tuple(name for name in made_differently if name != step)
    outdated = tuple(sentence for run in runs if (sentence := outdated_in_words(run, step)))
    readers = [_Reader(run.reading(step), step) for run in runs]
    shared = [image_id for image_id in readers[0].rows if all(image_id in reader.rows for reader in readers)]
    if not shared:
        raise ValueError(f"compare: no image has {step} in all of these runs. Compare runs of the same data set.")
    chosen = [shared[place] for place in spread(np.arange(len(shared)), most_compared)]
    with ThreadPoolExecutor(runs[0].config.images.read_concurrency) as pool:
        shares = list(pool.map(lambda image_id: _share([reader.read(image_id) for reader in readers]), chosen))
        order = sorted(range(len(chosen)), key=lambda number: (-shares[number], chosen[number]))[:most_shown]
        images = pool.map(lambda number: _draw(readers, chosen[number], shares[number]), order)
        mean_share = float(np.mean(shares))
        return Changes(step, len(chosen), len(shared), mean_share, tuple(images), others, outdated)


def _is_finished(run: Run, name: str) -> bool:
    step, fingerprint = run.step(name), run.step(name).fingerprint()
    units = units_of_step(BY_NAME[name], run.manifest(), run.config, fingerprint) if fingerprint else []
    return bool(units) and not step.missing_units(units)


class _Reader:
    """A run's labels of one step, by image id, small.

    Attributes:
        rows: image id -> row of the manifest, of the images that have labels.
    """

    def __init__(self, run: Run, step: str) -> None:
        self.run, self.step = run, step
        fingerprint = run.step(step).fingerprint() or {}
        self.units = units_of_step(BY_NAME[step], run.manifest(), run.config, fingerprint)
        skipped = {skip.image_id for receipt in run.step(step).receipts().values() for skip in receipt.skipped}
        splits = (fingerprint.get(step) or {}).get("splits")
        self.rows = {
            entry.image_id: unit.start + number
            for unit in self.units
            for number, entry in enumerate(run.manifest().rows(unit.start, unit.stop))
            if entry.image_id not in skipped and (splits is None or entry.split in splits)
        }
        self.seeds: SeedStore | None = run.seeds() if step == "seeds" else None
        self.geometry = stored_geometry(self.seeds) if self.seeds else GridGeometry(8)

    def entry(self, image_id: str) -> ManifestRow:
        row = self.rows[image_id]
        return self.run.manifest().rows(row, row + 1)[0]

    def read(self, image_id: str) -> np.ndarray:
        """The labels (h, w), `SIDE` long at most."""
        row, entry = self.rows[image_id], self.entry(image_id)
        if self.seeds is None:
            labels = self.run.labels(self.step).read(image_id, self.run.receipt(self.step, self._unit_of(row)))
            return resize_labels(labels, _small(*labels.shape))
        known = entry.height is not None and entry.width is not None
        height, width = (entry.height or 1, entry.width or 1) if known else image_size(entry.uri)
        return self.geometry.resize_labels(self.seeds.read(row), _small(height, width))

    def _unit_of(self, row: int) -> Unit:
        return next(unit for unit in self.units if unit.start <= row < unit.stop)


def _small(height: int, width: int) -> tuple[int, int]:
    scale = min(1.0, SIDE / max(height, width))
    return max(2, round(height * scale)), max(2, round(width * scale))


def _share(labels: Sequence[np.ndarray]) -> float:
    first, *others = labels
    return max(float((first != resize_labels(other, first.shape)).mean()) for other in others)


def _draw(readers: Sequence[_Reader], image_id: str, share: float) -> ChangedImage:
    """An image with the labels of every run, and its mask where it has one that can be read."""
    run, entry = readers[0].run, readers[0].entry(image_id)
    labels = [reader.read(image_id) for reader in readers]
    ignore = ignore_value(run.manifest().num_classes)
    try:
        photograph = picture_uri(read_image(entry.uri, **run.config.images.limits))
    except BadImage:
        photograph = ""
    truth = read_truth(run, run.manifest(), entry)
    drawn, right = "", tuple[float, ...]()
    if isinstance(truth, np.ndarray):
        small = resize_labels(truth, labels[0].shape)
        is_known, drawn = small != ignore, labels_uri(small, ignore)
        right = tuple(float((each[is_known] == small[is_known]).mean()) for each in labels) if is_known.any() else ()
    return ChangedImage(
        image_id, entry.split, share, right, photograph, tuple(labels_uri(each, ignore) for each in labels), drawn
    )
