"""Reads the source that the flags of `prepare_dataset` name, and joins its rows to images with class names."""

import argparse
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cluster.words import plural
from jobs.preparation.split_roles import set_aside
from storage.class_folders import read_class_folders
from storage.coco import coco_parts, read_coco
from storage.hugging_face import is_hugging_face_table, read_hugging_face
from storage.image_table import TableOptions, read_image_table, read_parquet_table
from storage.label_cells import SEPARATORS
from storage.labelme import read_labelme
from storage.location import Location
from storage.manifest import Manifest
from storage.sources import (
    Source,
    SourceImage,
    join_images,
    label_names,
    number_labels,
    with_files,
    with_negatives,
)
from storage.text import clean_name, decode_text
from storage.voc import read_voc

# The flags that each source allows; flags for all sources are not listed
SOURCE_FLAGS = {
    "voc": ("labels", "masks", "saliency", "mask_values"),
    "coco": ("saliency", "images", "crowds_are_objects"),
    "csv": (
        "images",
        "image_column",
        "label_column",
        "label_separator",
        "encoding",
        "minus_one",
        "first_class",
        "mask_values",
    ),
    "parquet": ("images", "image_column", "label_column", "label_separator", "minus_one", "first_class", "mask_values"),
    "folders": ("masks", "saliency", "mask_values"),
    "hugging_face": ("image_column", "label_column", "first_class"),
    "labelme": ("saliency",),
}
FLAGS_OF_SOURCES = sorted(
    {flag for flags in SOURCE_FLAGS.values() for flag in flags if flag != "images"}
    | {"classes", "split", "val_fraction", "negative_label", "unlabelled_are_negative"}
)
"""All flags that say how a source is read."""


@dataclass(frozen=True)
class Listing:
    """The data to prepare.

    Attributes:
        source: the source with joined images, which have their final labels and ids.
        class_names, class_values: the class list; if the values are None, they are 1..C.
        is_found: the class list is all labels that occur.
    """

    source: Source
    class_names: tuple[str, ...]
    class_values: tuple[int, ...] | None
    is_found: bool


def read_listing(given: argparse.Namespace, root: Location, into: Manifest | None = None) -> Listing:
    """Reads the source that the command line names.

    Args:
        given: the flags of `prepare_dataset`.
        root: where pictures that are inside the source's files are written.
        into: the manifest to which the images are added. Its classes hold; the source need not have all of them.

    Raises:
        ValueError: the source or a flag cannot be used.
    """
    name = source_name(given)
    _refuse_misplaced(given, name)
    if into:
        _refuse_with_add(given, name)
    chosen = into.class_names if into else read_class_names(given.classes) if given.classes else None
    source = _read(given, name, chosen, root)
    notes = list(source.notes)
    images = list(source.images)
    if name in ("csv", "parquet", "hugging_face") and chosen:
        images = number_labels(images, chosen, given.first_class)
    if name in ("folders", "hugging_face") and chosen:
        if not into:
            _require_labels(chosen, label_names(images))
        images, note = _with_chosen(images, chosen, given.negative_label)
        notes += note
    if given.negative_label:
        _require_negative(given.negative_label, label_names(images))
    images = with_negatives(images, given.negative_label, is_unlabelled_negative=given.unlabelled_are_negative)
    joined, joins = join_images(images, is_split_ordered=name in ("voc", "coco"))
    joined, without_files = with_files(joined, *_folders(given, name))
    joins += without_files
    if given.val_fraction is not None:
        joined = set_aside(joined, given.val_fraction)
    names = chosen or source.class_names or tuple(label_names(joined))
    values = source.class_values
    if given.negative_label in names:
        kept = [number for number, each in enumerate(names) if each != given.negative_label]
        names, values = tuple(names[n] for n in kept), tuple(values[n] for n in kept) if values else None
    if into:
        return Listing(replace(source, images=tuple(joined), notes=(*notes, *joins)), names, values, is_found=False)
    if name in ("csv", "parquet") and chosen and any(not image.problem for image in joined):
        _require_labels(chosen, [*label_names(joined), *(source.class_names or ())])
    _require_a_label(joined, names)
    source = replace(source, images=tuple(joined), notes=(*notes, *joins))
    return Listing(source, names, values, is_found=not chosen and source.class_names is None)


def source_name(given: argparse.Namespace) -> str:
    """The name of the source on the command line; "" if there is none."""
    return next((name for name in SOURCE_FLAGS if getattr(given, name)), "")


def read_class_names(given: str) -> tuple[str, ...]:
    """``cat,cow,dog``, or a text file with a name in each line.

    Raises:
        ValueError: a name is empty or given twice.
        FileNotFoundError: there is no such file.
    """
    if given.endswith(".txt"):
        place = Location.parse(given)
        try:
            lines = decode_text(place.read_bytes()).content.splitlines()
        except ValueError as error:
            raise ValueError(f"--classes {given}: {error}.") from error
        names = tuple(name for name in map(clean_name, lines) if name)
    else:
        names = tuple(clean_name(name) for name in given.split(","))
    for number, name in enumerate(names):
        if not name or name in names[:number]:
            fault = f"{name!r} is given twice" if name else "a name is empty"
            raise ValueError(f"--classes {given}: {fault}. Give each class once: --classes cat,cow,dog.")
    if not names:
        raise ValueError(f"--classes {given}: the file is empty. Write one class in each line.")
    return names


