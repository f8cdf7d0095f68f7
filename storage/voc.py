"""PASCAL VOC's devkit as a label source: split lists, ``cls_labels.npy`` or ``Annotations``, masks.

With a chosen class subset, other classes are simply not labels; images without a chosen class are left out.
"""

import difflib
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from xml.etree import ElementTree

import numpy as np

from storage.label_file import read_label_file
from storage.location import Location
from storage.names import is_safe_id
from storage.sources import SourceImage, files_by_stem

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


@dataclass(frozen=True)
class VocImages:
    """The images of a devkit.

    Attributes:
        images: in the order of the split lists.
        num_left_out: images without any of the chosen classes.
    """

    images: tuple[SourceImage, ...]
    num_left_out: int


def voc_class_values(class_names: Sequence[str]) -> list[int]:
    """The mask values of some of the 20 classes.

    Raises:
        ValueError: a name that is none of them.
    """
    for name in class_names:
        if name not in VOC_CLASS_VALUES:
            near = difflib.get_close_matches(name, VOC_CLASSES, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"VOC's classes are {', '.join(VOC_CLASSES)}."
            raise ValueError(f"class {name!r}: not one of VOC's 20 classes. {hint}")
    return [VOC_CLASS_VALUES[name] for name in class_names]


def read_voc(
    devkit: Location,
    splits: Sequence[str],
    class_names: Sequence[str] = VOC_CLASSES,
    labels: Location | None = None,
    masks: Location | None = None,
    saliency: Location | None = None,
) -> VocImages:
    """Read a devkit folder (the one with ``JPEGImages``).

    Args:
        splits: names of lists, e.g. ``["train_aug", "val"]``; each image's split is its list's name.
        class_names: the classes wanted, all of them VOC's.
        labels: a ``cls_labels.npy``; by default the devkit's own, else its ``Annotations``.
        masks: a folder of ``<id>.png``; by default those that the split list names.
        saliency: a folder of ``<id>.<suffix>``.

    Raises:
        ValueError: an unknown class, a missing or unreadable list, a label file that is none.
    """
    voc_class_values(class_names)
    entries = [entry for split in splits for entry in _read_split(devkit, split)]
    own = devkit / "cls_labels.npy"
    if labels is not None or own.exists():
        labelled = _labels_from_file(entries, labels or own)
    else:
        with ThreadPoolExecutor(_READERS) as pool:
            labelled = list(pool.map(partial(_label_from_annotation, devkit), entries))
    chosen = [_choose(image, class_names) for image in labelled]
    kept = [image for image in chosen if image.labels or image.problem]
    mask_of, saliency_of = files_by_stem(masks), files_by_stem(saliency)
    images = tuple(
        replace(
            image,
            mask_uri=mask_of.get(image.image_id) if masks else image.mask_uri,
            saliency_uri=saliency_of.get(image.image_id),
        )
        for image in kept
    )
    return VocImages(images, num_left_out=len(chosen) - len(images))


# Split lists


def _read_split(devkit: Location, split: str) -> list[SourceImage]:
    if not is_safe_id(split):
        raise ValueError(f"--split {split!r}: expected the name of a list in ImageSets/Segmentation, e.g. train_aug.")
    folders = [devkit / "ImageSets" / task for task in ("Segmentation", "Main")]
    for folder in folders:
        try:
            text = (folder / f"{split}.txt").read_bytes().decode("utf-8")
        except FileNotFoundError:
            continue
        lines = [line for line in text.splitlines() if line.strip()]
        return [_parse_line(devkit, split, line) for line in lines]
    known = sorted({name.removesuffix(".txt") for folder in folders for name in folder.list_names()})
    raise ValueError(f"{devkit}: no list {split!r} in ImageSets; there are {', '.join(known[:20]) or 'none'}.")


def _parse_line(devkit: Location, split: str, line: str) -> SourceImage:
    """``2007_000032`` or ``/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png``."""
    parts = line.split()
    if len(parts) == 2 and all(part.startswith("/") for part in parts):
        image_id = re.sub(r"\.[^./]*$", "", parts[0].rsplit("/", 1)[-1])
        image_path, mask_path = (part.removeprefix("/") for part in parts)
    elif len(parts) == 1:
        image_id, image_path, mask_path = parts[0], f"JPEGImages/{parts[0]}.jpg", None
    else:
        raise ValueError(
            f"split list {split}: line {line[:80]!r}: expected '2007_000032' or "
            "'/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png'."
        )
    if len(parts) == 1 and not is_safe_id(image_id):
        return SourceImage(image_id, uri="", split=split)  # the manifest's rows name the trouble with the id
    try:
        mask_uri = (devkit / mask_path).uri if mask_path else None
        return SourceImage(image_id, (devkit / image_path).uri, split=split, mask_uri=mask_uri)
    except ValueError:
        return SourceImage(image_id, uri="", split=split, problem=_UNSAFE)


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


def _label_from_annotation(devkit: Location, image: SourceImage) -> SourceImage:
    if image.problem or not is_safe_id(image.image_id):
        return image
    try:
        root = _parse_xml((devkit / "Annotations" / f"{image.image_id}.xml").read_bytes())
    except FileNotFoundError:
        return replace(image, problem="it has no file in Annotations")
    except ValueError as error:
        return replace(image, problem=f"its file in Annotations is not readable: {error}")
    names = {(element.text or "").strip() for element in root.iterfind("object/name")}
    return replace(
        image,
        labels=tuple(sorted(names)),
        height=_pixels(root, "size/height"),
        width=_pixels(root, "size/width"),
    )


def _parse_xml(data: bytes) -> ElementTree.Element:
    """Parse without document types, and so without entities that grow or read files."""
    text = data.decode("utf-8")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("it declares a document type")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"not XML ({error})") from error


def _pixels(root: ElementTree.Element, path: str) -> int | None:
    text = (root.findtext(path) or "").strip()
    return int(text) if re.fullmatch(r"[1-9][0-9]{0,5}", text) else None


def _choose(image: SourceImage, class_names: Sequence[str]) -> SourceImage:
    """Keep the chosen classes; a name that is none of VOC's stays, to be refused by name."""
    labels = (name for name in image.labels if name in class_names or name not in VOC_CLASS_VALUES)
    return replace(image, labels=tuple(labels))
