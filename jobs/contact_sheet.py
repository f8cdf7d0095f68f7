"""Draws a contact sheet of a run's maps: image, deterministic map, maximum, mean and truth, side by side.

An image has a row for each of its mapped classes. The truth is left out where no image shown has a mask.
"""

import io
from dataclasses import dataclass, field

import numpy as np

from cluster.words import plural
from jobs.command_line import job_parser, run_main
from jobs.deterministic import DeterministicMapper
from jobs.dry_run import print_other_job
from jobs.pictures import SheetRow, contact_sheet, heat_tile, image_tile, label_colours, label_tile
from jobs.report_gallery import mapped_images, read_truth, spread
from jobs.run import Run, open_run
from storage.images import read_image
from storage.label_values import ignore_value
from storage.location import Location
from storage.manifest import Manifest
from storage.map_store import MapStore
from storage.steps import Step

SHEET = "report/contact_sheet.png"
COLUMNS = ["image", "deterministic", "maximum", "mean", "truth"]


EXAMPLES = """examples:
  python jobs/contact_sheet.py --run /data/voc
  python jobs/contact_sheet.py --run s3://bucket/voc --images 20
"""


def main(arguments: list[str]) -> None:
    parser = job_parser("contact_sheet", f"{__doc__}\n{EXAMPLES}")
    parser.add_argument("--images", type=int, default=8, metavar="N", help="images, spread over the mapped ones (8)")
    given = parser.parse_args(arguments)
    if given.images < 1:
        raise ValueError(f"--images {given.images}: give the number of images, 1 or more.")
    run = open_run(given.run, given.config, given.set)
    if given.dry_run:
        num_mapped = len(_mapped_images(run, run.manifest()))
        what = f"{min(given.images, num_mapped)} of {plural(num_mapped, 'mapped image')} on one picture"
        print_other_job("contact_sheet", what, run.location / SHEET)
        return
    print(f"contact sheet: {draw_contact_sheet(run, given.images)}")


def draw_contact_sheet(run: Run, num_images: int) -> Location:
    """Draws images spread evenly over the mapped ones; returns the picture's place.

    Raises:
        ValueError: no image is mapped yet.
    """
    manifest = run.manifest()
    mapped = _mapped_images(run, manifest)
    if len(mapped) == 0:
        command = run.command("generate_maps")
        raise ValueError(f"contact_sheet: no maps yet. Run '{command}' first.")
    artist = Artist(run, manifest, MapStore.open(run.location / "maps" / "maps.zarr"), DeterministicMapper(run))
    rows = [row for index in spread(mapped, num_images) for row in artist.rows(index)]
    buffer = io.BytesIO()
    contact_sheet(COLUMNS, rows, artist.legend()).save(buffer, "PNG")
    place = run.location / SHEET
    place.write_bytes(buffer.getvalue())
    return place


def _mapped_images(run: Run, manifest: Manifest) -> np.ndarray:
    receipts = list(Step(run.location / "maps").receipts().values())
    return mapped_images(manifest, receipts, without_labels=run.config.maps.classes == "predicted")


@dataclass
class Artist:
    """Draws the rows of one image after the other.

    Attributes:
        labels: those that the truths drawn so far show.
    """

    run: Run
    manifest: Manifest
    maps: MapStore
    mapper: DeterministicMapper
    labels: set[int] = field(default_factory=set)

    def rows(self, index: int) -> list[SheetRow]:
        """One for each mapped class of an image."""
        entry, maps = self.manifest.rows(index, index + 1)[0], self.maps.read(index)
        image = read_image(entry.uri, self.run.config.images.max_pixels)
        tile, truth_tile = image_tile(image), None
        truth = read_truth(self.run, self.manifest, entry)
        if isinstance(truth, np.ndarray):
            truth_tile = label_tile(truth, ignore_value(self.manifest.num_classes), tile.size)
            self.labels.update(np.unique(truth).tolist())
        stacks = zip(self.mapper(image, maps.classes), maps.max, maps.mean, strict=True)
        return [
            SheetRow(
                f"{entry.image_id}: {self.manifest.class_names[number]}, score {score:.1f}{_remark(stack[1], score)}",
                [tile, *(heat_tile(tile, evidence) for evidence in stack), truth_tile],
            )
            for number, score, stack in zip(maps.classes, maps.score, stacks, strict=True)
        ]

    def legend(self) -> dict[str, np.ndarray]:
        """The colours of the truths' labels, by name."""
        names = dict(enumerate(["background", *self.manifest.class_names]))
        ignored = ignore_value(self.manifest.num_classes)
        return {names.get(label, "ignored"): label_colours(np.array(label), ignored) for label in sorted(self.labels)}


def _remark(maximum: np.ndarray, score: float) -> str:
    if not maximum.any():
        return ": maps are blank, as no sample found any evidence"
    return ": not recognised by the classifier" if score < 0 else ""


if __name__ == "__main__":
    run_main(main)
