"""The contact sheet of a run's maps: image, deterministic map, maximum, mean and truth, side by side."""

import io
from dataclasses import dataclass, field

import numpy as np

from jobs.maps.deterministic import DeterministicMapper
from jobs.maps.stored_geometry import stored_geometry
from jobs.reporting.gallery import mapped_images, read_truth, spread
from jobs.reporting.pictures import SheetRow, contact_sheet, heat_tile, image_tile, label_colours, label_tile
from jobs.run.directory import Run
from jobs.run.origin import only_masks
from storage.images import read_image
from storage.label_values import ignore_value
from storage.location import Location
from storage.manifest import Manifest
from storage.map_store import MapStore

SHEET = "report/contact_sheet.png"
COLUMNS = ["image", "deterministic", "maximum", "mean", "truth"]


def draw_contact_sheet(run: Run, num_images: int) -> Location:
    """Draws images, spread evenly over those with maps; returns the place of the picture.

    Raises:
        ValueError: no image has maps yet.
    """
    manifest = run.manifest()
    mapped = rows_with_maps(run, manifest)
    if len(mapped) == 0:
        raise ValueError(only_masks(run) or f"contact_sheet: no maps yet. Run '{run.step_command('maps')}' first.")
    artist = Artist(run, manifest, run.maps(), DeterministicMapper(run))
    rows = [row for index in spread(mapped, num_images) for row in artist.rows(index)]
    buffer = io.BytesIO()
    contact_sheet(COLUMNS, rows, artist.legend()).save(buffer, "PNG")
    place = run.location / SHEET
    place.write_bytes(buffer.getvalue())
    return place


def rows_with_maps(run: Run, manifest: Manifest) -> np.ndarray:
    """The rows of the manifest that have maps, ascending."""
    receipts = list(run.step("maps").receipts().values())
    return mapped_images(manifest, receipts, without_labels=run.config.maps.classes == "predicted")


@dataclass
class Artist:
    """Draws the rows of one image at a time.

    Attributes:
        labels: the labels in the truths that were drawn so far.
    """

    run: Run
    manifest: Manifest
    maps: MapStore
    mapper: DeterministicMapper
    labels: set[int] = field(default_factory=set)

    def rows(self, index: int) -> list[SheetRow]:
        """One row for each mapped class of an image."""
        entry, maps = self.manifest.rows(index, index + 1)[0], self.maps.read(index)
        image = read_image(entry.uri, **self.run.config.images.limits)
        tile, truth_tile = image_tile(image), None
        truth = read_truth(self.run, self.manifest, entry)
        if isinstance(truth, np.ndarray):
            truth_tile = label_tile(truth, ignore_value(self.manifest.num_classes), tile.size)
            self.labels.update(np.unique(truth).tolist())
        geometry = stored_geometry(self.maps)
        stacks = zip(self.mapper(image, maps.classes), maps.max, maps.mean, strict=True)
        return [
            SheetRow(
                f"{entry.image_id}: {self.manifest.class_names[number]}, score {score:.1f}{_remark(stack[1], score)}",
                [tile, *(heat_tile(tile, evidence, geometry) for evidence in stack), truth_tile],
            )
            for number, score, stack in zip(maps.classes, maps.score, stacks, strict=True)
        ]

    def legend(self) -> dict[str, np.ndarray]:
        """The colours of the labels in the truths, by name."""
        names = dict(enumerate(["background", *self.manifest.class_names]))
        ignored = ignore_value(self.manifest.num_classes)
        return {names.get(label, "ignored"): label_colours(np.array(label), ignored) for label in sorted(self.labels)}


def _remark(maximum: np.ndarray, score: float) -> str:
    if not maximum.any():
        return ": the maps are empty, because no sample found evidence"
    return ": not recognised by the classifier" if score < 0 else ""
