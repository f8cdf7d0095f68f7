"""Checks masks and saliency maps: whether they exist, whether they fit, and which copies must be written into the run.

Outlines are drawn, and masks with other values are translated. If a mask was made before its picture was turned
upright or made smaller, it is turned and scaled too. These copies are in the run, so every later step reads masks of
the same kind.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np

from cluster.words import plural
from jobs.preparation.mask_summary import describe_masks, evenly
from jobs.steps.progress import Progress
from storage.drawings import Drawing, encode_mask
from storage.errors import BadImage
from storage.headers import Header, fit, fit_mask, is_turned, read_header
from storage.images import read_many
from storage.location import Location
from storage.manifest import ManifestRow, resolve_address
from storage.masks import MaskValues, Translation, rescale_saliency, saliency_scale
from storage.names import safe_name

WRITERS = 16
SALIENCY_LOOKED_AT = 50

Column = Literal["mask_uri", "saliency_uri"]
NOUNS: dict[Column, str] = {"mask_uri": "mask", "saliency_uri": "saliency map"}


@dataclass
class LabelFiles:
    """The result of the check.

    Attributes:
        rows: the rows with the usable masks and saliency maps.
        drawings, copies: the files to write, by their path in the run. A drawing that exists already is right, because
            its folder belongs to this version of the outlines.
        notes: sentences to print.
    """

    rows: list[ManifestRow]
    drawings: dict[str, Callable[[], bytes]] = field(default_factory=dict)
    copies: dict[str, Callable[[], bytes]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Meaning:
    """The meaning of masks: the manifest's classes, and the values in masks of another kind."""

    class_names: tuple[str, ...]
    class_values: tuple[int, ...]
    mask_values: MaskValues | None = None

    @property
    def value_of(self) -> dict[str, int]:
        return dict(zip(self.class_names, self.class_values, strict=True))

    @property
    def name(self) -> str:
        """The name of the folder for masks that are translated with these values."""
        return hashlib.sha256(repr((self.mask_values, self.value_of)).encode()).hexdigest()[:12]


def look_at_label_files(
    rows: Sequence[ManifestRow],
    headers: Sequence[Header | None],
    drawings: dict[str, Drawing],
    meaning: Meaning,
    root: Location,
) -> LabelFiles:
    """Checks every mask and saliency map in the rows.

    Args:
        headers: the headers of the pictures.
        drawings: outlines, by the path that rows have as their mask.
        root: the folder of the run's own files.

    Raises:
        ValueError: no mask, or no saliency map, can be opened.
    """
    found = LabelFiles(list(rows))
    _plan_drawings(found, headers, drawings)
    for column in NOUNS:
        _plan_files(found, headers, column, meaning, root)
    if meaning.mask_values is None:
        found.notes += describe_masks(found.rows, meaning.class_names, meaning.class_values, root, set(found.drawings))
    return found


def write_label_files(found: LabelFiles, root: Location) -> None:
    """Writes the missing files; a mask that cannot be made is removed from its row, with a note."""
    folders = {path.rpartition("/")[0] for path in found.drawings}
    there = {f"{folder}/{name}" for folder in folders for name in (root / folder).list_names()}
    missing = {path: make for path, make in found.drawings.items() if path not in there} | found.copies
    progress, failed = Progress("masks", len(missing)), dict[str, str]()

    def write(path: str, make: Callable[[], bytes]) -> None:
        try:
            (root / path).write_bytes(make())
        except BadImage as bad:
            failed[path] = bad.reason

    with ThreadPoolExecutor(WRITERS) as pool:
        for _ in pool.map(write, missing, missing.values()):
            progress.advance(1)
    progress.close()
    if failed:
        path, reason = next(iter(failed.items()))
        name = path.rsplit("/", 1)[-1]
        found.notes.append(
            f"{plural(len(failed), 'mask')} left out, because of errors in the translation (first: {name}: {reason})."
        )
        found.rows = [
            replace(row, **{column: None for column in NOUNS if getattr(row, column) in failed})  # type: ignore[arg-type]
            for row in found.rows
        ]


