"""Label sources: the images of a source with their labels, and their conversion to rows of a manifest.

Readers (`storage.image_table`, `storage.voc`, `storage.coco` and others) return a `Source` with class *names*. This
module joins the rows of the same image, turns names into class numbers, and records why images cannot be used.
"""

import difflib
import os
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from storage.drawings import Drawing
from storage.image_paths import tell_apart
from storage.label_cells import as_number
from storage.location import Location
from storage.manifest import ManifestRow
from storage.names import is_safe_id
from storage.tree import files_by_stem


@dataclass(frozen=True)
class SourceImage:
    """One image as its source describes it.

    Attributes:
        image_id: the source's own id, or an id made from the path.
        labels: class names, in any order; empty if no label is known.
        is_negative: the image is known to show none of the classes; then it has no labels.
        source_number: the image's id in the source, if the id is a number and not the path.
        declared: (height, width) in the source, to compare with the picture's header.
        problem: why the image cannot be used, if the reader knows it.
        has_own_id: the source gives the id. Ids made from paths are made longer if two images would have the same id.
    """

    image_id: str
    uri: str
    labels: tuple[str, ...] = ()
    split: str = ""
    mask_uri: str | None = None
    saliency_uri: str | None = None
    height: int | None = None
    width: int | None = None
    problem: str | None = None
    is_negative: bool = False
    source_number: int | None = None
    declared: tuple[int, int] | None = None
    has_own_id: bool = False


@dataclass(frozen=True)
class Source:
    """The content of a label source.

    Attributes:
        class_names: the class list, if the source has one; None: all labels that occur.
        class_values: the value of each class in masks; None: 1..C.
        drawings: the masks to draw from the source's outlines, by the URI of the mask.
        notes: sentences to print about how the source was read, if there was a choice.
    """

    images: tuple[SourceImage, ...]
    class_names: tuple[str, ...] | None = None
    class_values: tuple[int, ...] | None = None
    drawings: dict[str, Drawing] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def join_images(
    images: Sequence[SourceImage], *, is_split_ordered: bool = False
) -> tuple[list[SourceImage], list[str]]:
    """One entry per image: the labels of an image's rows are joined, and different images get different ids.

    Args:
        images: the images as read; images with a problem do not change.
        is_split_ordered: an image in several splits belongs to the first of them (lists such as VOC's train and
            train_aug); otherwise it is refused.

    Returns:
        The images in the order of their first rows, and sentences about what was joined.

    Raises:
        ValueError: an image is in several splits or has different masks, or two images have the same id.
    """
    rows_of: dict[str, list[SourceImage]] = defaultdict(list)
    for number, image in enumerate(images):
        rows_of[f"problem {number}" if image.problem else image.uri].append(image)
    joined = [_joined(rows, is_split_ordered) if len(rows) > 1 else rows[0] for rows in rows_of.values()]
    splits_of = [{row.split for row in rows} for rows in rows_of.values()]
    notes = []
    in_several = [image for image, splits in zip(joined, splits_of, strict=True) if len(splits) > 1]
    if in_several:
        first = in_several[0]
        notes.append(
            f"{_images(len(in_several))} in several splits and used only in the first of them (for example "
            f"{first.image_id!r}, in {first.split!r})."
        )
    if any(len(rows) > len(splits) for rows, splits in zip(rows_of.values(), splits_of, strict=True)):
        notes.append(
            f"{len(images):,} rows name {len(joined):,} different images; the labels of each image are joined."
        )
    different, note = with_ids(joined)
    return different, notes + note


def with_files(
    images: Sequence[SourceImage], masks: Location | None = None, saliency: Location | None = None
) -> tuple[list[SourceImage], list[str]]:
    """The images with masks and saliency maps from folders of ``<id>.<suffix>`` or ``<split>/<id>.<suffix>``.

    If a folder is given, it is the only source of its kind: an image without a file in it has no mask or saliency map.

    Returns:
        The images, and a sentence for each folder that does not have a file for every usable image. It names files
        that fit no image, because their names may be misspelt.

    Raises:
        ValueError: a folder does not exist, or no image has a file in it.
    """
    found, notes = list(images), list[str]()
    for column, noun, folder in (("mask_uri", "mask", masks), ("saliency_uri", "saliency map", saliency)):
        if folder is not None:
            uris, note = _files_of(found, folder, noun)
            found = [replace(image, **{column: uri}) for image, uri in zip(found, uris, strict=True)]  # type: ignore[arg-type]
            notes += note
    return found, notes


