"""COCO's instances: labels, outlines as masks, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as run_lengths

from storage.coco import ROBOFLOW_FILE, CocoPart, coco_parts, read_coco
from storage.drawings import Drawing, encode_mask
from storage.images import read_mask
from storage.location import Location
from storage.sources import Source, join_images

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


def read(place: Location, given: Any, **options: Any) -> Source:
    file = place / "instances.json"
    file.write_bytes(given if isinstance(given, bytes) else json.dumps(given).encode())
    return read_coco([CocoPart("train", file, place / "images")], **options)


def drawn(found: Source, number: int = 0) -> Drawing:
    """The outlines of one of a source's images."""
    return found.drawings[str(found.images[number].mask_uri)]


def test_categories_become_labels_and_ids_mask_values(location: Location) -> None:
    found = read(location, content())
    assert (found.class_names, found.class_values) == (("cat", "horse", "tooth brush"), (17, 19, 90))
    a, b, c = found.images
    assert (a.image_id, a.uri, a.labels, a.split) == ("a", (location / "images/a.jpg").uri, ("cat", "horse"), "train")
    assert (b.image_id, b.labels, b.mask_uri) == ("sub__b", (), None)  # unlabelled
    assert (c.labels, found.notes) == (("horse",), ())


def test_small_instances_lie_on_large_ones_and_crowds_are_ignored(location: Location) -> None:
    found = read(location, content())
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[:, :2] = 255
    expected[1:5, 1:5] = 2
    expected[2:4, 2:4] = 1
    place = location / str(found.images[0].mask_uri)
    place.write_bytes(encode_mask(drawn(found).draw()))
    assert np.array_equal(read_mask(place.uri, [17, 19, 90]), expected)
    assert np.array_equal(read_mask(place.uri, [19])[2:4, 2:4], np.full((2, 2), 255))
    assert encode_mask(drawn(found).draw()) == place.read_bytes()


def test_all_three_kinds_of_outline_draw_the_same(folder: Location) -> None:
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    pixels[1:5, 1:5] = 1
    compressed = run_lengths.encode(pixels)
    plain = {"size": [HEIGHT, WIDTH], "counts": [7, 4, 2, 4, 2, 4, 2, 4, 19]}
    for outline in (SQUARE, plain, {"size": [HEIGHT, WIDTH], "counts": compressed["counts"].decode()}):
        found = read(folder, content() | {"annotations": [annotation(9, 17, outline)]})
        assert np.array_equal(drawn(found).draw() == 17, pixels == 1)


def test_chosen_classes_leave_out_images_of_others_and_keep_unlabelled_ones(folder: Location) -> None:
    found = read(folder, content(), class_names=["cat"])
    assert [(image.image_id, image.labels) for image in found.images] == [("a", ("cat",)), ("sub__b", ())]
    assert (found.class_values, found.notes) == ((17,), ("1 image left out (none of the chosen classes).",))


def test_large_category_ids_take_masks_of_16_bits(folder: Location) -> None:
    given = content()
    given["categories"][0]["id"] = given["annotations"][3]["category_id"] = 300
    given["annotations"] = [*given["annotations"][3:], annotation(5, 17, CROWD, iscrowd=1)]
    mask = drawn(read(folder, given), 2).draw()
    (folder / "mask.png").write_bytes(encode_mask(mask))
    assert sorted(np.unique(mask)) == [0, 300, 65535]
    assert sorted(np.unique(read_mask((folder / "mask.png").uri, [17, 300]))) == [0, 2, 255]


def test_another_version_of_the_file_has_masks_of_its_own(folder: Location) -> None:
    changed = content()
    changed["annotations"][0]["segmentation"] = SQUARE
    assert read(folder, content()).images[0].mask_uri != read(folder, changed).images[0].mask_uri


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
        [1, 1, 5],
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
    assert (found.images[0].mask_uri, found.drawings) == (None, {})
    assert found.notes == ("1 image without a mask (an annotation has no outline).",)


def test_points_far_away_are_clipped_before_they_cost_memory(folder: Location) -> None:
    far = [[1e12, -1e12, 1e12, 1e12, -1e12, 1e12, -1e12, -1e12]]
    found = read(folder, content() | {"annotations": [annotation(9, 17, far)]})
    assert (drawn(found).draw() == 17).all()


