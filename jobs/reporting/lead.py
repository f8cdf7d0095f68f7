"""The first pictures of the page: a few images with their masks, and where the maps are in doubt."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ficklenet.metrics import disagreement
from jobs.reporting.gallery import Picture, Tile, labelled_rows, picture_of, shrunk, spread, with_state
from jobs.reporting.thumbnails import doubt_uri, labels_uri
from jobs.run.directory import Run
from jobs.steps.states import StepState
from storage.label_values import ignore_value
from storage.manifest import Manifest
from storage.map_store import ImageMaps

NUM_PICTURES = 6
KINDS = ("predictions", "pseudo_labels")  # of masks at image size, the finest first


@dataclass(frozen=True)
class Lead:
    """The pictures.

    Attributes:
        sources: the steps that made the masks; none if there are only maps.
        pictures: each image with its tiles: photograph, masks, doubt.
        disagreements: of each image, of its most doubtful class; None if no sample exceeds theta.
        classes: the classes of the images, for the legend.
    """

    sources: tuple[str, ...]
    pictures: tuple[tuple[Picture, tuple[Tile, ...]], ...]
    disagreements: tuple[float | None, ...]
    classes: tuple[int, ...]


def lead_pictures(
    run: Run, manifest: Manifest, steps: Mapping[str, StepState], mapped: np.ndarray, theta: float, proposed: str = ""
) -> Lead | None:
    """Draws a few images with maps, spread evenly, with their masks; None without such images.

    Args:
        mapped: the rows that have maps.
        theta: the seeds' threshold.
        proposed: the step whose masks are shown; "", or without such masks: predictions and pseudo-labels, side by
            side, because nothing says which are better; or else the seeds.
    """
    found = {
        name: np.intersect1d(mapped, labelled_rows(run, manifest, name, steps[name])) for name in (*KINDS, "seeds")
    }
    of_both = np.intersect1d(found["predictions"], found["pseudo_labels"])
    sources: tuple[str, ...]
    if proposed and len(found[proposed]):
        sources, rows = (proposed,), found[proposed]
    elif len(of_both):
        sources, rows = KINDS, of_both
    else:
        sources = tuple(name for name in found if len(found[name]))[:1]
        rows = found[sources[0]] if sources else mapped
    if len(rows) == 0:
        return None
    store, chosen = run.maps(), spread(rows, NUM_PICTURES)

    def draw(index: int) -> tuple[Picture, tuple[Tile, ...], float | None]:
        row, maps = manifest.rows(index, index + 1)[0], store.read(index)
        tiles = [Tile("image", "Photograph")]
        tiles += [_mask_tile(run, manifest, steps[source], source, index, row.image_id) for source in sources]
        values = [disagreement(*pair, theta) for pair in zip(maps.max, maps.mean, strict=True)]
        doubt = max((value for value in values if value is not None), default=None)
        tiles.append(Tile("doubt", with_state("Doubt", steps["maps"]), doubt_uri(_is_doubtful(maps, theta))))
        return picture_of(run, index, row, None), tuple(tiles), doubt

    with ThreadPoolExecutor(run.config.images.read_concurrency) as pool:
        drawn = list(pool.map(draw, chosen))
    classes = {label for index in chosen for label in manifest.rows(index, index + 1)[0].labels}
    return Lead(
        sources,
        tuple((picture, tiles) for picture, tiles, _ in drawn),
        tuple(doubt for _, _, doubt in drawn),
        tuple(sorted(classes)),
    )


def _mask_tile(run: Run, manifest: Manifest, state: StepState, source: str, index: int, image_id: str) -> Tile:
    ignore = ignore_value(manifest.num_classes)
    caption = with_state(f"Mask: {state.name}", state)
    if source == "seeds":
        return Tile("seeds", caption, labels_uri(run.seeds().read(index), ignore))
    return Tile("prediction", caption, labels_uri(shrunk(run.labels(source).read(image_id)), ignore))


def _is_doubtful(maps: ImageMaps, theta: float) -> np.ndarray:
    """Bool (h, w): where some sample finds a class, but the mean of the samples does not."""
    return np.asarray(((maps.max > theta) & (maps.mean <= theta)).any(axis=0))
