"""VOC's layout: lists, cls_labels.npy and Annotations, VOC's own devkit and what other tools write in its layout."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from storage.annotation_xml import parse_annotation
from storage.images import read_mask
from storage.location import Location
from storage.sources import join_images, manifest_rows
from storage.voc import VOC_CLASS_VALUES, VOC_CLASSES, read_voc, voc_class_values

ANIMALS = ["cat", "cow", "dog", "horse", "sheep"]


def multi_hot(*names: str) -> np.ndarray:
    return np.array([name in names for name in VOC_CLASSES], dtype=np.float32)


def put_text(location: Location, text: str) -> Location:
    location.write_bytes(text.encode())
    return location


def put_label_file(location: Location, labels: object) -> Location:
    buffer = io.BytesIO()
    np.save(buffer, np.array(labels, dtype=object))
    location.write_bytes(buffer.getvalue())
    return location


def annotation(*names: str) -> str:
    objects = "".join(f"<object><name>{name}</name></object>" for name in names)
    return f"<annotation><size><width>500</width><height>375</height></size>{objects}</annotation>"


def put_devkit(place: Location, labels: dict[str, str], lists: dict[str, str], suffix: str = "jpg") -> Location:
    """A devkit of empty pictures: id -> class names separated by commas; list -> its text."""
    for image_id, names in labels.items():
        put_text(place / f"Annotations/{image_id}.xml", annotation(*filter(None, names.split(","))))
        (place / f"JPEGImages/{image_id}.{suffix}").write_bytes(b"1")
    for name, text in lists.items():
        put_text(place / f"ImageSets/Main/{name}.txt", text)
    return place


def test_both_split_formats_name_the_same_images(location: Location) -> None:
    ids = ["2007_000032", "2007_000039"]
    put_label_file(location / "cls_labels.npy", {name: multi_hot("cat") for name in ids})
    put_text(location / "ImageSets/Segmentation/plain.txt", "\n".join(ids) + "\n\n")
    pairs = [f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png" for name in ids]
    put_text(location / "ImageSets/Segmentation/pairs.txt", "\r\n".join(pairs))
    plain = read_voc(location, ["plain"]).images
    pairs_ = read_voc(location, ["pairs"]).images
    assert [image.image_id for image in plain] == [image.image_id for image in pairs_] == ids
    assert plain[0].uri == pairs_[0].uri == (location / "JPEGImages/2007_000032.jpg").uri
    assert plain[0].mask_uri is None
    assert pairs_[0].mask_uri == (location / "SegmentationClassAug/2007_000032.png").uri
    assert {image.split for image in plain} == {"plain"}


def test_a_class_subset_drops_other_labels_and_counts_images_left_out(location: Location) -> None:
    labels = {"a": multi_hot("cat", "person"), "b": multi_hot("person"), "c": multi_hot("sheep", "cow")}
    put_label_file(location / "cls_labels.npy", labels)
    put_text(location / "ImageSets/Segmentation/train.txt", "a\nb\nc\nd\n")
    found = read_voc(location, ["train"], ANIMALS)
    assert [(image.image_id, image.labels) for image in found.images[:2]] == [("a", ("cat",)), ("c", ("cow", "sheep"))]
    assert found.notes == ("1 image left out (none of the chosen classes).",)
    assert found.images[2].problem == "it has no labels in cls_labels.npy"
    assert [row.labels for row in manifest_rows(found.images, ANIMALS)] == [(0,), (1, 4), ()]


def test_the_pixels_of_dropped_classes_are_ignored(tmp_path: Path) -> None:
    values = np.array([[0, 8, 15, 17, 255]], dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "mask.png")
    mask = read_mask(str(tmp_path / "mask.png"), voc_class_values(ANIMALS))
    np.testing.assert_array_equal(mask, [[0, 1, 255, 5, 255]])


def test_annotations_give_labels_and_sizes(location: Location) -> None:
    put_text(location / "ImageSets/Main/train.txt", "a\nb\nc\nd\ne\n")
    put_text(location / "Annotations/a.xml", annotation("person", "cat", "cat"))
    put_text(location / "Annotations/b.xml", annotation("zebra"))
    put_text(location / "Annotations/c.xml", "<annotation><object>")
    put_text(location / "Annotations/e.xml", '<!DOCTYPE a [<!ENTITY x "ha">]>' + annotation("&x;"))
    images = read_voc(location, ["train"], ANIMALS).images
    assert (images[0].labels, images[0].declared) == (("cat",), (375, 500))
    assert images[0].height is None  # the picture's header says it
    problems = [row.problem for row in manifest_rows(images, ANIMALS)]
    assert problems[:2] == [None, "label 'zebra' is not in the class list"]
    assert problems[2] is not None and problems[2].startswith("its file in Annotations is not readable: not XML")
    assert problems[3:] == [
        "it has no file in Annotations",
        "its file in Annotations is not readable: it declares a document type",
    ]


@pytest.mark.parametrize(
    "line", ["../../etc/passwd", "/JPEGImages/../../x.jpg /SegmentationClassAug/x.png", "/a//b.jpg /c"]
)
def test_a_line_that_leads_out_of_the_devkit_is_a_problem(line: str, location: Location) -> None:
    put_label_file(location / "cls_labels.npy", {"a": multi_hot("cat"), "x": multi_hot("cat")})
    put_text(location / "ImageSets/Segmentation/train.txt", line)
    (row,) = manifest_rows(read_voc(location, ["train"]).images, VOC_CLASSES)
    assert row.problem is not None and row.uri == "" and row.labels == ()


def test_an_unknown_list_class_or_line_is_refused_with_what_is_there(location: Location) -> None:
    put_label_file(location / "cls_labels.npy", {"a": multi_hot("cat")})
    put_text(location / "ImageSets/Segmentation/train.txt", "a\n")
    put_text(location / "ImageSets/Segmentation/odd.txt", "a 1 2\n")
    with pytest.raises(ValueError, match=r"no list 'val' in ImageSets; there are odd, train\."):
        read_voc(location, ["val"])
    with pytest.raises(ValueError, match=r"class 'sheeps': not one of VOC's 20 classes, .*Did you mean 'sheep'"):
        read_voc(location, ["train"], ["sheeps"])
    with pytest.raises(ValueError, match=r"line 'a 1 2': expected '2007_000032' or"):
        read_voc(location, ["odd"])
    with pytest.raises(ValueError, match="expected the name of a list"):
        read_voc(location, ["../train"])
    with pytest.raises(ValueError, match="no lists in ImageSets and no XML files"):
        read_voc(location / "elsewhere")


def test_voc_values_are_the_devkits() -> None:
    assert len(VOC_CLASSES) == 20
    assert [VOC_CLASS_VALUES[name] for name in ("aeroplane", "cat", "person", "tvmonitor")] == [1, 8, 15, 20]


# What other tools write


@pytest.mark.parametrize("suffix", ["png", "JPG", "jpeg"])
def test_images_of_any_suffix_are_found(suffix: str, location: Location) -> None:
    devkit = put_devkit(location, {"a": "cat", "b": "dog"}, {"train": "a\nb\n"}, suffix)
    assert [image.uri for image in read_voc(devkit).images] == [(devkit / f"JPEGImages/{n}.{suffix}").uri for n in "ab"]


def test_own_classes_number_masks_from_one_in_their_order(location: Location) -> None:
    devkit = put_devkit(location, {"a": "helmet", "b": "hard hat,helmet"}, {"train": "a\nb\n"})
    found = read_voc(devkit)
    assert (found.class_names, found.class_values) == (("hard hat", "helmet"), (1, 2))
    assert [image.labels for image in found.images] == [("helmet",), ("hard hat", "helmet")]
    chosen = read_voc(devkit, class_names=["helmet", "hard hat"])
    assert (chosen.class_names, chosen.class_values) == (("helmet", "hard hat"), (1, 2))
    with pytest.raises(ValueError, match=r"class 'helmets': .*Did you mean 'helmet'\?"):
        read_voc(devkit, class_names=["helmets"])


def test_classes_that_are_partly_vocs_are_asked_about(location: Location) -> None:
    """Their values in masks may be VOC's or 1, 2, ...: a guess would make wrong figures."""
    devkit = put_devkit(location, {"a": "cat", "b": "rabbit"}, {"train": "a\nb\n"})
    with pytest.raises(ValueError, match=r"others have classes such as 'rabbit'.* --classes cat,rabbit\."):
        read_voc(devkit)
    found = read_voc(devkit, class_names=["cat", "rabbit"])
    assert (found.class_values, len(found.images)) == ((1, 2), 2)
    assert read_voc(devkit, class_names=["cat"]).class_values == (8,)