def _plan_drawings(found: LabelFiles, headers: Sequence[Header | None], drawings: dict[str, Drawing]) -> None:
    """Plans masks of the pictures' sizes from outlines; outlines with another aspect ratio are left out."""
    others: list[str] = []
    for number, (row, header) in enumerate(zip(found.rows, headers, strict=True)):
        drawing = drawings.get(row.mask_uri or "")
        if drawing is None or row.mask_uri is None or row.problem:
            continue
        size = (drawing.height, drawing.width)
        path: str | None = row.mask_uri
        match fit(size, header) if header else "same":
            case "other":
                others.append(row.image_id)
                path = None
            case "turned" | "scaled" if header:
                path = f"{row.mask_uri.removesuffix('.png')}.{header.width}x{header.height}-{header.orientation}.png"
        if path is not None:
            found.drawings[path] = partial(_drawn, drawing, header)
        found.rows[number] = replace(row, mask_uri=path)
    if others:
        found.notes.append(
            f"{plural(len(others), 'image')} without a mask, because the outlines were drawn on a picture with another "
            f"aspect ratio (first: {others[0]!r})."
        )


def _plan_files(
    found: LabelFiles, headers: Sequence[Header | None], column: Column, meaning: Meaning, root: Location
) -> None:
    """Checks the files in the rows; missing files and files with another aspect ratio are left out."""
    numbers = [
        number
        for number, row in enumerate(found.rows)
        if getattr(row, column) and getattr(row, column) not in found.drawings and not row.problem
    ]
    uris = [resolve_address(getattr(found.rows[number], column), root, {}) for number in numbers]
    results = dict(zip(numbers, zip(uris, read_many(uris, read_header), strict=True), strict=True))
    scale = _saliency_scale(found, results, column)
    missing, others = list[tuple[str, str]](), list[str]()
    for number, (uri, file) in results.items():
        row, picture = found.rows[number], headers[number]
        address: str | None = getattr(row, column)
        if isinstance(file, BadImage):
            missing.append((uri, file.reason))
            address = None
        elif picture is not None and fit(file.size, picture) == "other":
            others.append(uri)
            address = None
        else:
            address = _planned_copy(found, row, uri, file, picture or file, column, meaning, scale) or address
        found.rows[number] = replace(row, **{column: address})  # type: ignore[arg-type]
    noun = NOUNS[column]
    if missing and len(missing) == len(numbers):
        raise ValueError(
            f"prepare_dataset: none of the {plural(len(missing), noun)} can be opened (first: {missing[0][0]}: "
            f"{missing[0][1]}). Correct their paths, or leave them out."
        )
    if missing:
        found.notes.append(
            f"{plural(len(missing), noun)} cannot be opened and {'is' if len(missing) == 1 else 'are'} left out "
            f"(first: {missing[0][0]}: {missing[0][1]})."
        )
    if others:
        found.notes.append(
            f"{plural(len(others), noun)} left out, because the aspect ratio differs from the picture's (first: "
            f"{others[0]})."
        )


def _planned_copy(
    found: LabelFiles,
    row: ManifestRow,
    uri: str,
    file: Header,
    picture: Header,
    column: Column,
    meaning: Meaning,
    scale: int | None,
) -> str | None:
    """The path of the copy in the run; None if no copy is needed."""
    is_mask = column == "mask_uri"
    has_to_change = file.size != picture.size if is_mask else is_turned(file.size, picture)  # saliency may be smaller
    values = meaning.mask_values if is_mask else None
    if values is None and scale is None and not has_to_change:
        return None
    labels = tuple(meaning.class_names[label] for label in row.labels)
    if is_mask:
        path = f"masks/{meaning.name if values else 'fitted'}/{safe_name(row.image_id)}.png"
        found.copies[path] = Translation(uri, picture, values, meaning.value_of, labels).make
    else:
        path = f"saliency/{scale or 'upright'}/{safe_name(row.image_id)}.png"
        found.copies[path] = partial(_saliency, uri, scale, picture)
    return path


def _saliency_scale(found: LabelFiles, results: dict[int, tuple[str, Header | BadImage]], column: Column) -> int | None:
    """The highest value in a sample of the saliency maps, if it is not the largest number of their bits; else None."""
    if column != "saliency_uri":
        return None
    uris = [uri for uri, file in results.values() if not isinstance(file, BadImage)]
    scale = saliency_scale(evenly(uris, SALIENCY_LOOKED_AT))
    if scale is not None:
        found.notes.append(
            f"saliency maps have only values up to {scale}; copies in which {scale} becomes white are written into the "
            f"run, in saliency/{scale}/."
        )
    return scale


def _drawn(drawing: Drawing, picture: Header | None) -> bytes:
    mask = drawing.draw()
    return encode_mask(fit_mask(mask, picture) if picture else mask)


def _saliency(uri: str, scale: int | None, picture: Header) -> bytes:
    return encode_mask(np.ascontiguousarray(fit_mask(rescale_saliency(uri, scale), picture)))
