"""PASCAL VOC's layout as a label source: split lists, ``cls_labels.npy`` or ``Annotations``, masks.

Read from VOC's own devkit and from folders that other tools write in this layout: with classes of their own, images
of any suffix, and without lists, the XML files beside the images. With a chosen class subset, other classes are simply
not labels; images without a chosen class are left out.
"""

import difflib
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from storage.annotation_xml import parse_annotation
from storage.label_file import read_label_file
from storage.location import Location
from storage.names import is_safe_id
from storage.sources import Source, SourceImage
from storage.text import decode_text
from storage.tree import files_below, is_image_name, words

# In the order of cls_labels.npy; a class's value in masks is its position counted from 1.
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle",
    "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person",
    "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
VOC_CLASS_VALUES = {name: value for value, name in enumerate(VOC_CLASSES, start=1)}

_READERS = 16
_UNSAFE = "its line in the split list leads out of the devkit"
_SPLIT_FOLDERS = ("train", "val", "valid", "validation", "test")
_FLAGS = ("-1", "0", "1")  # of an image in a list such as Main/cat_train.txt


def voc_class_values(class_names: Sequence[str]) -> list[int]:
    """The values of classes in masks: VOC's own for some of its 20 classes, else 1, 2, ... in the order given."""
    if set(class_names) <= set(VOC_CLASSES):
        return [VOC_CLASS_VALUES[name] for name in class_names]
    return list(range(1, len(class_names) + 1))


def read_voc(
    devkit: Location,
    splits: Sequence[str] = (),
    class_names: Sequence[str] | None = None,
    labels: Location | None = None,
) -> Source:
    """Read a devkit folder (the one with ``JPEGImages``), or another one in this layout.

    Args:
        splits: names of lists, e.g. ``["train_aug", "val"]``; each image's split is its list's name. Without any:
            train_aug, else train, and val; where there are no lists, every XML file.
        class_names: the classes wanted; None: VOC's 20, or whatever the XML files name where that is something else.
        labels: a ``cls_labels.npy``; by default the devkit's own, else its ``Annotations``.

    Raises:
        ValueError: a class that no image has, a missing or unreadable list, a label file that is none.
    """
    lists, own = _lists(devkit), devkit / "cls_labels.npy"
    if not lists:
        return _choose(devkit, _labelled_without_lists(devkit, splits), class_names)
    pictures = _Pictures(devkit)
    entries = [entry for split in splits or _usual(lists) for entry in _read_split(devkit, split, lists, pictures)]
    if labels is not None or own.exists():
        return _choose(devkit, _labels_from_file(entries, labels or own), class_names)
    folder = devkit / "Annotations"
    files = [folder / f"{entry.image_id}.xml" if is_safe_id(entry.image_id) else None for entry in entries]
    return _choose(devkit, _labels_from_annotations(entries, files), class_names)


def _choose(devkit: Location, images: Sequence[SourceImage], class_names: Sequence[str] | None) -> Source:
    """The source with the chosen classes; images of others are left out."""
    found = sorted({name for image in images for name in image.labels})
    foreign = [name for name in found if name not in VOC_CLASS_VALUES]
    if class_names is None and foreign and len(foreign) < len(found):
        raise ValueError(
            f"{devkit}: its objects are some of VOC's classes and others such as {foreign[0]!r}, so their values in "
            f"masks are not known. Name the classes wanted: --classes {','.join(found[:20])}. If all are among VOC's "
            "20, masks have VOC's values, else 1, 2, ... in the order of --classes."
        )
    names = tuple(class_names or (found if foreign else VOC_CLASSES))
    known = [*found, *VOC_CLASSES]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"There are {words(found or VOC_CLASSES)}."
            raise ValueError(f"class {name!r}: not one of VOC's 20 classes, and no object of {devkit}. {hint}")
    is_voc = set(names) <= set(VOC_CLASSES)

    def is_kept(name: str) -> bool:
        return name in names or (is_voc and name in foreign)  # a name that is none of VOC's is refused by name

    chosen = [replace(image, labels=tuple(filter(is_kept, image.labels))) for image in images]
    kept = [new for new, old in zip(chosen, images, strict=True) if new.labels or new.problem or not old.labels]
    notes = []
    if num_left_out := len(chosen) - len(kept):
        notes.append(f"{num_left_out:,} image{'s' * (num_left_out > 1)} left out, with none of the chosen classes.")
    if not is_voc:
        notes.append(f"classes are those of the XML files; in masks they are 1 to {len(names)}, in the order below.")
    return Source(tuple(kept), names, tuple(voc_class_values(names)), notes=tuple(notes))


# Split lists


class _Pictures:
    """The files of ``JPEGImages`` by name without suffix, listed once, when a name has no suffix that is there."""

    def __init__(self, devkit: Location) -> None:
        self.folder = devkit / "JPEGImages"
        names = [name for name in self.folder.list_names() if is_image_name(name) and not name.startswith(".")]
        self.by_stem = {name.rsplit(".", 1)[0]: name for name in reversed(names)}

    def path(self, image_id: str) -> str:
        return f"JPEGImages/{self.by_stem.get(image_id, f'{image_id}.jpg')}"


def _lists(devkit: Location) -> dict[str, Location]:
    """The lists of a devkit by name; those for segmentation before those of the same name for whole images."""
    folders = [devkit / "ImageSets" / task for task in ("Segmentation", "Main")]
    found: dict[str, Location] = {}
    for folder in folders:
        for name in folder.list_names():
            if name.endswith(".txt"):
                found.setdefault(name.removesuffix(".txt"), folder / name)
    return found


