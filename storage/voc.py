"""PASCAL VOC's layout as a label source: split lists, ``cls_labels.npy`` or ``Annotations``, masks.

It reads VOC's own devkit, and folders that other tools write in this layout. These may have other classes, images with
any suffix, and instead of lists only XML files beside the images. If only some classes are chosen, other labels are
ignored, and images without a chosen class are left out.
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

# In the order of cls_labels.npy; the value of a class in masks is its position, starting at 1.
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle",
    "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person",
    "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
VOC_CLASS_VALUES = {name: value for value, name in enumerate(VOC_CLASSES, start=1)}

_READERS = 16
_UNSAFE = "its line in the split list leads out of the devkit"
_FOLDERS = (("Annotations/", "JPEGImages/"), ("labels/", "data/"))  # of XML files and pictures; the second: FiftyOne's
_SPLIT_FOLDERS = ("train", "val", "valid", "validation", "test")
_FLAGS = ("-1", "0", "1")  # the flags of images in lists such as Main/cat_train.txt


def voc_class_values(class_names: Sequence[str]) -> list[int]:
    """The values of classes in masks: VOC's own values if all are among its 20 classes, else 1, 2, ... in order."""
    if set(class_names) <= set(VOC_CLASSES):
        return [VOC_CLASS_VALUES[name] for name in class_names]
    return list(range(1, len(class_names) + 1))