def test_a_path_that_leads_out_of_the_folder_is_a_problem_of_its_image(folder: Location) -> None:
    given = content()
    given["images"][1]["file_name"] = "../../etc/b.jpg"
    problem = read(folder, given).images[1].problem
    assert problem == "the path of its image leads out of the folder; write an absolute path"


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    given = content()
    change(given)
    return given


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (b"\x89PNG", "not a JSON file"),
        (b"[" * 100_000, "not a JSON file"),
        ([], "it has no list 'images'; expected COCO's instances"),
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
            changed(lambda its: its["annotations"][1].update(image_id=None)),
            r"\[1\]\.image_id: given None, expected a number",
        ),
        (changed(lambda its: its["annotations"][1].update(image_id=77)), "image 77, which is not in the list"),
        (changed(lambda its: its["categories"][0].update(name="cat")), "two categories have the name 'cat'"),
        (changed(lambda its: its["categories"][0].update(id=17)), "two categories have the id 17"),
        (
            changed(lambda its: its["categories"][0].update(id=-1)),
            "category 'horse' has the id -1, allowed: 0 to 65533",
        ),
        (changed(lambda its: its["categories"].clear() or its["annotations"].clear()), "one category is needed"),
    ],
)
def test_a_file_that_is_none_is_refused_in_one_sentence(given: Any, sentence: str, folder: Location) -> None:
    with pytest.raises(ValueError, match=sentence) as refusal:
        read(folder, given)
    assert "\n" not in str(refusal.value)


def test_a_misspelt_class_is_refused_with_a_suggestion(folder: Location) -> None:
    with pytest.raises(ValueError, match=r"class 'hors': not among the categories of .*Did you mean 'horse'\?"):
        read(folder, content(), class_names=["cat", "hors"])


# Layouts


def test_cocos_layout_gives_all_its_splits_or_those_wanted(location: Location) -> None:
    for name in ("instances_val2017.json", "captions_val2017.json", "instances_train.json"):
        (location / "annotations" / name).write_bytes(b"{}")
    assert [part.split for part in coco_parts(location, [])] == ["train", "val2017"]
    (part,) = coco_parts(location, ["val2017"])
    assert (part.annotations.name, part.images) == ("instances_val2017.json", location / "val2017")
    with pytest.raises(ValueError, match=r"no annotations/instances_test.json .*there are the splits train, val2017"):
        coco_parts(location, ["test"])


def test_roboflows_layout_has_a_file_beside_the_images_of_each_split(location: Location) -> None:
    for split in ("train", "valid", "test"):
        given = content() | {"images": content()["images"][:1], "annotations": [annotation(9, 17, SMALL)]}
        (location / split / ROBOFLOW_FILE).write_bytes(json.dumps(given).encode())
    parts = coco_parts(location, [])
    assert [part.split for part in parts] == ["test", "train", "valid"]
    images, _ = join_images(read_coco(parts).images)
    assert [image.image_id for image in images] == ["test__a", "train__a", "valid__a"]
    assert images[0].uri == (location / "test/a.jpg").uri


def test_one_file_is_one_split(folder: Location) -> None:
    (part,) = coco_parts(folder / "labels.json", [], folder / "photos")
    assert (part.split, part.images) == ("", folder / "photos")
    with pytest.raises(ValueError, match="a file is one split"):
        coco_parts(folder / "labels.json", ["train", "val"])
    with pytest.raises(ValueError, match="give the folder with annotations/"):
        coco_parts(folder, [])


def test_files_of_other_categories_do_not_go_together(folder: Location) -> None:
    (folder / "a.json").write_bytes(json.dumps(content()).encode())
    other = changed(lambda its: its["categories"][2].update(name="brush"))
    (folder / "b.json").write_bytes(json.dumps(other).encode())
    parts = [CocoPart(name, folder / f"{name}.json", folder) for name in "ab"]
    with pytest.raises(ValueError, match=r"b\.json: its categories differ from those of .*a\.json"):
        read_coco(parts)


# Ids


def zero_based(**changes: Any) -> dict[str, Any]:
    given = content()
    given["categories"] = [{"id": 0, "name": "cat"}, {"id": 1, "name": "horse"}]
    given["annotations"] = [annotation(9, 0, SMALL), annotation(9, 1, SQUARE)]
    return given | changes