def _read(given: argparse.Namespace, name: str, chosen: tuple[str, ...] | None, root: Location) -> Source:
    place = Location.parse(getattr(given, name))
    splits = tuple(given.split or ())
    match name:
        case "voc":
            return read_voc(place, splits, chosen, _below(place, given.labels))
        case "coco":
            folder = place.parent if place.name.endswith(".json") else place
            parts = coco_parts(place, splits, _below(folder, given.images))
            return read_coco(parts, chosen, is_crowd_object=given.crowds_are_objects)
        case "folders":
            return read_class_folders(place, splits)
        case "labelme":
            return read_labelme(place, chosen)
    columns = {
        meaning: column for meaning, column in (("image", given.image_column), ("labels", given.label_column)) if column
    }
    if name == "hugging_face" or (name == "parquet" and is_hugging_face_table(place)):
        return read_hugging_face(place, lambda path, data: (root / path).write_bytes(data), splits, columns)
    options = TableOptions(
        columns, chosen, given.label_separator or SEPARATORS, given.encoding, given.minus_one, splits
    )
    folder = Location.parse(given.images) if given.images else place.parent
    try:
        return (read_image_table if name == "csv" else read_parquet_table)(place, folder, options)
    except IsADirectoryError:
        raise ValueError(
            f"--{name} {place}: a folder, not a table. For a folder per class give --folders {place}."
        ) from None


def _folders(given: argparse.Namespace, name: str) -> tuple[Location | None, Location | None]:
    """The folders of masks and of saliency maps; relative paths are relative to the source's folder."""
    place = Location.parse(getattr(given, name))
    folder = place.parent if place.name.endswith((".json", ".csv", ".parquet")) else place
    return _below(folder, given.masks), _below(folder, given.saliency)


def _below(folder: Location, given: str | None) -> Location | None:
    if given is None:
        return None
    return Location.parse(given) if given.startswith(("/", "~")) or "://" in given else folder / given.rstrip("/")


def _with_chosen(
    images: Sequence[SourceImage], chosen: Sequence[str], negative: str | None
) -> tuple[list[SourceImage], list[str]]:
    """The images with only the chosen classes; images without any of them are left out, with a sentence."""
    wanted = {*chosen, *([negative] if negative else [])}
    found = [replace(image, labels=tuple(name for name in image.labels if name in wanted)) for image in images]
    kept = [new for new, old in zip(found, images, strict=True) if new.labels or not old.labels]
    number = len(images) - len(kept)
    if not number:
        return kept, []
    others = [name for name in label_names(images) if name not in wanted]
    near = {name: each for name in others for each in chosen if _is_other_spelling(name, each)}
    hint = f" Did you mean {next(iter(near.values()))!r} by {next(iter(near))!r}?" if near else ""
    named = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
    return kept, [f"{plural(number, 'image')} left out (none of the chosen classes; other labels: {named}).{hint}"]


def _is_other_spelling(label: str, name: str) -> bool:
    """Whether a label is probably a class in another spelling: 'Cats' or 'cta' for 'cat', not 'goats' for 'cats'."""
    one, other = label.casefold(), name.casefold()
    is_plural = one + "es" == other or other + "es" == one
    has_swapped_letters = sorted(one) == sorted(other)
    return is_plural or has_swapped_letters or difflib.SequenceMatcher(None, one, other).ratio() >= 0.85


def _require_labels(class_names: Sequence[str], found: Sequence[str]) -> None:
    """Refuses a class that no image of a source has; it is probably misspelt."""
    for name in class_names:
        if name not in found:
            near = difflib.get_close_matches(name, found, n=1)
            labels = f"The labels are {', '.join(found)}." if found else "No image has a label at all."
            hint = f"Did you mean {near[0]!r}?" if near else f"{labels} Correct --classes, or leave it out."
            raise ValueError(f"--classes: no image has the label {name!r}. {hint}")


def _require_negative(label: str, found: Sequence[str]) -> None:
    if label not in found:
        near = difflib.get_close_matches(label, found, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"The labels are {', '.join(found) or 'none'}."
        raise ValueError(f"--negative-label {label}: no image has this label. {hint}")


def _require_a_label(images: Sequence[SourceImage], class_names: Sequence[str]) -> None:
    """Refuses usable images if none of them has a label."""
    usable = [image for image in images if not image.problem]
    if class_names and usable and not any(image.labels for image in usable):
        raise ValueError(
            f"none of the {plural(len(usable), 'image')} has a label (first: {usable[0].image_id!r}), but the "
            "classifier is trained on labels. Check the column or the annotations that should have them."
        )


def _refuse_with_add(given: argparse.Namespace, name: str) -> None:
    if given.classes:
        raise ValueError("--classes does not go with --add: the run's own class list holds. Leave it out.")
    if name == "hugging_face":
        raise ValueError(
            "--add does not go with --hugging-face: the pictures in its files would be written over earlier ones. Save "
            "them as files, and give a table of them with --csv."
        )


def _refuse_misplaced(given: argparse.Namespace, name: str) -> None:
    for flag in sorted({flag for flags in SOURCE_FLAGS.values() for flag in flags} - set(SOURCE_FLAGS[name])):
        if getattr(given, flag) not in (None, False):
            allowed = ", ".join(f"--{each.replace('_', '-')}" for each in SOURCE_FLAGS[name])
            raise ValueError(
                f"--{flag.replace('_', '-')} does not go with --{name.replace('_', '-')}. Allowed with it: {allowed}."
            )
