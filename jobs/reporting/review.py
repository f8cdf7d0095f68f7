"""The list of images to look at first: those whose mask and maps do not fit each other. It needs no mask drawn by hand.

Images without a mask come last, in the order of their disagreement: that of the class whose stochastic maps disagree
most, and of equal ones the one with the lowest score. Behind them are images with a corrected mask. The list is
`review.csv` beside the report.
"""

import csv
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from ficklenet.metrics import disagreement, map_mismatch
from jobs.maps.stored_geometry import stored_geometry
from jobs.run.corrected_masks import is_corrected
from jobs.run.directory import Run
from jobs.run.selection import units_of_step
from jobs.run.steps import BY_NAME
from storage.label_folder import LabelFolder
from storage.label_values import ignore_value
from storage.location import Location
from storage.manifest import Manifest
from storage.map_store import UnitMaps
from storage.units import Unit

FILE = "review.csv"
MOST_UNITS = 400  # units that are read, spread evenly over those with maps; by default 25,600 images
SHOWN = 25  # images shown in the page


@dataclass(frozen=True)
class Doubt:
    """An image and its most doubtful class.

    Attributes:
        disagreement: 1 - |mean > theta| / |maximum > theta| of the class's maps; 1 if no sample exceeds theta.
        score: the expected logit; below 0, the classifier does not recognise the mapped class.
        lowest_score: the lowest score of the image's classes.
        row: the number of its row in the manifest.
        mismatch: 1 - the mean IoU of its mask with its maps (`map_mismatch`); None without a mask.
        is_corrected: whether the run has a corrected mask of it already.
    """

    image_id: str
    split: str
    class_name: str
    disagreement: float
    score: float
    lowest_score: float
    row: int
    mismatch: float | None = None
    is_corrected: bool = False


def review_list(run: Run, manifest: Manifest, mapped: np.ndarray, theta: float, judged: str = "") -> list[Doubt]:
    """The images with maps, the most doubtful first; if there are very many, only a part of them.

    Args:
        mapped: the rows that have maps, ascending.
        theta: the seeds' threshold.
        judged: the step whose masks the verdict judges; "": the finest masks that an image has.
    """
    wanted = set(mapped.tolist())
    units = units_of_step(BY_NAME["maps"], manifest, run.config, run.step("maps").fingerprint())
    units = [unit for unit in units if wanted.intersection(range(unit.start, unit.stop))]
    store, ignore = run.maps(), ignore_value(manifest.num_classes)
    chosen = [units[int(place)] for place in np.linspace(0, len(units) - 1, min(MOST_UNITS, len(units)))]
    chosen = [replace(unit, stop=min(unit.stop, store.num_images)) for unit in chosen]  # without images added since
    geometry = stored_geometry(store)
    steps = sorted(("predictions", "pseudo_labels"), key=lambda step: step != judged)  # else the finest first
    folders = [run.labels(step) for step in steps]

    def mismatch(image_id: str, maps: UnitMaps, number: int, slots: np.ndarray) -> float | None:
        if (mask := _first_mask(folders, image_id)) is None:
            return None
        pair = maps.max[number, slots], maps.mean[number, slots]
        mask = geometry.resize_labels(mask, pair[0].shape[1:])
        return map_mismatch(mask, *pair, maps.classes[number, slots], theta, ignore)

    def doubts(unit: Unit) -> list[Doubt]:
        maps, found = store.read_unit(unit), []
        for number, entry in enumerate(manifest.rows(unit.start, unit.stop)):
            slots = np.flatnonzero(maps.classes[number] >= 0)
            if unit.start + number not in wanted or len(slots) == 0:
                continue
            figures = []
            for slot in slots:
                doubt = disagreement(maps.max[number, slot], maps.mean[number, slot], theta)
                figures.append((1.0 if doubt is None else doubt, -float(maps.score[number, slot]), int(slot)))
            worst, minus_score, worst_slot = max(figures)
            name = manifest.class_names[maps.classes[number, worst_slot]]
            lowest = -max(figure[1] for figure in figures)
            row, fit = unit.start + number, mismatch(entry.image_id, maps, number, slots)
            is_done = is_corrected(run, entry.mask_uri)
            found.append(Doubt(entry.image_id, entry.split, name, worst, -minus_score, lowest, row, fit, is_done))
        return found

    with ThreadPoolExecutor(run.config.images.read_concurrency) as pool:
        every = [doubt for some in pool.map(doubts, chosen) for doubt in some]
    return sorted(every, key=_order)


def _order(doubt: Doubt) -> tuple[bool, float, float, float, str]:
    """The most doubtful first; images without a mask come last, and behind them those that are corrected already."""
    fit = 1.0 if doubt.mismatch is None else -doubt.mismatch
    return doubt.is_corrected, fit, -doubt.disagreement, doubt.score, doubt.image_id


def _first_mask(folders: Sequence[LabelFolder], image_id: str) -> np.ndarray | None:
    """The labels of an image in the first folder that has them; None if none has."""
    for folder in folders:
        try:
            return folder.read(image_id)
        except FileNotFoundError:
            continue
    return None


@dataclass(frozen=True)
class Trust:
    """The quality of all maps together, without masks.

    Attributes:
        num_images: the number of images.
        unrecognised: the share of the images with a class that the classifier does not recognise.
        disagreement: the mean over the images, of the most doubtful class of each.
    """

    num_images: int
    unrecognised: float
    disagreement: float


def trust_of(doubts: Sequence[Doubt]) -> Trust | None:
    """The quality of all images of the list; None if there are none."""
    if not doubts:
        return None
    return Trust(
        len(doubts),
        float(np.mean([doubt.lowest_score < 0 for doubt in doubts])),
        float(np.mean([doubt.disagreement for doubt in doubts])),
    )


def write_review(place: Location, doubts: Sequence[Doubt]) -> None:
    """Writes the list as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["rank", "image_id", "split", "class", "mismatch", "disagreement", "score", "corrected"])
    for rank, doubt in enumerate(doubts, start=1):
        fit = "" if doubt.mismatch is None else f"{doubt.mismatch:.4f}"
        figures = [fit, f"{doubt.disagreement:.4f}", f"{doubt.score:.4f}"]
        writer.writerow(
            [rank, doubt.image_id, doubt.split, doubt.class_name, *figures, "yes" if doubt.is_corrected else "no"]
        )
    place.write_bytes(text.getvalue().encode())