def test_categories_from_zero_have_their_id_plus_one_in_masks(folder: Location) -> None:
    found = read(folder, zero_based())
    assert (found.class_names, found.class_values) == (("cat", "horse"), (1, 2))
    assert found.images[0].labels == ("cat", "horse")
    mask = drawn(found).draw()
    assert (mask[2, 2], mask[1, 1], mask[0, 0]) == (1, 2, 0)
    assert "ids start at 0" in found.notes[0]


def test_roboflows_unused_root_is_no_class_and_a_used_one_is(folder: Location) -> None:
    root = [
        {"id": 0, "name": "pets", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "pets"},
        {"id": 2, "name": "horse", "supercategory": "pets"},
    ]
    found = read(folder, zero_based(categories=root, annotations=[annotation(9, 1, SMALL), annotation(9, 2, SQUARE)]))
    assert (found.class_names, found.class_values) == (("cat", "horse"), (1, 2))
    assert "'pets' only groups the others" in found.notes[0]
    used = read(folder, zero_based(categories=root))
    assert (used.class_names, used.class_values) == (("pets", "cat", "horse"), (1, 2, 3))


def test_cocos_own_supercategories_are_no_roots(folder: Location) -> None:
    given = content()
    for category in given["categories"]:
        category["supercategory"] = category["name"] if category["name"] == "cat" else "animal"
    assert read(folder, given).class_names == ("cat", "horse", "tooth brush")


def test_two_images_with_one_id_are_refused(folder: Location) -> None:
    given = changed(lambda its: its["images"][1].update(id=9))
    with pytest.raises(ValueError, match=r"the images a\.jpg and sub/b\.jpg have the same id 9"):
        read(folder, given)


def test_an_image_listed_twice_has_the_annotations_of_both(folder: Location) -> None:
    given = changed(lambda its: its["images"][2].update(file_name="a.jpg"))
    given["annotations"] = [annotation(9, 17, SMALL), annotation(5, 19, SQUARE)]
    found = read(folder, given)
    assert [(image.image_id, image.labels) for image in found.images] == [("a", ("cat", "horse")), ("sub__b", ())]
    assert sorted(np.unique(drawn(found).draw())) == [0, 17, 19]
    assert "1 image listed under two ids" in found.notes[0]


def test_image_ids_may_be_text(folder: Location) -> None:
    given = content()
    for record in given["images"]:
        record["id"] = f"x{record['id']}"
    for record in given["annotations"]:
        record["image_id"] = f"x{record['image_id']}"
    numbers = changed(lambda its: [each.update(image_id=str(each["image_id"])) for each in its["annotations"]])
    for each in (given, numbers):
        assert [image.labels for image in read(folder, each).images] == [("cat", "horse"), (), ("horse",)]


def test_the_same_file_name_in_two_splits_is_two_images_with_masks_of_their_own(folder: Location) -> None:
    parts = []
    for split, outline in (("train", SMALL), ("val", SQUARE)):
        given = content() | {"images": content()["images"][:1], "annotations": [annotation(9, 17, outline)]}
        (folder / f"{split}.json").write_bytes(json.dumps(given).encode())
        parts.append(CocoPart(split, folder / f"{split}.json", folder / split))
    found = read_coco(parts)
    images, _ = join_images(found.images)
    assert [image.image_id for image in images] == ["train__a", "val__a"]
    assert [int((found.drawings[str(image.mask_uri)].draw() > 0).sum()) for image in images] == [4, 16]


# Crowds and sizes


def test_outlines_that_are_all_crowds_are_told_and_can_be_objects(folder: Location) -> None:
    given = content() | {"annotations": [annotation(9, 17, CROWD, iscrowd=1)]}
    found = read(folder, given)
    assert sorted(np.unique(drawn(found).draw())) == [0, 255]
    assert "all crowds" in found.notes[0] and "--crowds-are-objects" in found.notes[0]
    objects = read(folder, given, is_crowd_object=True)
    assert sorted(np.unique(drawn(objects).draw())) == [0, 17]
    assert objects.images[0].mask_uri != found.images[0].mask_uri


def test_one_polygon_without_its_own_list_is_an_outline(folder: Location) -> None:
    found = read(folder, content() | {"annotations": [annotation(9, 17, SQUARE[0])]})
    assert int((drawn(found).draw() == 17).sum()) == 16


def test_the_size_that_the_file_says_is_kept_to_be_checked(folder: Location) -> None:
    assert read(folder, content()).images[0].declared == (HEIGHT, WIDTH)