def read_voc(
    devkit: Location,
    splits: Sequence[str] = (),
    class_names: Sequence[str] | None = None,
    labels: Location | None = None,
) -> Source:
    """Read a devkit folder (the one with ``JPEGImages``), or another folder in this layout.

    Args:
        splits: names of lists, such as ``["train_aug", "val"]``; the split of an image is the name of its list. Empty:
            train_aug (or train) and val, or all XML files if there are no lists.
        class_names: the classes to use; None: VOC's 20, or other classes if the XML files have others.
        labels: a ``cls_labels.npy``; by default the devkit's own, else its ``Annotations``.

    Raises:
        ValueError: no image has one of the classes, a list is missing or unreadable, or the label file has another
            format.
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
    """The source with the chosen classes; images without them are left out."""
    found = sorted({name for image in images for name in image.labels})
    foreign = [name for name in found if name not in VOC_CLASS_VALUES]
    if class_names is None and foreign and len(foreign) < len(found):
        raise ValueError(
            f"{devkit}: some objects have VOC's classes and others have classes such as {foreign[0]!r}, so the values "
            f"in masks are not known. Give the classes: --classes {','.join(found[:20])}. If all are among VOC's 20, "
            "masks have VOC's values, else 1, 2, ... in the order of --classes."
        )
    names = tuple(class_names or (found if foreign else VOC_CLASSES))
    known = [*found, *VOC_CLASSES]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"There are {words(found or VOC_CLASSES)}."
            raise ValueError(f"class {name!r}: not one of VOC's 20 classes, and no object in {devkit} has it. {hint}")
    is_voc = set(names) <= set(VOC_CLASSES)

    def is_kept(name: str) -> bool:
        return name in names or (is_voc and name in foreign)  # a name outside VOC's 20 classes is refused later

    chosen = [replace(image, labels=tuple(filter(is_kept, image.labels))) for image in images]
    kept = [new for new, old in zip(chosen, images, strict=True) if new.labels or new.problem or not old.labels]
    notes = []
    if num_left_out := len(chosen) - len(kept):
        notes.append(f"{num_left_out:,} image{'s' * (num_left_out > 1)} left out (none of the chosen classes).")
    if not is_voc:
        numbered = words([f"{number} {name}" for number, name in enumerate(names, start=1)])
        notes.append(f"the classes come from the XML files. Their values in masks are {numbered}.")
    return Source(tuple(kept), names, tuple(voc_class_values(names)), notes=tuple(notes))


# Split lists


class _Pictures:
    """The files of ``JPEGImages`` by name without suffix; they are listed once, when a suffix is not known."""

    def __init__(self, devkit: Location) -> None:
        self.folder = devkit / "JPEGImages"
        names = [name for name in self.folder.list_names() if is_image_name(name) and not name.startswith(".")]
        self.by_stem = {name.rsplit(".", 1)[0]: name for name in reversed(names)}

    def path(self, image_id: str) -> str:
        return f"JPEGImages/{self.by_stem.get(image_id, f'{image_id}.jpg')}"


def _lists(devkit: Location) -> dict[str, Location]:
    """The lists of a devkit by name; lists for segmentation replace lists of the same name for whole images."""
    folders = [devkit / "ImageSets" / task for task in ("Segmentation", "Main")]
    found: dict[str, Location] = {}
    for folder in folders:
        for name in folder.list_names():
            if name.endswith(".txt"):
                found.setdefault(name.removesuffix(".txt"), folder / name)
    return found


def _usual(lists: dict[str, Location]) -> list[str]:
    """The lists that are read by default: one for training and one for validation, else the only list."""
    training = next((name for name in lists if name == "train_aug"), "train")
    validation = next((name for name in lists if name in ("val", "valid", "validation")), "")
    found = [name for name in (training, validation) if name in lists] if training in lists else sorted(lists)
    if training not in lists and len(found) > 1:
        raise ValueError(f"--split: which of the lists {words(found)}? Give their names, such as --split {found[0]}.")
    return found


def _read_split(devkit: Location, split: str, lists: dict[str, Location], pictures: _Pictures) -> list[SourceImage]:
    if not is_safe_id(split):
        raise ValueError(f"--split {split!r}: expected the name of a list in ImageSets/Segmentation, e.g. train_aug.")
    if split not in lists:
        raise ValueError(
            f"{devkit}: no list {split!r} in ImageSets; there are {words(sorted(lists))}. Name one of these: "
            f"--split {min(lists)}."
        )
    try:
        text = decode_text(lists[split].read_bytes()).content
    except ValueError as error:
        raise ValueError(f"{lists[split]}: {error}.") from error
    return [_parse_line(devkit, split, line, pictures) for line in text.splitlines() if line.strip()]


def _parse_line(devkit: Location, split: str, line: str, pictures: _Pictures) -> SourceImage:
    """The image of a line: ``2007_000032``, ``2007_000032 -1`` or ``/JPEGImages/a.jpg /SegmentationClass/a.png``."""
    parts = line.split()
    is_flagged = len(parts) == 2 and parts[1] in _FLAGS  # a flag for one class; Annotations have all classes
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
        # the manifest's row will say what is wrong with the id
        return SourceImage(image_id, uri="", split=split, has_own_id=True, problem=_UNSAFE if "/" in image_id else None)
    try:
        mask_uri = (devkit / mask_path).uri if mask_path else None
        return SourceImage(image_id, (devkit / image_path).uri, split=split, mask_uri=mask_uri, has_own_id=True)
    except ValueError:
        return SourceImage(image_id, uri="", split=split, problem=_UNSAFE, has_own_id=True)


def _labelled_without_lists(devkit: Location, splits: Sequence[str]) -> list[SourceImage]:
    """The images with an XML file beside them, in ``Annotations`` or in FiftyOne's ``labels``.

    Folders train, val and test are splits.
    """
    files = files_below(devkit)
    images = {_stem(path): path for path in files if is_image_name(path)}
    entries, places = [], []
    for path in (path for path in files if path.endswith(".xml")):
        stem = _stem(path)
        folder = stem.rpartition("/")[0].partition("/")[0]
        split = folder if folder.lower() in _SPLIT_FOLDERS else ""
        if splits and split not in splits:
            continue
        beside = [stem, *(stem.replace(xml_folder, picture_folder) for xml_folder, picture_folder in _FOLDERS)]
        picture = next((images[name] for name in beside if name in images), None)
        problem = None if picture else "its XML file has no image beside it or in JPEGImages"
        uri = (devkit / picture).uri if picture else ""
        entries.append(SourceImage(stem.rsplit("/", 1)[-1], uri, split=split, problem=problem))
        places.append(devkit / path)
    if not entries:
        raise ValueError(
            f"{devkit}: no lists in ImageSets and no XML files{' of the split ' + splits[0] if splits else ''}. Give "
            "the folder with JPEGImages, Annotations and ImageSets, or the folder with images and XML files."
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
    """Labels and sizes from one XML file per image; None: an image that cannot have one."""
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
