"""Draws a contact sheet of a run's maps: image, deterministic map, maximum, mean and truth, side by side."""

import io

import numpy as np

from jobs.command_line import job_parser, run_main
from jobs.deterministic import DeterministicMapper
from jobs.dry_run import print_other_job
from jobs.pictures import SheetRow, contact_sheet, heat_tile, image_tile, label_tile
from jobs.run import Run, open_run
from storage.images import read_image, read_mask
from storage.location import Location
from storage.manifest import Manifest
from storage.map_store import MapStore
from storage.steps import Step

SHEET = "report/contact_sheet.png"
COLUMNS = ["image", "deterministic", "max", "mean", "truth"]


EXAMPLES = """examples:
  python jobs/contact_sheet.py --run /data/voc
  python jobs/contact_sheet.py --run s3://bucket/voc --images 20
"""


def main(arguments: list[str]) -> None:
    parser = job_parser("contact_sheet", f"{__doc__}\n{EXAMPLES}")
    parser.add_argument("--images", type=int, default=8, metavar="N", help="rows, spread over the mapped images (8)")
    given = parser.parse_args(arguments)
    if given.images < 1:
        raise ValueError(f"--images {given.images}: give the number of rows, 1 or more.")
    run = open_run(given.run, given.config, given.set)
    if given.dry_run:
        num_mapped = len(_mapped_images(run, run.manifest()))
        what = f"{min(given.images, num_mapped)} of {num_mapped:,} mapped images on one picture"
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
    if not mapped:
        command = run.command("generate_maps")
        raise ValueError(f"contact_sheet: no maps yet. Run '{command}' first.")
    chosen = [mapped[int(place)] for place in np.linspace(0, len(mapped) - 1, min(num_images, len(mapped)))]
    store, mapper = MapStore.open(run.location / "maps" / "maps.zarr"), DeterministicMapper(run)
    sheet = contact_sheet(COLUMNS, [_row(manifest, store, mapper, index) for index in chosen])
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    place = run.location / SHEET
    place.write_bytes(buffer.getvalue())
    return place


def _mapped_images(run: Run, manifest: Manifest) -> list[int]:
    """Rows of finished units that were not skipped and have labels."""
    found = []
    for receipt in sorted(Step(run.location / "maps").receipts().values(), key=lambda receipt: receipt.start):
        skipped = {skip.image_id for skip in receipt.skipped}
        rows = manifest.rows(receipt.start, receipt.stop)
        found += [receipt.start + n for n, row in enumerate(rows) if row.labels and row.image_id not in skipped]
    return found


def _row(manifest: Manifest, store: MapStore, mapper: DeterministicMapper, index: int) -> SheetRow:
    """One image with the class it scores highest for."""
    entry, maps = manifest.rows(index, index + 1)[0], store.read(index)
    image = read_image(entry.uri)
    slot = int(maps.score.argmax())
    plain = mapper(image, maps.classes)[slot]
    truth = label_tile(read_mask(entry.mask_uri, manifest.class_values)) if entry.mask_uri else None
    heats = [heat_tile(image, evidence) for evidence in (plain, maps.max[slot], maps.mean[slot])]
    name = manifest.class_names[maps.classes[slot]]
    return SheetRow(f"{entry.image_id}: {name}, score {maps.score[slot]:.1f}", [image_tile(image), *heats, truth])


if __name__ == "__main__":
    run_main(main)