def test_lists_with_a_mark_with_flags_and_with_suffixes_are_read(location: Location) -> None:
    labels = {"a": "cat", "b": "dog", "c": "cat"}
    for text in ("\ufeffa\r\nb\r\nc\r\n", "a  1\nb -1\nc  0\n", "a.jpg\nb.jpg\nc.jpg\n\n"):
        devkit = put_devkit(location, labels, {"train": text})
        assert [(image.image_id, image.labels) for image in read_voc(devkit, ["train"]).images] == [
            ("a", ("cat",)),
            ("b", ("dog",)),
            ("c", ("cat",)),
        ]


def test_xml_files_beside_images_need_no_lists(location: Location) -> None:
    """labelImg's folder, and Roboflow's with a folder per split."""
    for split, name in (("train", "cat"), ("valid", "dog")):
        put_text(location / f"{split}/0.xml", annotation(name))
        (location / f"{split}/0.jpg").write_bytes(b"1")
    put_text(location / "train/1.xml", annotation("cat"))
    images, _ = join_images(read_voc(location).images)
    assert [(image.image_id, image.split, image.labels) for image in images] == [
        ("train__0", "train", ("cat",)),
        ("1", "train", ()),
        ("valid__0", "valid", ("dog",)),
    ]
    assert images[1].problem == "its XML file has no image beside it or in JPEGImages"
    assert len(read_voc(location, ["valid"]).images) == 1


