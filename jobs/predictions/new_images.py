"""Masks for new images, which are not in a run. They get a run of their own, with a copy of the network.

The output is a normal run: it has a manifest, the step `predictions`, a copy of the trained network, and `origin.json`,
which says where the network came from. So the same commands resume, export and show it.
"""

import os
from collections.abc import Iterator
from dataclasses import replace

from cluster.words import plural
from jobs.run.directory import Run
from jobs.run.fingerprints import outdated_in_words
from jobs.run.origin import write_origin
from jobs.run.training_record import kept_bytes, read_complete
from jobs.steps.networks import require_network
from storage.image_paths import id_of_path
from storage.image_table import TableOptions, read_image_table, read_parquet_table
from storage.location import Location
from storage.manifest import Manifest, ManifestRow, write_manifest
from storage.sources import SourceImage, join_images
from storage.tree import files_below, is_image_name, is_inside, require_no_results

SPLIT = "new"  # the split of all images of such a run


def output_run(run: Run, images: Location, out: Location, *, restart: bool = False, dry_run: bool = False) -> Run:
    """The run with the masks of new images; it is created or continued.

    Args:
        run: the run with the network and the settings.
        images: a folder, which is searched for images, or a table with the column `image`.
        restart: make the list of images and the copy of the network again.
        dry_run: return the run only if it exists; else print what would be done.

    Raises:
        NotYet: the run's network is not trained.
        ValueError: there are no images, the output lies among them, or it was started with other images or another
            network.
    """
    name = run.config.predictions.network
    network = require_network(run, name, "predict_masks")
    if out == run.location:
        raise ValueError(f"--out {out}: this is the run itself. Give another folder for the masks of new images.")
    if _is_searched(images) and is_inside(out, images):
        raise ValueError(
            f"--out {out}: is in the folder of --images, of which every file is read, so the masks would be taken for "
            f"photographs. Give a folder outside {images}, such as --out {images.parent}/{images.name}-masks."
        )
    found, notes = find_images(images)
    rows = [_row(image) for image in found]
    predictions = run.config.predictions.model_copy(update={"splits": (SPLIT,)})
    output = Run(out, run.config.model_copy(update={"predictions": predictions}))
    place, copy = out / "manifest.parquet", out / name
    recorded = read_complete(copy)
    if not restart and place.exists():
        _require_same_images(output.manifest(), rows, images)
    if not restart and recorded and recorded["sha256"] != network.sha256:
        raise ValueError(
            f"{out}: was started with the {name} {recorded['sha256'][:8]}, but {run.uri} has {network.sha256[:8]} now. "
            "Give another --out, or --restart predictions to predict everything with the new network."
        )
    print(f"predict: {plural(len(rows), 'image')} with the network {name!r} ({network.sha256[:8]}) of {run.uri}")
    for note in notes:
        print(f"predict: {note}")
    names = run.manifest().class_names
    print(
        f"predict: an object of another class gets one of the run's classes ({', '.join(names[:10])}"
        f"{', ...' if len(names) > 10 else ''}) or background. No classifier checks new images, so look at the masks."
    )
    if outdated := outdated_in_words(run, name):
        print(f"predict: WARNING: {outdated}")
    if dry_run:
        return output
    if restart or not place.exists():
        if place.exists():
            rows = _with_masks(rows, output.manifest(), run.manifest())
        write_manifest(place, rows, run.manifest().class_names, run.manifest().class_values, home=out)
        Manifest.forget()
    if restart or recorded is None:
        original = run.step(name).data()
        (copy / "model.pt").write_bytes(kept_bytes(run, name)[0])
        (copy / "complete.json").write_bytes((original / "complete.json").read_bytes())
    write_origin(output, run, name, network.sha256, images.uri)
    return output


def find_images(place: Location) -> tuple[list[SourceImage], list[str]]:
    """One image, or the images of a table, or of a folder and its subfolders, each with its own id, and notes.

    Raises:
        ValueError: there are none, or a run lies among them.
    """
    if _is_table(place):
        read = read_image_table if place.name.lower().endswith(".csv") else read_parquet_table
        found = list(read(place, place.parent, TableOptions(needs_labels=False)).images)
    elif not _is_searched(place):
        found = [SourceImage(id_of_path(place.name), place.uri)]
    else:
        paths = files_below(place)
        require_no_results(place, paths)
        found = [SourceImage(id_of_path(path), (place / path).uri) for path in paths if is_image_name(path)]
    if not found:
        is_missing = place.is_local and not os.path.exists(place.uri)
        raise ValueError(
            f"--images {place}: {'no such folder' if is_missing else 'no images there'}. Give an image, a folder, a "
            "table (.csv, .parquet) or an s3:// prefix."
        )
    return join_images(found, is_split_ordered=True)


def _is_table(place: Location) -> bool:
    return place.name.lower().endswith((".csv", ".parquet"))


def _is_searched(place: Location) -> bool:
    """Whether the place is a folder or prefix whose files are the images."""
    return not _is_table(place) and not (is_image_name(place.name) and place.exists())


def _row(image: SourceImage) -> ManifestRow:
    return ManifestRow(image.image_id, image.uri, split=SPLIT, problem=image.problem)


def _with_masks(rows: list[ManifestRow], earlier: Manifest, manifest: Manifest) -> list[ManifestRow]:
    """The rows with the masks that were imported for their images, unless the classes have changed; says how many."""
    if (earlier.class_names, earlier.class_values) != (manifest.class_names, manifest.class_values):
        return rows
    both = zip(earlier.iter_rows(), earlier.iter_written_rows(), strict=True)
    masks = {row.uri: written.mask_uri for row, written in both}
    rows = [replace(row, mask_uri=masks.get(row.uri)) for row in rows]
    if number := sum(bool(row.mask_uri) for row in rows):
        print(
            f"predict: {plural(number, 'imported mask')} stay{'s' if number == 1 else ''} in the run. They do not "
            "measure a network that was trained on them."
        )
    return rows


def _require_same_images(manifest: Manifest, rows: list[ManifestRow], images: Location) -> None:
    """Refuses images that differ from those that the output was started with, because its units would change."""

    def addresses() -> Iterator[str]:
        for batch in manifest.iter_columns(["uri"]):
            yield from batch["uri"]

    if list(addresses()) != [row.uri for row in rows]:
        raise ValueError(
            f"{manifest.location.parent}: was started with {plural(manifest.num_images, 'image')}, but {images} has "
            f"other images now ({len(rows):,}). Give another --out for the new images, or --restart predictions to "
            "predict all of them again."
        )
