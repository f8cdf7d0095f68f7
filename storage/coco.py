"""COCO's instances JSON as a label source: categories become image-level labels, and outlines become label masks.

It is read in COCO's own layout, in Roboflow's layout, or as one file. An image without annotations is unlabelled. If
only some classes are chosen, the annotations of other categories are ignored, and images that have only such
annotations are left out. The values in masks are category ids, and 0 is background. If a category has the id 0, the
values are the ids plus 1.
"""

import difflib
import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from storage.drawings import Drawing, outline
from storage.image_paths import id_of_path, resolve_path
from storage.images import MAX_PIXELS
from storage.location import Location
from storage.names import safe_name
from storage.sources import Source, SourceImage
from storage.text import clean_name
from storage.tree import words

ROBOFLOW_FILE = "_annotations.coco.json"
FIFTYONE_FILE = "labels.json"

_LARGEST_ID = 65533  # of a category; if ids count from 0, its value in masks is 65534; 65535 means ignored
_LISTS = ("images", "annotations", "categories")

Record = dict[str, Any]


@dataclass(frozen=True)
class CocoPart:
    """One instances file: its split, and the folder that its file names are relative to."""

    split: str
    annotations: Location
    images: Location


def coco_parts(place: Location, splits: Sequence[str], images: Location | None = None) -> list[CocoPart]:
    """The files of a data set in COCO's layout, in Roboflow's layout, or in one file.

    Args:
        place: a folder with ``annotations/instances_<split>.json`` and images in ``<split>/``; a folder with
            ``<split>/_annotations.coco.json`` beside the images; a folder with ``labels.json`` and images in ``data/``,
            as FiftyOne writes it; or a JSON file.
        splits: the splits to read; empty: all.
        images: another folder for the images.

    Raises:
        ValueError: there is no such file, or a split does not exist.
    """
    if place.name.endswith(".json"):
        if len(splits) > 1:
            raise ValueError(f"--coco {place}: a file is one split; for several, give the folder in COCO's layout.")
        return [CocoPart(splits[0] if splits else "", place, images or place.parent)]
    instances = (place / "annotations").list_names()
    names = [name[len("instances_") : -len(".json")] for name in instances if name.startswith("instances_")]
    found = {name: place / "annotations" / f"instances_{name}.json" for name in names}
    if not found and (place / FIFTYONE_FILE).exists():
        return coco_parts(place / FIFTYONE_FILE, splits, images or place / "data")
    if not found:
        folders = [name for name in place.list_names() if (place / name / ROBOFLOW_FILE).exists()]
        found = {name: place / name / ROBOFLOW_FILE for name in folders}
    unknown = [split for split in splits if split not in found]
    if unknown or not found:
        known = f"there are the splits {', '.join(found)}" if found else "give the folder with annotations/"
        missing = unknown[0] if unknown else "<split>"
        raise ValueError(
            f"{place}: no annotations/instances_{missing}.json and no {missing}/{ROBOFLOW_FILE}; {known}, or one .json "
            "file."
        )
    return [CocoPart(split, found[split], images or place / split) for split in splits or sorted(found)]


def read_coco(
    parts: Sequence[CocoPart],
    class_names: Sequence[str] | None = None,
    *,
    is_crowd_object: bool = False,
) -> Source:
    """Read instances files; each file is in memory while it is read.

    Args:
        parts: the files, all with the same categories.
        class_names: the categories to use; None: all, except an unused category that only groups the others, as
            Roboflow writes it.
        is_crowd_object: read crowd regions as objects, for tools that write painted masks in this way.

    Returns:
        The images in the order of the files. Their `mask_uri` is relative to the run, and `drawings` are the masks to
        draw there.

    Raises:
        ValueError: a file is not in this format, the categories of the files differ, or a class is not a category.
        FileNotFoundError: a file does not exist.
    """
    readers = [_Reader(part, class_names, is_crowd_object) for part in parts]
    first = readers[0]
    for other in readers[1:]:
        if other.categories != first.categories:
            raise ValueError(
                f"{other.place}: its categories differ from those of {first.place}. Give them the same ids and names, "
                f"or read only one of these splits: --split {first.split}."
            )
    images, drawings = [], dict[str, Drawing]()
    for reader in readers:
        images += reader.images
        drawings |= reader.drawings
    return Source(
        tuple(images),
        tuple(first.categories),
        tuple(value + first.shift for value in first.categories.values()),
        drawings,
        tuple(_notes(readers)),
    )


