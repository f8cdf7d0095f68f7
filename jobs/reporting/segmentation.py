"""The report's part on the segmentation network: its metrics and those of the seeds, confusions, worst images."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ficklenet.metrics import confusion_matrix, label_metrics
from ficklenet.seeds import resize_labels
from jobs.reporting.gallery import Picture, Tile, finished_rows, picture_of, read_truth, shrunk, spread, with_state
from jobs.reporting.measured import Measured
from jobs.reporting.thumbnails import labels_uri
from jobs.run.directory import Run
from jobs.steps.states import StepState
from storage.label_values import ignore_value
from storage.manifest import Manifest

NUM_WORST = 24  # images shown
MOST_COMPARED = 2000  # images compared with their masks, about 10 ms each
MOST_LABELS = 31  # a confusion matrix with more labels is not shown whole
MOST_CONFUSIONS = 20  # the confusions shown of such a matrix
NETWORK, PEERS = "predictions", ("predictions without CRF", "densified seeds")  # among evaluate's labels


@dataclass(frozen=True)
class Confusion:
    """The share, in [0, 1], of a label's true pixels that is predicted as another label."""

    true: str
    predicted: str
    share: float


@dataclass(frozen=True)
class Comparison:
    """The network's metrics, and the metrics of other labels over the same images.

    Attributes:
        metrics: the records of `evaluate`, the network's first; `notes` has the settings that differ for each.
        names: the names of the labels, background first; `columns` may also have "unlabelled" at the end.
        matrix: for each true label, the share of its pixels by predicted label, in [0, 1]; the row of a label without
            pixels is empty.
    """

    measured: Measured
    metrics: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    names: tuple[str, ...]
    columns: tuple[str, ...]
    matrix: tuple[tuple[float, ...], ...]

    @property
    def is_small(self) -> bool:
        """Whether the matrix can be shown whole."""
        return len(self.names) <= MOST_LABELS

    @property
    def confusions(self) -> list[Confusion]:
        """The largest confusions, in descending order."""
        found = [
            Confusion(true, predicted, share)
            for true, row in zip(self.names, self.matrix, strict=True)
            for predicted, share in zip(self.columns, row, strict=False)
            if share > 0 and predicted != true
        ]
        return sorted(found, key=lambda each: -each.share)[:MOST_CONFUSIONS]


@dataclass(frozen=True)
class Example:
    """A predicted image. Its error is 1 - mean IoU over the labels in its mask or prediction; None without a mask."""

    picture: Picture
    error: float | None
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Worst:
    """The images with the worst predictions, in descending order of their error.

    Attributes:
        grid: (h, w) of the seeds; None if no seeds are shown.
        num_compared: the number of predicted images that were compared.
        labels: the labels that occur in their predictions, before or after the CRF.
        classes: the classes of the shown images and of the predictions, for the legend.
    """

    examples: tuple[Example, ...]
    grid: tuple[int, int] | None
    num_compared: int
    num_predicted: int
    labels: frozenset[int]
    classes: tuple[int, ...]


def comparisons(measured: Sequence[Measured]) -> list[Comparison]:
    """One comparison for each selection of images with measured predictions, at image resolution if possible.

    Those on masks that the network was trained on come last.
    """
    found: dict[tuple[tuple[str, ...], str], Comparison] = {}
    for each in sorted(measured, key=lambda group: group.resolution != "image"):
        by_name: dict[str, tuple[dict[str, Any], str]] = {}
        for record, note in zip(each.metrics, each.notes, strict=True):
            by_name.setdefault(record["labels"], (dict(record), note))  # metrics with the current settings come first
        if NETWORK in by_name:
            found.setdefault((each.splits, each.part), _comparison(each, by_name))
    return sorted(found.values(), key=lambda each: bool(each.metrics[0].get("trained_on")))


def _comparison(measured: Measured, by_name: dict[str, tuple[dict[str, Any], str]]) -> Comparison:
    metrics, notes = zip(*(by_name[name] for name in (NETWORK, *PEERS) if name in by_name), strict=True)
    counts = np.array(metrics[0]["confusion_matrix"], dtype=float)
    names = tuple(metrics[0]["iou"])
    is_complete = not counts[:, -1].any()
    columns = names if is_complete else (*names, "unlabelled")
    matrix = tuple(tuple(row / row.sum()) if row.sum() else () for row in counts[:, : len(columns)])
    return Comparison(measured, metrics, notes, names, columns, matrix)


