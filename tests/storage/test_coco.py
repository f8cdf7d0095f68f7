"""COCO's instances: labels, outlines as masks, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as run_lengths

from storage.coco import CocoImages, coco_splits, read_coco
from storage.images import read_mask
from storage.location import Location

HEIGHT, WIDTH = 6, 8
SQUARE = [[1, 1, 5, 1, 5, 5, 1, 5]]  # 4 x 4 pixels from (1, 1)
SMALL = [[2, 2, 4, 2, 4, 4, 2, 4]]  # 2 x 2 pixels inside of it
CROWD = {"size": [HEIGHT, WIDTH], "counts": [0, 2 * HEIGHT, (WIDTH - 2) * HEIGHT]}  # the first two columns


@pytest.fixture
def folder(tmp_path: Path) -> Location:
    return Location(str(tmp_path))


def annotation(image: int, category: int, segmentation: Any, **others: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": 0} | others


def content() -> dict[str, Any]:
    """Three images: cat on horse and a crowd of horses, none, horses only."""
    return {
        "images": [
            {"id": 9, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH},
            {"id": 3, "file_name": "sub/b.jpg", "height": HEIGHT, "width": WIDTH},
            {"id": 5, "file_name": "c.jpg", "height": HEIGHT, "width": WIDTH},
        ],
        "annotations": [
            annotation(9, 17, SMALL),
            annotation(9, 19, SQUARE),
            annotation(9, 19, CROWD, iscrowd=1),
            annotation(5, 19, SQUARE),
        ],
        "categories": [{"id": 19, "name": "horse"}, {"id": 17, "name": "cat"}, {"id": 90, "name": "tooth brush"}],
    }


def read(place: Location, given: Any, **options: Any) -> CocoImages:
    file = place / "instances.json"
    file.write_bytes(given if isinstance(given, bytes) else json.dumps(given).encode())
    return read_coco(file, place / "images", "train", place / "masks", **options)


def test_categories_become_labels_and_ids_mask_values(location: Location) -> None:
    found = read(location, content())
    assert (found.class_names, found.class_values) == (("cat", "horse", "tooth brush"), (17, 19, 90))
    a, b, c = found.images
    assert (a.image_id, a.uri, a.labels, a.split) == ("a", (location / "images/a.jpg").uri, ("cat", "horse"), "train")
    assert (b.image_id, b.labels, b.mask_uri) == ("sub__b", (), None)  # unlabelled
    assert (c.labels, found.num_left_out) == (("horse",), 0)


def test_small_instances_lie_on_large_ones_and_crowds_are_ignored(location: Location) -> None:
    found = read(location, content())
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[:, :2] = 255
    expected[1:5, 1:5] = 2
    expected[2:4, 2:4] = 1
    for mask in found.masks:
        mask.write()
    first = (location / found.images[0].mask_uri.removeprefix(location.uri + "/")).read_bytes()
    assert np.array_equal(read_mask(str(found.images[0].mask_uri), [17, 19, 90]), expected)
    assert np.array_equal(read_mask(str(found.images[0].mask_uri), [19])[2:4, 2:4], np.full((2, 2), 255))
    found.masks[0].write()
    assert found.masks[0].place.read_bytes() == first


def test_all_three_kinds_of_outline_draw_the_same(folder: Location) -> None:
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    pixels[1:5, 1:5] = 1
    compressed = run_lengths.encode(pixels)
    plain = {"size": [HEIGHT, WIDTH], "counts": [7, 4, 2, 4, 2, 4, 2, 4, 19]}
    for outline in (SQUARE, plain, {"size": [HEIGHT, WIDTH], "counts": compressed["counts"].decode()}):
        found = read(folder, content() | {"annotations": [annotation(9, 17, outline)]})
        assert np.array_equal(found.masks[0].draw() == 17, pixels == 1)


def test_chosen_classes_leave_out_images_of_others_and_keep_unlabelled_ones(folder: Location) -> None:
    found = read(folder, content(), class_names=["cat"])
    assert [(image.image_id, image.labels) for image in found.images] == [("a", ("cat",)), ("sub__b", ())]
    assert (found.class_values, found.num_left_out) == ((17,), 1)


def test_large_category_ids_take_masks_of_16_bits(folder: Location) -> None:
    given = content()
    given["categories"][0]["id"] = given["annotations"][3]["category_id"] = 300
    given["annotations"] = [*given["annotations"][3:], annotation(5, 17, CROWD, iscrowd=1)]
    (mask,) = read(folder, given).masks
    mask.write()
    assert sorted(np.unique(mask.draw())) == [0, 300, 65535]
    assert sorted(np.unique(read_mask(mask.place.uri, [17, 300]))) == [0, 2, 255]


def test_another_version_of_the_file_has_masks_of_its_own(folder: Location) -> None:
    changed = content()
    changed["annotations"][0]["segmentation"] = SQUARE
    assert read(folder, content()).masks[0].place != read(folder, changed).masks[0].place


@pytest.mark.parametrize(
    "outline",
    [
        None,
        [],
        [[1, 1, 5, 1]],
        [[1, 1, 5, 1, 5]],
        [["a", 1, 5, 1, 5, 5]],
        [[float("nan"), 1, 5, 1, 5, 5]],
        [[[1, 1], [5, 1], [5, 5]]],
        {"size": [HEIGHT, WIDTH]},
        {"size": [WIDTH, HEIGHT], "counts": [HEIGHT * WIDTH]},
        {"size": [HEIGHT, WIDTH], "counts": [3, 4]},
        {"size": [HEIGHT, WIDTH], "counts": [50, -2]},
        {"size": [HEIGHT, WIDTH], "counts": "zzzz"},
        {"size": [HEIGHT, WIDTH], "counts": "é"},
        "polygon",
    ],
)
def test_an_annotation_without_an_outline_keeps_its_label_and_costs_the_mask(outline: Any, folder: Location) -> None:
    found = read(folder, content() | {"annotations": [annotation(9, 17, SQUARE), annotation(9, 19, outline)]})
    assert found.images[0].labels == ("cat", "horse")
    assert (found.images[0].mask_uri, found.masks, found.num_without_outline) == (None, (), 1)


def test_points_far_away_are_clipped_before_they_cost_memory(folder: Location) -> None:
    far = [[1e12, -1e12, 1e12, 1e12, -1e12, 1e12, -1e12, -1e12]]
    (mask,) = read(folder, content() | {"annotations": [annotation(9, 17, far)]}).masks
    assert (mask.draw() == 17).all()


def test_a_path_that_leads_out_of_the_folder_is_a_problem_of_its_image(folder: Location) -> None:
    given = content()
    given["images"][1]["file_name"] = "../../etc/b.jpg"
    assert read(folder, given).images[1].problem == "its file name leads out of the folder"


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    given = content()
    change(given)
    return given


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (b"\x89PNG", "not a JSON file"),
        (b"[" * 100_000, "not a JSON file"),
        ([], "no list 'images'; expected COCO's instances"),
        (changed(lambda its: its.pop("annotations")), "no list 'annotations'"),
        (
            changed(lambda its: its["images"][0].pop("file_name")),
            r"images\[0\]\.file_name: given None, expected a text",
        ),
        (changed(lambda its: its["images"].append(7)), r"images\[3\]\.id: given None, expected a number"),
        (
            changed(lambda its: its["annotations"][1].update(category_id=1)),
            r"category_id: 1 is not among the categories",
        ),
        (
            changed(lambda its: its["annotations"][1].update(image_id="9")),
            r"\[1\]\.image_id: given '9', expected a number",
        ),
        (changed(lambda its: its["annotations"][1].update(image_id=77)), "annotations of image 77, which is not among"),
        (changed(lambda its: its["categories"][0].update(name="cat")), "categories need different names and ids"),
        (changed(lambda its: its["categories"][0].update(id=0)), "category 'horse' has the id 0, allowed: 1 to 65534"),
        (changed(lambda its: its["categories"].clear() or its["annotations"].clear()), "there must be one at least"),
    ],
)
def test_a_file_that_is_none_is_refused_in_one_sentence(given: Any, sentence: str, folder: Location) -> None:
    with pytest.raises(ValueError, match=sentence) as refusal:
        read(folder, given)
    assert "\n" not in str(refusal.value)


def test_a_misspelt_class_is_refused_with_a_suggestion(folder: Location) -> None:
    with pytest.raises(ValueError, match=r"class 'hors': not among the categories of .*Did you mean 'horse'\?"):
        read(folder, content(), class_names=["cat", "hors"])


def test_splits_of_a_folder_are_those_of_its_files(location: Location) -> None:
    for name in ("instances_val2017.json", "captions_val2017.json", "instances_train.json"):
        (location / "annotations" / name).write_bytes(b"{}")
    assert sorted(coco_splits(location)) == ["train", "val2017"]