class _Reader:
    """Reads one file.

    Attributes:
        categories: name -> id of the chosen categories, in the order of the ids. shift: added to an id, it gives the
            value in masks.
        images, drawings: the images and masks of the file.
        left_out, without_outline, crowds_alone, repeated: the number of images for each of the notes.
    """

    def __init__(self, part: CocoPart, class_names: Sequence[str] | None, is_crowd_object: bool) -> None:
        self.place, self.split, self.folder = part.annotations, part.split, part.images
        self.is_crowd_object = is_crowd_object
        data = part.annotations.read_bytes()
        content = self._parse(data)
        known = self._categories(content["categories"])
        of_image = self._annotations_by_image(content["annotations"], set(known.values()))
        used = {annotation["category_id"] for its in of_image.values() for annotation in its}
        self.root = _unused_root(content["categories"], known, used) if class_names is None else None
        self.categories = self._chosen(known, class_names)
        self.shift = 1 if min(self.categories.values()) == 0 else 0
        self.ignored = 255 if max(known.values()) + self.shift < 255 else 65535
        self.masks = f"masks/{hashlib.sha256(data).hexdigest()[:12]}" + ("-crowds" if is_crowd_object else "")
        self.images: list[SourceImage] = []
        self.drawings: dict[str, Drawing] = {}
        self.left_out = self.without_outline = self.crowds_alone = self.repeated = 0
        for path, (record, its) in self._by_path(content["images"], of_image).items():
            self._add(path, record, its)

    def _add(self, path: str, record: Record, its: list[Record]) -> None:
        names = {category: name for name, category in self.categories.items()}
        labels = tuple(sorted({names[each["category_id"]] for each in its if each["category_id"] in names}))
        if its and not labels:
            self.left_out += 1
            return
        drawing = self._drawing(record, its) if its else None
        self.without_outline += bool(its) and drawing is None
        self.crowds_alone += drawing is not None and not drawing.instances
        mask_uri = f"{self.masks}/{safe_name(path)}.png" if drawing else None
        try:
            uri, problem = resolve_path(self.folder, path), None
        except ValueError as error:
            uri, problem, mask_uri = "", f"the path of its image {error}", None
        if drawing and mask_uri:
            self.drawings[mask_uri] = drawing
        declared = _declared_size(record)
        number = record["id"] if type(record.get("id")) is int and 0 <= record["id"] < 1 << 63 else None
        image = SourceImage(id_of_path(path), uri, labels, self.split, mask_uri, problem=problem, declared=declared)
        self.images.append(replace(image, source_number=number))

    # The file

    def _parse(self, data: bytes) -> dict[str, list[Any]]:
        try:
            content = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.place}: not a JSON file ({type(error).__name__}).") from error
        missing = [name for name in _LISTS if not isinstance(content, dict) or not isinstance(content.get(name), list)]
        if missing:
            raise ValueError(
                f"{self.place}: it has no list {missing[0]!r}; expected COCO's instances, a JSON object with the lists "
                "images, annotations and categories."
            )
        return content

    def _value(self, kind: str, number: int, record: Any, key: str, *wanted: type) -> Any:
        value = record.get(key) if isinstance(record, dict) else None
        if type(value) not in wanted or value == "":
            what = "a number" if int in wanted else "a text"
            raise ValueError(
                f"{self.place}: {kind}[{number}].{key}: given {value!r:.60}, expected {what}, as COCO has it."
            )
        return value

    def _categories(self, records: list[Any]) -> dict[str, int]:
        """Name -> id, in the order of the ids."""
        pairs = []
        for number, record in enumerate(records):
            name = clean_name(self._value("categories", number, record, "name", str))
            category = self._value("categories", number, record, "id", int)
            if not 0 <= category <= _LARGEST_ID:
                raise ValueError(f"{self.place}: category {name!r} has the id {category}, allowed: 0 to {_LARGEST_ID}.")
            pairs.append((category, name))
        for what, values in (("name", [name for _, name in pairs]), ("id", [category for category, _ in pairs])):
            twice = next((value for value in values if values.count(value) > 1), None)
            if twice is not None:
                raise ValueError(f"{self.place}: two categories have the {what} {twice!r}. Give each its own {what}.")
        if not pairs:
            raise ValueError(f"{self.place}: the list categories is empty; at least one category is needed.")
        return {name: category for category, name in sorted(pairs)}

    def _chosen(self, known: dict[str, int], class_names: Sequence[str] | None) -> dict[str, int]:
        for name in class_names or ():
            if name not in known:
                near = difflib.get_close_matches(name, list(known), n=1)
                hint = f"Did you mean {near[0]!r}?" if near else f"There are {words(list(known))}."
                raise ValueError(f"class {name!r}: not among the categories of {self.place}. {hint}")
        wanted = set(class_names) if class_names is not None else set(known) - {self.root}
        return {name: category for name, category in known.items() if name in wanted}

    def _annotations_by_image(self, records: list[Any], known: set[int]) -> dict[str, list[Record]]:
        of_image: dict[str, list[Record]] = defaultdict(list)  # some tools write the ids as text
        for number, record in enumerate(records):
            category = self._value("annotations", number, record, "category_id", int)
            if category not in known:
                raise ValueError(
                    f"{self.place}: annotations[{number}].category_id: {category} is not among the categories."
                )
            of_image[str(self._value("annotations", number, record, "image_id", int, str))].append(record)
        return of_image

    def _by_path(self, records: list[Any], of_image: dict[str, list[Record]]) -> dict[str, tuple[Record, list[Record]]]:
        """File name -> (its record, its annotations). A file that is listed under two ids has the annotations of both.

        Raises:
            ValueError: two images have the same id, so it is not clear which of them an annotation belongs to; or an
                annotation belongs to no image.
        """
        found: dict[str, tuple[Record, list[Record]]] = {}
        path_of: dict[str, str] = {}
        for number, record in enumerate(records):
            key = str(self._value("images", number, record, "id", int, str))
            path = self._value("images", number, record, "file_name", str)
            other = path_of.setdefault(key, path)
            if other != path:
                raise ValueError(
                    f"{self.place}: the images {other} and {path} have the same id {key}, so their annotations cannot "
                    "be told apart. Give every image its own id. If files were merged, give the folders or splits of "
                    "the original files instead."
                )
            self.repeated += path in found
            found.setdefault(path, (record, []))[1].extend(of_image.pop(key, []))
        if of_image:
            raise ValueError(
                f"{self.place}: there are annotations of image {next(iter(of_image))}, which is not in the list images."
            )
        return found

    # Outlines

    def _drawing(self, image: Record, annotations: list[Record]) -> Drawing | None:
        """The mask to draw; None if an annotation has no readable outline, because an object would be missing."""
        size = _declared_size(image)
        if size is None:
            return None
        instances, crowds = [], []
        for annotation in annotations:
            found = outline(annotation.get("segmentation"), *size)
            if found is None:
                return None
            if annotation.get("iscrowd") and not self.is_crowd_object:
                crowds.append(found)
            else:
                instances.append((annotation["category_id"] + self.shift, found))
        return Drawing(*size, tuple(instances), tuple(crowds), self.ignored)


