"""The gallery of a run's report: a sample of its images, with maps, seeds and truth of each mapped class.

Three values per image and class show how doubtful a map is:

    score         the expected logit. Below 0, the classifier does not recognise the mapped class
    disagreement  1 - |mean > theta| / |maximum > theta|: of the cells that exceed theta in some sample, the share
                  that does not exceed it in the mean. 0: all samples agree. It needs no mask
    error         1 - IoU of the class's seeds with the truth at map resolution, without cells of true label 255
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from ficklenet.metrics import disagreement, seed_error
from ficklenet.seeds import resize_labels
from jobs.maps.stored_geometry import stored_geometry
from jobs.reporting.thumbnails import heat_uri, labels_uri, outcome_uri, picture_uri
from jobs.run.directory import Run
from jobs.steps.states import StepState
from storage.errors import BadImage
from storage.images import read_image, read_mask
from storage.label_values import ignore_value
from storage.manifest import Manifest, ManifestRow
from storage.map_store import ImageMaps, MapStore
from storage.seed_store import SeedStore
from storage.steps import Receipt

TRUTH_SIDE = 160  # pixels, the longer side of a drawn mask

# What each kind of tile shows; the page says it when a tile is enlarged
TILES = {
    "image": "The photograph.",
    "max": "Of each cell, the largest value that the class has in any of the samples.",
    "mean": "Of each cell, the mean of the class over the samples. Where the maximum is high and the mean is low, only "
    "some samples find the class.",
    "seeds": "The labels on which the segmentation network is trained, at the size of the maps. Where you see the "
    "photograph, the label is unknown.",
    "prediction": "The mask: a label for each pixel.",
    "truth": "The mask of the data set.",
    "outcome": "The seeds of this class compared with the truth.",
    "doubt": "The cells where some sample finds a class, but the mean of the samples does not.",
}


@dataclass(frozen=True)
class Tile:
    """A picture of an entry: its kind and title, and the overlay on the photograph ("" for none).

    Attributes:
        kind: a key of `TILES`; the style sheet uses it too.
    """

    kind: str
    caption: str
    overlay: str = ""


@dataclass(frozen=True)
class Entry:
    """One mapped class of one image; values that do not exist are None."""

    class_number: int
    score: float
    disagreement: float | None
    error: float | None
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Picture:
    """A sampled image.

    Attributes:
        row: the number of its row in the manifest.
        photograph: a data URI; "" if the image is not readable any more.
        size: (height, width) in pixels.
        problems: sentences about everything that could not be shown.
    """

    row: int
    image_id: str
    split: str
    photograph: str
    size: tuple[int, int]
    problems: tuple[str, ...]
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True)
class Gallery:
    """The sample.

    Attributes:
        num_mapped: the number of images from which it was taken.
        num_doubtful: how many of the pictures are the most doubtful of all images.
    """

    pictures: tuple[Picture, ...]
    num_mapped: int
    num_doubtful: int
    grid: tuple[int, int]
    theta: float

    def has(self, kind: str) -> bool:
        """Whether any entry has such a tile."""
        return any(t.kind == kind for picture in self.pictures for entry in picture.entries for t in entry.tiles)


def finished_rows(receipts: Sequence[Receipt], num_images: int) -> np.ndarray:
    """Bool (num_images,): whether a row's unit has one of these receipts."""
    is_finished = np.zeros(num_images, bool)
    for receipt in receipts:
        is_finished[receipt.start : receipt.stop] = True
    return is_finished


def mapped_images(manifest: Manifest, receipts: Sequence[Receipt], *, without_labels: bool) -> np.ndarray:
    """The rows that have maps, ascending: they belong to finished units and were not skipped.

    Args:
        receipts: the receipts of the finished units of the maps.
        without_labels: whether images without labels have maps too.
    """
    skipped = {skip.image_id for receipt in receipts for skip in receipt.skipped}
    is_wanted = [
        image_id not in skipped and (without_labels or len(labels) > 0)
        for batch in manifest.iter_columns(["image_id", "labels"])
        for image_id, labels in zip(batch["image_id"], batch["labels"], strict=True)
    ]
    return np.flatnonzero(finished_rows(receipts, manifest.num_images) & np.array(is_wanted, bool))


def labelled_rows(run: Run, manifest: Manifest, name: str, state: StepState) -> np.ndarray:
    """The rows that have labels of a step, ascending.

    Args:
        name: "seeds", "pseudo_labels" or "predictions", which has only the images of its splits.
    """
    fingerprint = run.step(name).fingerprint() or {}
    splits = fingerprint[name]["splits"] if name == "predictions" and fingerprint else None
    skipped = {skip.image_id for skip in state.skipped}
    is_wanted = [
        image_id not in skipped and (splits is None or split in splits)
        for batch in manifest.iter_columns(["image_id", "split"])
        for image_id, split in zip(batch["image_id"], batch["split"], strict=True)
    ]
    return np.flatnonzero(finished_rows(state.receipts, manifest.num_images) & np.array(is_wanted, bool))


def spread(indices: np.ndarray, number: int) -> list[int]:
    """At most `number` of the indices, spread evenly; the choice is always the same."""
    places = np.linspace(0, len(indices) - 1, min(number, len(indices)))
    return [int(indices[int(place)]) for place in places]


