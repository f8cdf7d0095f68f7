"""Puts corrected masks into a run, or writes a table in which they are a separate split."""

import csv
import hashlib
import io
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cluster.words import plural
from jobs.exports.corrections.objects import CorrectedMask
from jobs.exports.corrections.reading import read_corrected_masks
from jobs.exports.exporter import LABELS, classes_of, image_size_of
from jobs.exports.image_names import ImageNames, source_path, stem
from jobs.run.corrected_masks import CORRECTED
from jobs.run.directory import Run
from jobs.run.origin import origin_of
from storage.drawings import encode_mask
from storage.images import decode_mask
from storage.location import Location
from storage.manifest import Manifest, ManifestRow, write_manifest
from storage.names import safe_name

SPLIT = "corrected"  # the split of corrected images in a table


@dataclass(frozen=True)
class Corrections:
    """The masks, by the row of their image in the manifest, and the names of images without any object."""

    masks: dict[int, CorrectedMask]
    empty: tuple[str, ...]


def read_corrections(run: Run, place: Location, *, empty_is_background: bool = False) -> Corrections:
    """Reads corrected masks and finds their images in the run.

    Args:
        empty_is_background: also use images without an object; all their pixels are background.

    Raises:
        ValueError: a file cannot be read, an image is not in the run, or a mask has another size.
    """
    manifest = run.manifest()
    _require_source_values(run, place)
    row_of = _rows_by_name(manifest)
    masks, empty = dict[int, CorrectedMask](), []

    def row_called(name: str) -> int:
        if (row := _find(row_of, name)) is None:
            raise ValueError(f"{place}: no image of {run.uri} is called {name!r}. {_hint(row_of, name)}")
        return row

    def size_of(name: str) -> tuple[int, int]:
        row = row_called(name)
        return image_size_of(manifest.rows(row, row + 1)[0])

    for mask in read_corrected_masks(place, classes_of(manifest), size_of):
        if mask.num_objects == 0 and not empty_is_background:
            empty.append(mask.name)
            continue
        row = row_called(mask.name)
        if row in masks:
            raise ValueError(f"{place}: the image {mask.name!r} has two masks. Keep one.")
        entry = manifest.rows(row, row + 1)[0]
        if mask.size and entry.height and (entry.height, entry.width) != mask.size:
            raise ValueError(
                f"{place}: {mask.name!r} has {mask.size[1]} x {mask.size[0]} pixels, but the run's image has "
                f"{entry.width} x {entry.height}. Correct masks on the images of the run."
            )
        masks[row] = mask if mask.data else _background(mask, image_size_of(entry))
    if not masks:
        raise ValueError(f"{place}: has no mask with an object; give --empty-is-background to use empty ones.")
    return Corrections(masks, tuple(empty))


def _require_source_values(run: Run, place: Location) -> None:
    """Refuses the run's own folders of masks if their class numbers are not the data set's class values.

    Raises:
        ValueError: it is such a folder.
    """
    folders = [run.step(name).location.uri for name in LABELS]
    if not run.manifest().has_counted_values and any(f"{place}/".startswith(f"{folder}/") for folder in folders):
        raise ValueError(
            f"--masks {place}: the masks of a step have the run's class numbers, not the data set's values. If you "
            f"edited some of them, run '{run.command('verify', '--repair')}': it copies these to another folder, with "
            "the data set's values, and prints the command that imports them."
        )


def _background(mask: CorrectedMask, size: tuple[int, int]) -> CorrectedMask:
    return replace(mask, data=encode_mask(np.zeros(size, np.uint8)))


def write_masks(run: Run, corrections: Corrections) -> dict[int, Location]:
    """Writes the masks into the run, in a folder named after their content; equal masks go to the same folder."""
    manifest = run.manifest()
    digest = hashlib.sha256()
    for row, mask in sorted(corrections.masks.items()):
        digest.update(f"{row} {hashlib.sha256(mask.data).hexdigest()}\n".encode())
    folder = run.location / CORRECTED / digest.hexdigest()[:12]
    places = {}
    for row, mask in corrections.masks.items():
        places[row] = folder / f"{safe_name(manifest.rows(row, row + 1)[0].image_id)}.png"
        places[row].write_bytes(mask.data)
    return places