def test_the_usual_lists_are_read_where_none_is_named(location: Location) -> None:
    labels = {"a": "cat", "b": "dog"}
    devkit = put_devkit(location, labels, {"train": "a\n", "val": "b\n", "trainval": "a\nb\n"})
    assert [image.split for image in read_voc(devkit).images] == ["train", "val"]
    put_text(devkit / "ImageSets/Main/train_aug.txt", "a\n")
    assert [image.split for image in read_voc(devkit).images] == ["train_aug", "val"]


def test_an_image_in_train_and_train_aug_counts_in_the_list_named_first(location: Location) -> None:
    devkit = put_devkit(location, {"a": "cat", "b": "dog"}, {"train": "a\n", "train_aug": "a\nb\n"})
    found = read_voc(devkit, ["train", "train_aug"])
    images, _ = join_images(found.images, is_split_ordered=True)
    assert [(image.image_id, image.split) for image in images] == [("a", "train"), ("b", "train_aug")]


def test_an_image_without_objects_is_unlabelled(location: Location) -> None:
    devkit = put_devkit(location, {"a": "cat", "b": ""}, {"train": "a\nb\n"})
    assert [image.labels for image in read_voc(devkit).images] == [("cat",), ()]


@pytest.mark.parametrize(
    "data",
    [
        annotation("Käse").encode(),
        b"\xef\xbb\xbf" + annotation("Käse").encode(),
        ('<?xml version="1.0" encoding="iso-8859-1"?>' + annotation("Käse")).encode("latin-1"),
        ('<?xml version="1.0" encoding="utf-16"?>' + annotation("Käse")).encode("utf-16"),
        annotation("Ka\u0308se").encode(),
    ],
)
def test_xml_is_read_in_the_encoding_that_it_has(data: bytes) -> None:
    assert parse_annotation(data).names == ("Käse",)


def test_xml_in_another_encoding_than_it_says_is_named() -> None:
    with pytest.raises(ValueError, match="it is not text in utf-8"):
        parse_annotation(annotation("Käse").encode("latin-1"))