def make_gallery(
    run: Run,
    manifest: Manifest,
    steps: Mapping[str, StepState],
    mapped: np.ndarray,
    doubtful: Sequence[int],
    number: int,
    *,
    theta: float,
) -> Gallery:
    """Reads and draws a sample of a run's images, several at the same time.

    Half of the sample are the most doubtful of all images. The others are spread evenly over the rest.

    Args:
        steps: the states of the steps.
        mapped: the rows that have maps.
        doubtful: the same rows or a part of them, the most doubtful first.
        number: the number of images in the sample.
        theta: the seeds' threshold.
    """
    store, is_seeded = run.maps(), finished_rows(steps["seeds"].receipts, manifest.num_images)
    seeds = run.seeds() if is_seeded.any() else None
    if seeds is not None and seeds.grid != store.grid:  # they were made from earlier maps of another size
        seeds = None
    worst = list(doubtful[: number // 2]) if number < len(mapped) else []
    rows = sorted([*worst, *spread(np.setdiff1d(mapped, worst), number - len(worst))])
    artist = Artist(run, manifest, steps, store, seeds, is_seeded, theta)
    with ThreadPoolExecutor(run.config.images.read_concurrency) as pool:
        pictures = tuple(pool.map(artist.draw, rows))
    return Gallery(pictures, len(mapped), len(worst), store.grid, theta)


def with_state(caption: str, step: StepState) -> str:
    """A tile's caption, which says so if the tile was made from results that have changed since."""
    return f"{caption} (outdated)" if step.state == "outdated" else caption


@dataclass(frozen=True)
class Artist:
    """Draws one image at a time; the other attributes are arguments of `make_gallery`."""

    run: Run
    manifest: Manifest
    steps: Mapping[str, StepState]
    maps: MapStore
    seeds: SeedStore | None
    is_seeded: np.ndarray
    theta: float

    def draw(self, index: int) -> Picture:
        """An image and its entries."""
        row = self.manifest.rows(index, index + 1)[0]
        truth = read_truth(self.run, self.manifest, row)
        entries = self._entries(self.maps.read(index), self._seeds(index), truth)
        return replace(picture_of(self.run, index, row, truth), entries=tuple(entries))

    def _entries(self, maps: ImageMaps, seeds: np.ndarray | None, truth: np.ndarray | BadImage | None) -> list[Entry]:
        ignore = ignore_value(self.manifest.num_classes)
        shared: list[Tile] = []
        if seeds is not None:
            shared.append(Tile("seeds", with_state("Seeds", self.steps["seeds"]), labels_uri(seeds, ignore)))
        if isinstance(truth, np.ndarray):
            shared.append(Tile("truth", "Truth", labels_uri(shrunk(truth), ignore)))
        entries = []
        for slot, number in enumerate(maps.classes):
            tiles = [
                Tile("image", "Image"),
                Tile("max", with_state("Maximum", self.steps["maps"]), heat_uri(maps.max[slot])),
                Tile("mean", with_state("Mean", self.steps["maps"]), heat_uri(maps.mean[slot])),
                *shared,
            ]
            error = None
            if seeds is not None and isinstance(truth, np.ndarray) and self.steps["seeds"].state != "outdated":
                cells = stored_geometry(self.maps).resize_labels(truth, self.maps.grid)
                is_seed, is_true = (seeds == number + 1) & (cells != ignore), cells == number + 1
                error = seed_error(is_seed, is_true)
                tiles.append(Tile("outcome", "Right or wrong", outcome_uri(is_seed, is_true)))
            doubt = disagreement(maps.max[slot], maps.mean[slot], self.theta)
            entries.append(Entry(int(number), float(maps.score[slot]), doubt, error, tuple(tiles)))
        return entries

    def _seeds(self, index: int) -> np.ndarray | None:
        return self.seeds.read(index) if self.seeds is not None and self.is_seeded[index] else None


def picture_of(run: Run, index: int, row: ManifestRow, truth: np.ndarray | BadImage | None) -> Picture:
    """An image, without entries.

    Args:
        truth: the result of `read_truth`; if it is a problem, the picture says so.
    """
    problems, photograph, size = [], "", (row.height or 1, row.width or 1)
    try:
        image = read_image(row.uri, **run.config.images.limits)
        photograph, size = picture_uri(image), (image.shape[0], image.shape[1])
    except BadImage as bad:
        problems.append(f"The image is not readable any more: {bad.reason}.")
    if isinstance(truth, BadImage):
        problems.append(f"The mask cannot be read: {truth.reason}.")
    return Picture(index, row.image_id, row.split, photograph, size, tuple(problems))


def read_truth(run: Run, manifest: Manifest, row: ManifestRow) -> np.ndarray | BadImage | None:
    """The true labels (H, W) of an image; None if it has no mask, the reason if the mask is unreadable."""
    if row.mask_uri is None:
        return None
    try:
        return read_mask(row.mask_uri, manifest.class_values, **run.config.images.limits)
    except BadImage as bad:
        return bad


def shrunk(labels: np.ndarray) -> np.ndarray:
    """Labels (H, W), made small for drawing: their longer side is at most `TRUTH_SIDE`."""
    shrink = min(1.0, TRUTH_SIDE / max(labels.shape))
    return resize_labels(labels, (max(2, round(labels.shape[0] * shrink)), max(2, round(labels.shape[1] * shrink))))


def error_first(pictures: Sequence[Picture]) -> list[tuple[Picture, Entry]]:
    """All entries, the most doubtful first: by error, then by disagreement; unknown values last."""

    def doubt(pair: tuple[Picture, Entry]) -> tuple[float, float]:
        known = (pair[1].error, pair[1].disagreement)
        return tuple(2.0 if value is None else -value for value in known)  # type: ignore[return-value]

    return sorted(((picture, entry) for picture in pictures for entry in picture.entries), key=doubt)