def put_into_run(run: Run, places: dict[int, Location]) -> list[str]:
    """Enters the masks in the run's manifest. Nothing else in it changes, so maps and seeds do not become outdated.

    Returns:
        The splits of the images.
    """
    manifest, below = run.manifest(), f"{run.location.uri}/"
    rows = list(manifest.iter_written_rows())
    for row, place in places.items():
        rows[row] = replace(rows[row], mask_uri=place.uri.removeprefix(below))
    write_manifest(
        run.location / "manifest.parquet",
        rows,
        manifest.class_names,
        manifest.class_values,
        manifest.moves,
        additions=manifest.additions,
    )
    Manifest.forget()
    splits = sorted({rows[row].split for row in places})
    strong = [split for split in splits if run.config.data.role_of(split) == "train"]
    given = [row for row in rows if row.mask_uri and not row.mask_uri.startswith(f"{CORRECTED}/")]
    others = sum(row.split in strong for row in given)
    if others and not origin_of(run):  # a run of new images is never trained
        print(
            f"import: {plural(others, 'other image')} of {', '.join(strong)} with masks: these masks are also used if "
            "this split is strong. For a split with only the corrected images, give --table."
        )
    return splits


def write_table(run: Run, places: dict[int, Location], table: Location) -> str:
    """Writes all images of the run as a table for a new run; the corrected images are the split `SPLIT`.

    Returns:
        The flags of prepare_dataset for this table.
    """
    manifest = run.manifest()
    rows = [
        _cells(row, manifest, places.get(number)) for number, row in enumerate(manifest.iter_rows()) if not row.problem
    ]
    _write_csv(table, ["id", "image", "labels", "split", "mask", "saliency"], rows)
    pairs = [f"{value}={name}" for value, name in zip(manifest.class_values, manifest.class_names, strict=True)]
    values = "" if manifest.has_counted_values else f" --mask-values '{','.join(pairs)}'"
    return f"--csv {table} --classes '{','.join(manifest.class_names)}'{values}"


def write_addition(run: Run, places: dict[int, Location], table: Location, split: str) -> str:
    """Writes the corrected images of a run of new images as a table, to add them to the run with the network.

    Their labels are the classes in their masks. The table has no ids, because an image of the other run may have the
    same one.

    Args:
        split: the split of the images in the other run.

    Returns:
        The flags of prepare_dataset for this table.
    """
    manifest, rows = run.manifest(), []
    for number, mask in sorted(places.items()):
        _, uri, labels, *_ = _cells(manifest.rows(number, number + 1)[0], manifest, mask)
        rows.append([uri, labels, split, mask.uri])
    _write_csv(table, ["image", "labels", "split", "mask"], rows)
    has_negatives = not all(labels for _, labels, *_ in rows)
    return f"--csv {shlex.quote(table.uri)} --add{' --unlabelled-are-negative' if has_negatives else ''}"


def _write_csv(table: Location, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    table.write_bytes(text.getvalue().encode())


def _cells(row: ManifestRow, manifest: Manifest, mask: Location | None) -> list[str]:
    """A row of a table for a new run. An image without labels has those of its corrected mask."""
    numbers = row.labels or (classes_in(mask.read_bytes(), manifest) if mask else ())
    labels = ";".join(manifest.class_names[label] for label in sorted(numbers))
    split, mask_uri = (SPLIT, mask.uri) if mask else (row.split, row.mask_uri or "")
    return [row.image_id, row.uri, labels, split, mask_uri, row.saliency_uri or ""]


def classes_in(data: bytes, manifest: Manifest) -> set[int]:
    """The numbers of the classes, 0..C-1, in a mask's file."""
    labels = np.unique(decode_mask(data, manifest.class_values))
    return {int(label) - 1 for label in labels if 0 < label <= manifest.num_classes}


def _rows_by_name(manifest: Manifest) -> dict[str, int]:
    """Rows by the names of images in exports (file name, id, id as file name), without suffixes.

    Exports that were made before images were added may have the source's paths as names.
    """
    names, found, earlier = ImageNames.of(manifest), dict[str, int](), dict[str, int]()
    for number, entry in enumerate(manifest.iter_rows()):
        if not entry.problem:
            for name in (entry.image_id, safe_name(entry.image_id), stem(names.file_name(entry))):
                found.setdefault(name, number)
            earlier[stem(source_path(entry.image_id, entry.uri))] = number
    return {**earlier, **found}


def _find(row_of: dict[str, int], name: str) -> int | None:
    """The row of a file name with its folders, or without the first folders, which a tool may have added."""
    parts = stem(name).split("/")
    ends = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((row_of[end] for end in ends if end in row_of), None)


def _hint(row_of: dict[str, int], name: str) -> str:
    """What is wrong with the name of no image: its folders are missing, or it is another one."""
    last = stem(name).rpartition("/")[2]
    same = {row: known for known, row in row_of.items() if "/" in known and known.rpartition("/")[2] == last}
    if same:
        first = next(iter(same.values()))
        others = f" or another of the {len(same):,} images with this file name" if len(same) > 1 else ""
        return f"Did you mean {first!r}{others}? Keep the folders in the names of the export."
    return "Were its files renamed?"