def _files_of(images: Sequence[SourceImage], folder: Location, noun: str) -> tuple[list[str | None], list[str]]:
    """The address of each image's file in a folder, and a sentence if images have none."""
    files, flag = files_by_stem(folder), f"--{'masks' if noun == 'mask' else 'saliency'} {folder}"
    if not files:
        is_missing = not folder.is_local or not os.path.isdir(folder.uri)
        fault = "no such folder" if is_missing else "there is no file in this folder"
        here = os.path.abspath(folder.name)
        hint = (
            f" Did you mean {here}? Relative paths are relative to the source's folder." if os.path.isdir(here) else ""
        )
        raise ValueError(f"{flag}: {fault}. Give the folder with the {noun}s, or leave it out.{hint}")
    uris = [files.get(image.image_id) or files.get(f"{image.split}__{image.image_id}") for image in images]
    usable = [(image, uri) for image, uri in zip(images, uris, strict=True) if not image.problem]
    without = [image for image, uri in usable if uri is None]
    if not without:
        return uris, []
    looked_for = f"{without[0].image_id}.png"
    if len(without) == len(usable):
        there = next(iter(files.values())).removeprefix(folder.uri).lstrip("/")
        raise ValueError(
            f"{flag}: none of the {_number(len(usable))} has a {noun} there. A file must have the id of its image as "
            f"its name, such as {looked_for}; there is {there}. Rename the files, or give their folder."
        )
    num_found, used = len(usable) - len(without), set(uris)
    note = f"{flag}: {num_found:,} of {len(usable):,} images have a file there (first one missing: {looked_for})"
    if spare := [uri.removeprefix(folder.uri).lstrip("/") for uri in files.values() if uri not in used]:
        note += f"; files that have no image's id as their name: {len(spare):,} (first one: {spare[0]})"
    return uris, [f"{note}."]


def number_labels(
    images: Sequence[SourceImage], class_names: Sequence[str], first: int | None = None
) -> list[SourceImage]:
    """The images with class names in place of labels that are numbers; unchanged if some label is not a number.

    Args:
        first: the number of the first class, 0 or 1. None: 0 if the label 0 occurs, 1 if the number of classes occurs
            as a label.

    Raises:
        ValueError: a number is outside the class list, or it is not clear whether the numbers start at 0 or 1.
    """
    numbers = {label: as_number(label) for image in images for label in image.labels}
    found = [number for number in numbers.values() if number is not None]
    if not found or len(found) < len(numbers) or set(numbers) & set(class_names):
        return list(images)
    if first is None:
        first = 0 if 0 in found else 1 if max(found) == len(class_names) else None
    if first is None:
        raise ValueError(
            f"labels are the numbers {min(found)} to {max(found)}, and --classes has {len(class_names)} names, so the "
            "numbers may start at 0 or at 1. Say which: --first-class 0 or --first-class 1."
        )
    outside = [number for number in found if not 0 <= number - first < len(class_names)]
    if outside:
        raise ValueError(
            f"label {outside[0]}: --classes has {len(class_names)} names, numbered from {first} to "
            f"{first + len(class_names) - 1}. Give all names, or --first-class {1 - first}."
        )
    names = {label: class_names[number - first] for label, number in numbers.items() if number is not None}
    return [replace(image, labels=tuple(names[label] for label in image.labels)) for image in images]


def with_negatives(
    images: Iterable[SourceImage], label: str | None = None, *, is_unlabelled_negative: bool = False
) -> list[SourceImage]:
    """The images, with negative images marked, which show none of the classes.

    Args:
        label: a label that means "none of the classes", such as ``"normal"``; it is ignored in images that also have
            other labels.
        is_unlabelled_negative: mark every image without a label.
    """

    def marked(image: SourceImage) -> SourceImage:
        if label not in image.labels and (image.labels or not is_unlabelled_negative):
            return image  # millions of images stay as they are
        labels = tuple(name for name in image.labels if name != label)
        is_said = is_unlabelled_negative if not image.labels else not labels
        return replace(image, labels=labels, is_negative=not labels and (image.is_negative or is_said))

    return [image if image.problem else marked(image) for image in images]


