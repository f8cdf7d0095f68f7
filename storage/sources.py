"""What a label source says about an image, and how it becomes a manifest row.

Readers (`storage.voc`, `storage.coco`, `storage.image_table`) yield plain `SourceImage`s with class *names*; here names
become class numbers, and an image that cannot be used becomes a row that says why.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from storage.location import Location
from storage.manifest import ManifestRow
from storage.names import is_safe_id


@dataclass(frozen=True)
class SourceImage:
    """One image as its source describes it.

    Attributes:
        labels: class names, in any order; empty for an unlabelled image.
        problem: why the image cannot be used, where the reader knows.
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


def manifest_rows(images: Iterable[SourceImage], class_names: Sequence[str]) -> Iterator[ManifestRow]:
    """Manifest rows in the same order, one per image, streaming.

    An unsafe id, an id seen before and a label outside the class list become a row without labels whose
    ``problem`` says so.
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
        )


def label_names(images: Iterable[SourceImage]) -> list[str]:
    """All labels that occur, sorted: the class list of a source that brings none."""
    return sorted({name for image in images for name in image.labels})


def files_by_stem(folder: Location | None) -> dict[str, str]:
    """URIs of a folder's files by name without suffix (hidden ones left out), by one listing; none for None."""
    if folder is None:
        return {}
    names = [name for name in folder.list_names() if not name.startswith(".")]
    return {name.rsplit(".", 1)[0]: f"{folder.uri.rstrip('/')}/{name}" for name in names}


def id_of_path(path: str) -> str:
    """An image's id where its source gives none: its path below the folder, suffix dropped, ``/`` written ``__``."""
    relative = path.rsplit("/", 1)[-1] if path.startswith("/") or "://" in path else path.removeprefix("./")
    return re.sub(r"\.[^./]*$", "", relative).replace("/", "__")


def resolve_path(folder: Location, path: str) -> str:
    """The URI of a path as sources write it: below the folder, absolute, or ``s3://``.

    Raises:
        ValueError: it leads out of the folder.
    """
    if path.startswith("/") or "://" in path:
        return Location.parse(path).uri
    return (folder / path.removeprefix("./")).uri


def _problem(image: SourceImage, known: Iterable[str], seen: set[str]) -> str | None:
    if not is_safe_id(image.image_id):
        return "its id is not a plain name: 1 to 200 printable characters, no slash or backslash, no leading dot"
    if image.image_id in seen:
        return "its id is already taken by an earlier image"
    unknown = sorted(set(image.labels) - set(known))
    if not unknown:
        return None
    near = difflib.get_close_matches(unknown[0], list(known), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    hint = "; labels are separated by ';' or '|'" if "," in unknown[0] else hint
    return f"label {unknown[0]!r} is not in the class list{hint}"