def _usual(lists: dict[str, Location]) -> list[str]:
    """The lists that are read where none is named: that of training and that of validation, else the only one."""
    training = next((name for name in lists if name == "train_aug"), "train")
    validation = next((name for name in lists if name in ("val", "valid", "validation")), "")
    found = [name for name in (training, validation) if name in lists] if training in lists else sorted(lists)
    if training not in lists and len(found) > 1:
        raise ValueError(f"--split: which of the lists {words(found)}? Name them, for example --split {found[0]}.")
    return found


def _read_split(devkit: Location, split: str, lists: dict[str, Location], pictures: _Pictures) -> list[SourceImage]:
    if not is_safe_id(split):
        raise ValueError(f"--split {split!r}: expected the name of a list in ImageSets/Segmentation, e.g. train_aug.")
    if split not in lists:
        raise ValueError(f"{devkit}: no list {split!r} in ImageSets; there are {words(sorted(lists))}.")
    try:
        text = decode_text(lists[split].read_bytes()).content
    except ValueError as error:
        raise ValueError(f"{lists[split]}: {error}.") from error
    return [_parse_line(devkit, split, line, pictures) for line in text.splitlines() if line.strip()]


def _parse_line(devkit: Location, split: str, line: str, pictures: _Pictures) -> SourceImage:
    """``2007_000032``, ``2007_000032 -1`` or ``/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png``."""
    parts = line.split()
    is_flagged = len(parts) == 2 and parts[1] in _FLAGS  # whether it shows one class; Annotations say it of all
    if len(parts) == 2 and all(part.startswith("/") for part in parts):
        image_id = re.sub(r"\.[^./]*$", "", parts[0].rsplit("/", 1)[-1])
        image_path, mask_path = (part.removeprefix("/") for part in parts)
    elif len(parts) == 1 or is_flagged:
        image_id = re.sub(r"\.[^./]*$", "", parts[0]) if is_image_name(parts[0]) else parts[0]
        image_path, mask_path = "" if "/" in image_id else pictures.path(image_id), None
    else:
        raise ValueError(
            f"split list {split}: line {line[:80]!r}: expected '2007_000032' or "
            "'/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png'."
        )
    if mask_path is None and not is_safe_id(image_id):
        # the manifest's rows name the trouble with the id
        return SourceImage(image_id, uri="", split=split, has_own_id=True, problem=_UNSAFE if "/" in image_id else None)
    try:
        mask_uri = (devkit / mask_path).uri if mask_path else None
        return SourceImage(image_id, (devkit / image_path).uri, split=split, mask_uri=mask_uri, has_own_id=True)
    except ValueError:
        return SourceImage(image_id, uri="", split=split, problem=_UNSAFE, has_own_id=True)


def _labelled_without_lists(devkit: Location, splits: Sequence[str]) -> list[SourceImage]:
    """The images with an XML file beside them or in ``Annotations``; a folder train, val or test is a split."""
    files = files_below(devkit)
    images = {_stem(path): path for path in files if is_image_name(path)}
    entries, places = [], []
    for path in (path for path in files if path.endswith(".xml")):
        stem = _stem(path)
        folder = stem.rpartition("/")[0].partition("/")[0]
        split = folder if folder.lower() in _SPLIT_FOLDERS else ""
        if splits and split not in splits:
            continue
        picture = images.get(stem) or images.get(stem.replace("Annotations/", "JPEGImages/"))
        problem = None if picture else "its XML file has no image beside it or in JPEGImages"
        uri = (devkit / picture).uri if picture else ""
        entries.append(SourceImage(stem.rsplit("/", 1)[-1], uri, split=split, problem=problem))
        places.append(devkit / path)
    if not entries:
        raise ValueError(
            f"{devkit}: no lists in ImageSets and no XML files{' of the split ' + splits[0] if splits else ''}. Give "
            "the folder that holds JPEGImages, Annotations and ImageSets, or the one with images and XML files."
        )
    return _labels_from_annotations(entries, places)


def _stem(path: str) -> str:
    return re.sub(r"\.[^./]*$", "", path)


# Labels


def _labels_from_file(images: Sequence[SourceImage], location: Location) -> list[SourceImage]:
    multi_hot = read_label_file(location)
    length = len(next(iter(multi_hot.values())))
    if length != len(VOC_CLASSES):
        raise ValueError(f"{location}: {length} classes per image; VOC has {len(VOC_CLASSES)}.")

    def label(image: SourceImage) -> SourceImage:
        if image.image_id not in multi_hot:
            return replace(image, problem=image.problem or f"it has no labels in {location.name}")
        return replace(image, labels=tuple(VOC_CLASSES[c] for c in np.flatnonzero(multi_hot[image.image_id])))

    return [label(image) for image in images]


def _labels_from_annotations(images: Sequence[SourceImage], places: Sequence[Location | None]) -> list[SourceImage]:
    """Labels and written sizes from an XML file each; None: an image that cannot have one."""
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(_label_from_annotation, images, places))


def _label_from_annotation(image: SourceImage, place: Location | None) -> SourceImage:
    if image.problem or place is None:
        return image
    try:
        found = parse_annotation(place.read_bytes())
    except FileNotFoundError:
        return replace(image, problem="it has no file in Annotations")
    except ValueError as error:
        return replace(image, problem=f"its file in Annotations is not readable: {error}")
    return replace(image, labels=found.names, declared=found.size)
