"""Reads the header of every picture: its size, its orientation, and its real address."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from cluster.words import plural
from jobs.steps.progress import Progress
from storage.errors import BadImage
from storage.headers import Header, fit, read_header
from storage.images import read_many
from storage.location import Location
from storage.manifest import ManifestRow, resolve_address
from storage.sources import SourceImage
from storage.spelling import Names
from storage.tree import words

HEADERS_AT_ONCE = 4096
MOST_KEPT = 20  # classes that a sentence names


@dataclass
class Pictures:
    """The content of the headers.

    Attributes:
        rows: the rows with the pictures' heights and widths, and the addresses at which they were found.
        headers: the header of each row's picture; None if it cannot be read.
        unreadable: (address, reason) of each picture that cannot be read now.
        notes: sentences to print.
    """

    rows: list[ManifestRow]
    headers: list[Header | None]
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def look_at_pictures(rows: Sequence[ManifestRow], images: Sequence[SourceImage], root: Location) -> Pictures:
    """Reads the header of every usable picture.

    Args:
        images: the source's image for each row; its size is checked if it has one.
        root: the folder of the run's own files.
    """
    found = Pictures(list(rows), [None] * len(rows))
    names, renamed, progress = Names(), [], Progress("prepare", len(rows))
    for start in range(0, len(rows), HEADERS_AT_ONCE):
        numbers = [
            number for number in range(start, min(start + HEADERS_AT_ONCE, len(rows))) if not rows[number].problem
        ]
        uris = [resolve_address(rows[number].uri, root, {}) for number in numbers]
        for number, uri, header in zip(numbers, uris, read_many(uris, read_header), strict=True):
            other = (
                names.existing(uri) if isinstance(header, BadImage) and header.reason.startswith("missing") else None
            )
            if other is not None:
                (header,) = read_many([other], read_header)
                renamed.append((uri, other))
                found.rows[number] = replace(rows[number], uri=other)
            if isinstance(header, BadImage):
                found.unreadable.append((uri, header.reason))
            else:
                found.headers[number] = header
                facts = vars(found.rows[number]) | {"height": header.height, "width": header.width}
                found.rows[number] = ManifestRow(**facts)  # dataclasses.replace takes three times as long
        progress.advance(min(HEADERS_AT_ONCE, len(rows) - start))
        if start == 0 and numbers and len(found.unreadable) == len(numbers) < len(rows):
            uri, reason = found.unreadable[0]
            print(
                f"prepare: WARNING: none of the first {plural(len(numbers), 'image')} can be opened (first: {uri}: "
                f"{reason}). Is the folder right? If not, stop this command; for tables and COCO, --images names the "
                "folder.",
                flush=True,
            )
    progress.close()
    if renamed:
        _require_different_files(found.rows)
        found.notes.append(
            f"{plural(len(renamed), 'image')} found under a different spelling of the name (first: {renamed[0][0]} is "
            f"{renamed[0][1].rsplit('/', 1)[-1]})."
        )
    found.notes += _other_sizes(found, images)
    return found


def _require_different_files(rows: Sequence[ManifestRow]) -> None:
    """Refuses two images that are the same file under two spellings: each would have only a part of the labels."""
    owner: dict[str, str] = {}
    for row in rows:
        if row.height is not None and (other := owner.setdefault(row.uri, row.image_id)) != row.image_id:
            raise ValueError(
                f"the images {other!r} and {row.image_id!r} are the same file, {row.uri}: its name is written in two "
                "ways. Write it the same way everywhere; then its labels are joined."
            )


def lost_classes(pictures: Pictures, images: Sequence[SourceImage], class_names: Sequence[str]) -> list[str]:
    """A sentence if there are classes without an image that can be used, because the classifier cannot learn them.

    Args:
        images: the source's image for each row; images that cannot be used have their labels only here.
    """
    named = Counter(label for image in images for label in image.labels)
    found = zip(pictures.rows, pictures.headers, strict=True)
    usable = {class_names[label] for row, header in found if header for label in row.labels}
    lost = [name for name in class_names if name not in usable]
    if not lost or not usable:
        return []
    counts = words([f"{name} ({plural(named[name], 'image') if named[name] else 'no image'})" for name in lost])
    kept = ",".join(name for name in class_names if name in usable)
    classes = f"--classes {kept}" if len(usable) <= MOST_KEPT else "--classes"
    repair = "Repair or convert their images and prepare again, or leave" if any(map(named.get, lost)) else "Leave"
    return [
        f"{plural(len(lost), 'class')} without an image that can be used: {counts}. The classifier cannot learn "
        f"{'it' if len(lost) == 1 else 'them'}. {repair} {'it' if len(lost) == 1 else 'them'} out with {classes}."
    ]


def require_usable(problems: Sequence[tuple[str, str | None]]) -> None:
    """Refuses a list without any usable image, with the most frequent reason.

    Args:
        problems: (id, why it cannot be used, or None) of each image.
    """
    if problems and all(problem for _, problem in problems):
        reason, count = Counter(problem for _, problem in problems).most_common(1)[0]
        first = next(image_id for image_id, problem in problems if problem == reason)
        raise ValueError(
            f"prepare_dataset: none of the {plural(len(problems), 'image')} can be used: {count:,} of them because "
            f"{reason} (first: {first!r})."
        )


def require_a_picture(pictures: Pictures) -> None:
    """Refuses a list in which no picture can be opened, probably because the folder is wrong."""
    num_usable = sum(not row.problem for row in pictures.rows)
    if num_usable and len(pictures.unreadable) == num_usable:
        uri, reason = pictures.unreadable[0]
        raise ValueError(
            f"prepare_dataset: none of the {plural(num_usable, 'image')} can be opened (first: {uri}: {reason}). "
            "Check the folder; for tables and COCO --images names it."
        )


def _other_sizes(pictures: Pictures, images: Sequence[SourceImage]) -> list[str]:
    """A sentence if the source has other sizes than the pictures."""
    others = [
        (image, header)
        for image, header in zip(images, pictures.headers, strict=True)
        if header and image.declared and fit(image.declared, header) != "same"
    ]
    if not others:
        return []
    image, header = others[0]
    height, width = image.declared or (0, 0)
    return [
        f"{plural(len(others), 'image')} with another size in the annotations than the picture has (first: "
        f"{image.image_id!r}, {width} x {height}, but {header.width} x {header.height}); the pictures' sizes are used."
    ]
