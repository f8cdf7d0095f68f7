"""From what a source says to a manifest's rows: numbers, ids, rows of one image, negatives, files by id."""

import unicodedata

import pytest

from storage.location import Location
from storage.sources import (
    SourceImage,
    join_images,
    label_names,
    manifest_rows,
    number_labels,
    with_files,
    with_negatives,
)

ANIMALS = ["cat", "cow", "dog", "horse", "sheep"]


def image(path: str, *labels: str, **others: object) -> SourceImage:
    image_id = path.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    return SourceImage(**{"image_id": image_id, "uri": path, "labels": labels} | others)  # type: ignore[arg-type]


# Class numbers


def test_names_become_ascending_class_numbers() -> None:
    (row,) = manifest_rows([SourceImage("a", "/a.jpg", ("sheep", "cat", "sheep"), "train")], ANIMALS)
    assert (row.labels, row.split, row.problem) == ((0, 4), "train", None)


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (SourceImage("../up", "/a.jpg", ("cat",)), "its id is not a plain name"),
        (SourceImage("", "/a.jpg", ("cat",)), "its id is not a plain name"),
        (SourceImage("a", "/a.jpg", ("cat", "zebra")), "label 'zebra' is not in the class list"),
        (SourceImage("first", "/a.jpg", ("cat",)), "its id is already taken by an earlier image"),
        (SourceImage("a", "/a.jpg", ("cat",), problem="known before"), "known before"),
    ],
)
def test_an_image_that_cannot_be_used_becomes_a_row_that_says_why(image: SourceImage, problem: str) -> None:
    first, row = manifest_rows([SourceImage("first", "/first.jpg"), image], ANIMALS)
    assert first.problem is None
    assert row.problem is not None and row.problem.startswith(problem)
    assert row.labels == () and row.image_id == image.image_id


def test_labels_that_are_numbers_become_names_of_the_list() -> None:
    def named(*labels: str, classes: tuple[str, ...] = ("cat", "cow", "dog"), first: int | None = None) -> list[str]:
        return [each.labels[0] for each in number_labels([image(f"/{n}", n) for n in labels], classes, first)]

    assert named("0", "2", "1") == ["cat", "dog", "cow"]
    assert named("1.0", "3.0") == ["cat", "dog"]  # pandas writes whole numbers so beside an empty cell
    assert named("1", "2", first=0) == ["cow", "dog"]
    assert named("1", "2", first=1) == ["cat", "cow"]
    assert named("1", "x") == ["1", "x"]
    assert named("1", "2", classes=("1", "2")) == ["1", "2"]
    with pytest.raises(ValueError, match=r"may start at 0 or at 1\. Say which: --first-class 0 or --first-class 1"):
        named("1", "2")
    with pytest.raises(ValueError, match="label 7: --classes has 3 names, numbered from 0 to 2"):
        named("0", "7")


# Rows of one image


def test_the_labels_of_an_images_rows_are_put_together() -> None:
    rows = [image("/a.jpg", "cat"), image("/b.jpg"), image("/a.jpg", "dog", mask_uri="/a.png"), image("/b.jpg", "cat")]
    images, notes = join_images(rows)
    assert [(each.image_id, each.labels, each.mask_uri) for each in images] == [
        ("a", ("cat", "dog"), "/a.png"),
        ("b", ("cat",), None),
    ]
    assert notes == ["4 rows name 2 different images; the labels of each image are joined."]


def test_rows_that_number_annotations_still_name_one_image() -> None:
    rows = [
        image("/a.jpg", "cat", image_id="1", has_own_id=True),
        image("/a.jpg", "dog", image_id="2", has_own_id=True),
    ]
    assert [(each.image_id, each.labels) for each in join_images(rows)[0]] == [("1", ("cat", "dog"))]


def test_an_image_in_two_splits_or_with_two_masks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image 'a' is in the splits 'train' and 'val'. Give it one .*--split train"):
        join_images([image("/a.jpg", "cat", split="train"), image("/a.jpg", "dog", split="val")])
    with pytest.raises(ValueError, match=r"image 'a' has two mask files, /1.png and /2.png"):
        join_images([image("/a.jpg", mask_uri="/1.png"), image("/a.jpg", mask_uri="/2.png")])


def test_lists_that_share_images_give_them_to_the_first_list() -> None:
    """VOC's train is a part of train_aug."""
    rows = [
        image("/a.jpg", "cat", split="train", mask_uri="/a.png"),
        image("/a.jpg", "cat", split="train_aug", mask_uri="/a_aug.png"),
        image("/b.jpg", "dog", split="train_aug"),
    ]
    images, notes = join_images(rows, is_split_ordered=True)
    assert [(each.split, each.mask_uri) for each in images] == [("train", "/a.png"), ("train_aug", None)]
    assert notes == ["1 image is in several splits and used only in the first of them (for example 'a', in 'train')."]


def test_rows_with_a_problem_are_not_joined() -> None:
    rows = [image("", problem="its row names no image", image_id=f"line {n}") for n in (2, 3)]
    assert len(join_images(rows)[0]) == 2