def _declared_size(image: Record) -> tuple[int, int] | None:
    """(height, width) as written in the file; None if it is missing or impossible."""
    height, width = image.get("height"), image.get("width")
    if type(height) is type(width) is int and min(height, width) > 0 and height * width <= MAX_PIXELS:
        return height, width
    return None


def _unused_root(records: list[Record], known: dict[str, int], used: set[int]) -> str | None:
    """The category that only groups the others and has no annotations, as Roboflow writes it; None if there is none."""
    groups = {clean_name(str(record.get("supercategory") or "")) for record in records if record["name"] != "none"}
    own = {clean_name(record["name"]): clean_name(str(record.get("supercategory") or "")) for record in records}
    roots = [name for name in known if name in groups and own[name] != name and known[name] not in used]
    return roots[0] if len(roots) == 1 and len(known) > 1 else None


def _notes(readers: Sequence[_Reader]) -> list[str]:
    first = readers[0]
    left_out = sum(reader.left_out for reader in readers)
    without = sum(reader.without_outline for reader in readers)
    crowds = sum(reader.crowds_alone for reader in readers)
    repeated = sum(reader.repeated for reader in readers)
    notes = []
    if first.root:
        notes.append(f"category {first.root!r} only groups the others and has no annotations, so it is no class.")
    if first.shift:
        notes.append("category ids start at 0; a class has its id plus 1 in masks and exports, where 0 is background.")
    if left_out:
        notes.append(f"{_count(left_out, 'image')} left out (none of the chosen classes).")
    if without:
        notes.append(f"{_count(without, 'image')} without a mask (an annotation has no outline).")
    if crowds:
        notes.append(
            f"{_count(crowds, 'image')} with outlines that are all crowds (iscrowd 1), which masks ignore. If they are "
            "objects (CVAT writes painted objects in this way), give --crowds-are-objects."
        )
    if repeated:
        notes.append(f"{_count(repeated, 'image')} listed under two ids, with the annotations of both.")
    return notes


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