def manifest_rows(images: Iterable[SourceImage], class_names: Sequence[str]) -> Iterator[ManifestRow]:
    """Manifest rows in the same order, one per image, as a stream.

    An image with an unsafe id, a repeated id or a label outside the class list becomes a row without labels, and its
    ``problem`` says why.
    """
    numbers = {name: number for number, name in enumerate(class_names)}
    seen: set[str] = set()
    for image in images:
        problem = image.problem or _problem(image, numbers.keys(), seen)
        seen.add(image.image_id)
        labels = () if problem else tuple(sorted({numbers[name] for name in image.labels}))
        yield ManifestRow(
            image_id=image.image_id,
            uri=image.uri,
            labels=labels,
            height=image.height,
            width=image.width,
            split=image.split,
            mask_uri=image.mask_uri,
            saliency_uri=image.saliency_uri,
            problem=problem,
            negative=image.is_negative and not problem,
            source_number=image.source_number,
        )


def label_names(images: Iterable[SourceImage]) -> list[str]:
    """All labels that occur, sorted: the class list of a source without one."""
    return sorted({name for image in images for name in image.labels})


def _joined(rows: Sequence[SourceImage], is_split_ordered: bool) -> SourceImage:
    """One entry for the rows of one image."""
    first = rows[0]
    splits = list(dict.fromkeys(row.split for row in rows))
    if len(splits) > 1 and not is_split_ordered:
        raise ValueError(
            f"image {first.image_id!r} is in the splits {splits[0]!r} and {splits[1]!r}. Give it one split, or read "
            f"only one: --split {splits[0] or splits[1]}."
        )
    places: dict[str, Any] = {}
    for kind in ("mask_uri", "saliency_uri"):
        found = list(dict.fromkeys(uri for row in rows if (uri := getattr(row, kind))))
        if len(found) > 1 and not is_split_ordered:
            raise ValueError(
                f"image {first.image_id!r} has two {kind.removesuffix('_uri')} files, {found[0]} and {found[1]}. "
                "Give the same one in all its rows."
            )
        places[kind] = found[0] if found else None
    labels = tuple(dict.fromkeys(label for row in rows for label in row.labels))
    is_negative = not labels and all(row.is_negative for row in rows)
    return replace(first, labels=labels, is_negative=is_negative, **places)


def with_ids(images: Sequence[SourceImage]) -> tuple[list[SourceImage], list[str]]:
    """The images with different ids, in which letters are composed (NFC), and a sentence if ids became longer.

    Raises:
        ValueError: the source gives two images the same id.
    """
    images = [
        image
        if unicodedata.is_normalized("NFC", image.image_id)
        else replace(image, image_id=unicodedata.normalize("NFC", image.image_id))
        for image in images
    ]
    owner: dict[str, SourceImage] = {}
    for image in images:
        if not image.has_own_id or image.problem:
            continue
        other = owner.setdefault(image.image_id, image)
        if other is not image:
            raise ValueError(
                f"the id {image.image_id!r} belongs to two images, {other.uri} and {image.uri}. Give each image "
                "its own id, or leave the ids out; then they are made from the paths."
            )
    made = {number: image.uri for number, image in enumerate(images) if not (image.has_own_id or image.problem)}
    longer = tell_apart(made, [image.image_id for image in images])
    notes = []
    if longer:
        n, new = next(iter(longer.items()))
        notes.append(
            f"{_number(len(longer))} with the same name as another image got a longer id: {images[n].uri} is called "
            f"{new!r} in the run, because another image has the id {images[n].image_id!r}."
        )
    return [replace(image, image_id=longer[n]) if n in longer else image for n, image in enumerate(images)], notes


def _problem(image: SourceImage, known: Collection[str], seen: set[str]) -> str | None:
    if not is_safe_id(image.image_id):
        return "its id is not a plain name: 1 to 200 printable characters, no slash or backslash, no leading dot"
    if image.image_id in seen:
        return "its id is already taken by an earlier image"
    unknown = sorted({name for name in image.labels if name not in known})
    if not unknown:
        return None
    near = difflib.get_close_matches(unknown[0], list(known), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    hint = "; labels are separated by ';' or '|', or as --label-separator says" if "," in unknown[0] else hint
    return f"label {unknown[0]!r} is not in the class list{hint}"


def _images(number: int) -> str:
    return f"{_number(number)} {'is' if number == 1 else 'are'}"


def _number(images: int) -> str:
    return "1 image" if images == 1 else f"{images:,} images"