# Ids


def test_different_images_with_one_file_name_get_the_folders_that_tell_them_apart() -> None:
    paths = ["/data/cats/0.jpg", "/data/dogs/0.jpg", "/data/dogs/1.jpg"]
    assert [each.image_id for each in join_images([image(path) for path in paths])[0]] == ["cats__0", "dogs__0", "1"]
    deep = ["/data/train/x/0.jpg", "/data/val/x/0.jpg"]
    assert [each.image_id for each in join_images([image(path) for path in deep])[0]] == ["train__x__0", "val__x__0"]


def test_images_that_differ_by_their_suffix_alone_keep_it() -> None:
    images, _ = join_images([image("/a.jpg"), image("/a.png"), image("/b.jpg")])
    assert [each.image_id for each in images] == ["a.jpg", "a.png", "b"]


def test_a_longer_id_is_never_one_that_another_image_has() -> None:
    taken = image("/z/x__a.jpg")
    images, _ = join_images([image("/x/a.jpg"), image("/y/a.jpg"), taken])
    ids = [each.image_id for each in images]
    assert len(set(ids)) == 3 and ids[2] == "x__a"


def test_two_images_with_one_id_of_their_own_are_refused() -> None:
    rows = [image("/a.jpg", image_id="7", has_own_id=True), image("/b.jpg", image_id="7", has_own_id=True)]
    with pytest.raises(ValueError, match=r"the id '7' belongs to two images, /a.jpg and /b.jpg"):
        join_images(rows)


def test_ids_have_composed_letters() -> None:
    (only,), _ = join_images([image(f"/{unicodedata.normalize('NFD', 'Kühe')}.jpg")])
    assert only.image_id == unicodedata.normalize("NFC", "Kühe")


# Negative images


def test_a_label_can_mean_that_an_image_shows_no_class() -> None:
    rows = [image("/a", "normal"), image("/b", "cat", "normal"), image("/c", "cat"), image("/d")]
    marked = with_negatives(rows, "normal")
    assert [(each.labels, each.is_negative) for each in marked] == [
        ((), True),
        (("cat",), False),
        (("cat",), False),
        ((), False),
    ]
    assert label_names(marked) == ["cat"]
    assert [row.negative for row in manifest_rows(marked, ["cat"])] == [True, False, False, False]


def test_images_without_a_label_can_be_said_to_show_no_class() -> None:
    rows = [image("/a"), image("/b", "cat"), image("", problem="bad")]
    assert [each.is_negative for each in with_negatives(rows, is_unlabelled_negative=True)] == [True, False, False]


def test_an_image_that_has_a_label_in_another_row_is_not_negative() -> None:
    (only,), _ = join_images([image("/a", is_negative=True), image("/a", "cat")])
    assert (only.labels, only.is_negative) == (("cat",), False)


# Files by id


def test_mask_and_saliency_folders_are_matched_by_id_and_split(location: Location) -> None:
    for name in ("masks/a.png", "saliency/a.jpg", "saliency/train/b.png", "saliency/.c.partial"):
        (location / name).write_bytes(b"1")
    rows = [image("/a.jpg", mask_uri="/old.png"), image("/b.jpg", split="train", mask_uri="/old.png"), image("/c.jpg")]
    (a, b, c), notes = with_files(rows, location / "masks", location / "saliency")
    assert (a.mask_uri, b.mask_uri, c.mask_uri) == ((location / "masks/a.png").uri, None, None)
    assert (a.saliency_uri, c.saliency_uri) == ((location / "saliency/a.jpg").uri, None)
    assert b.saliency_uri == (location / "saliency/train/b.png").uri
    assert with_files(rows) == (rows, [])
    assert notes == [
        f"--masks {location / 'masks'}: 1 of 3 images have a file there (first one missing: b.png).",
        f"--saliency {location / 'saliency'}: 2 of 3 images have a file there (first one missing: c.png).",
    ]


def test_files_that_fit_no_image_are_named(location: Location) -> None:
    for name in ("a.png", "bb.png"):
        (location / "masks" / name).write_bytes(b"1")
    _, (note,) = with_files([image("/a.jpg"), image("/b.jpg")], location / "masks")
    assert note.endswith(
        "(first one missing: b.png); files that have no image's id as their name: 1 (first one: bb.png)."
    )


def test_a_folder_without_a_file_for_any_image_is_refused(location: Location) -> None:
    (location / "masks/cats_0.png").write_bytes(b"1")
    rows = [image("/cats/0.jpg", image_id="cats__0"), image("/b.jpg", problem="bad")]
    for place, fault in (("nothing", "no such folder"), ("masks", "none of the 1 image has a mask there")):
        with pytest.raises(ValueError, match=f"^--masks .*{place}: {fault}"):
            with_files(rows, location / place)
    with pytest.raises(ValueError, match=r"as its name, such as cats__0\.png; there is cats_0\.png\. Rename"):
        with_files(rows, None, location / "masks")
    assert with_files(rows[1:], location / "masks")[1] == []