def worst_predictions(
    run: Run, manifest: Manifest, steps: Mapping[str, StepState], predicted: np.ndarray
) -> Worst | None:
    """Compares the predicted images with their masks and draws the worst; without masks, some that are spread evenly.

    If there are very many images, a sample of them is compared.

    Args:
        steps: the states of the steps.
        predicted: the rows that have predictions.
    """
    sample = spread(predicted, MOST_COMPARED)
    if not sample:
        return None
    is_seeded = finished_rows(
        () if steps["seeds"].state == "outdated" else steps["seeds"].receipts, manifest.num_images
    )
    caption = with_state("Prediction", steps["predictions"])
    run = run.reading("predictions")
    seeds = run.seeds() if is_seeded.any() else None

    def draw(index: int) -> Example:
        seeds_of = seeds.read(index) if seeds is not None and is_seeded[index] else None
        return _example(run, manifest, index, seeds_of, errors[index], caption)

    with ThreadPoolExecutor(run.config.images.read_concurrency) as pool:
        found = dict(zip(sample, pool.map(partial(look_at_prediction, run, manifest), sample), strict=True))
        errors = {index: error for index, (error, _) in found.items()}
        shown = most_telling(errors, NUM_WORST)
        examples = tuple(pool.map(draw, shown))
    labels = frozenset[int]().union(*(labels for _, labels in found.values()))
    labelled = {label for index in shown for label in manifest.rows(index, index + 1)[0].labels}
    classes = tuple(sorted(labelled | {label - 1 for label in labels if 0 < label <= manifest.num_classes}))
    return Worst(examples, seeds.grid if seeds else None, len(sample), len(predicted), labels, classes)


def most_telling(errors: Mapping[int, float | None], number: int) -> list[int]:
    """The images with the largest errors; if there are too few, also images without a mask, spread evenly."""
    compared = {index: error for index, error in errors.items() if error is not None}
    worst = sorted(compared, key=lambda index: compared[index], reverse=True)[:number]
    others = np.array([index for index in errors if index not in compared], dtype=int)
    return worst + spread(others, number - len(worst))


def look_at_prediction(run: Run, manifest: Manifest, index: int) -> tuple[float | None, frozenset[int]]:
    """An image's error, and the labels in its prediction before or after the CRF.

    The error is 1 - mean IoU, in [0, 1], over the labels in its mask or prediction; None if there is no mask.
    """
    row = manifest.rows(index, index + 1)[0]
    truth, labels = read_truth(run, manifest, row), _read_prediction(run, row.image_id)
    if labels is None:
        return None, frozenset()
    unrefined = _read_prediction(run, row.image_id, "unrefined")
    kinds = (labels,) if unrefined is None else (labels, unrefined)
    found = frozenset[int]().union(*(np.unique(kind).tolist() for kind in kinds))
    if not isinstance(truth, np.ndarray):
        return None, found
    num_classes = manifest.num_classes
    matrix = confusion_matrix(truth, resize_labels(labels, truth.shape), num_classes, ignore_value(num_classes))
    return 1 - label_metrics(matrix).mean_iou if matrix.any() else None, found


def _example(
    run: Run, manifest: Manifest, index: int, seeds: np.ndarray | None, error: float | None, caption: str
) -> Example:
    row = manifest.rows(index, index + 1)[0]
    truth, labels = read_truth(run, manifest, row), _read_prediction(run, row.image_id)
    ignore, tiles = ignore_value(manifest.num_classes), [Tile("image", "Image")]
    if seeds is not None:
        tiles.append(Tile("seeds", "Seeds", labels_uri(seeds, ignore)))
    if labels is not None:
        tiles.append(Tile("prediction", caption, labels_uri(shrunk(labels), ignore)))
    if isinstance(truth, np.ndarray):
        tiles.append(Tile("truth", "Truth", labels_uri(shrunk(truth), ignore)))
    return Example(picture_of(run, index, row, truth), error, tuple(tiles))


def _read_prediction(run: Run, image_id: str, kind: str = "labels") -> np.ndarray | None:
    """The predicted labels of an image; None if there are none."""
    try:
        return run.labels("predictions", kind).read(image_id)
    except FileNotFoundError:
        return None
