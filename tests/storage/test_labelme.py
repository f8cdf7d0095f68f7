"""labelme's files: labels and masks of polygons, rectangles and circles."""

import json
from typing import Any

import numpy as np
import pytest

from storage.labelme import read_labelme
from storage.location import Location

SQUARE = [[10, 10], [30, 10], [30, 30], [10, 30]]


def put(place: Location, name: str, *shapes: dict[str, Any], **others: Any) -> None:
    """A file as labelme 5 writes it, without the picture's own bytes."""
    content = {
        "version": "5.5.0",
        "flags": {},
        "shapes": [{"group_id": None, "flags": {}, "shape_type": "polygon", **shape} for shape in shapes],
        "imagePath": name.rsplit("/", 1)[-1].replace(".json", ".jpg"),
        "imageData": None,
        "imageHeight": 40,
        "imageWidth": 60,
    }
    (place / name).write_bytes(json.dumps(content | others).encode())


def test_shapes_become_labels_and_a_mask(location: Location) -> None:
    rectangle = {"label": "dog", "points": [[40, 20], [58, 38]], "shape_type": "rectangle"}
    put(location, "sub/a.json", {"label": "cat", "points": SQUARE}, rectangle)
    found = read_labelme(location)
    (image,) = found.images
    assert (image.image_id, image.uri, image.labels) == ("sub__a", (location / "sub/a.jpg").uri, ("cat", "dog"))
    assert (found.class_names, found.class_values, image.declared) == (("cat", "dog"), (1, 2), (40, 60))
    mask = found.drawings[str(image.mask_uri)].draw()
    assert (mask[20, 20], mask[30, 50], mask[2, 2]) == (1, 2, 0)
    assert mask.shape == (40, 60) and int((mask == 1).sum()) == 400


def test_a_circle_is_drawn_by_its_centre_and_edge(location: Location) -> None:
    put(location, "a.json", {"label": "cat", "points": [[30, 20], [40, 20]], "shape_type": "circle"})
    found = read_labelme(location)
    area = int((found.drawings[str(found.images[0].mask_uri)].draw() == 1).sum())
    assert area == pytest.approx(np.pi * 100, rel=0.03)


def test_shapes_without_an_area_keep_the_label_and_cost_the_mask(location: Location) -> None:
    put(location, "a.json", {"label": "cat", "points": [[3, 3]], "shape_type": "point"})
    found = read_labelme(location)
    assert (found.images[0].labels, found.images[0].mask_uri) == (("cat",), None)
    assert found.notes == ("1 images have no mask, because some of their shapes have no area.",)


def test_a_picture_above_the_file_and_windows_paths_are_found(location: Location) -> None:
    put(location, "json/a.json", {"label": "cat", "points": SQUARE}, imagePath="sub\\a.jpg")
    assert read_labelme(location).images[0].uri == (location / "json/sub/a.jpg").uri


def test_other_json_files_are_no_annotations(location: Location) -> None:
    put(location, "a.json", {"label": "cat", "points": SQUARE})
    (location / "settings.json").write_bytes(b'{"theme": "dark"}')
    (location / "torn.json").write_bytes(b'{"shapes": [')
    found = read_labelme(location)
    assert [image.problem for image in found.images] == [None, "its JSON file cannot be read"]
    with pytest.raises(ValueError, match="no JSON files with shapes"):
        read_labelme(location / "elsewhere")


def test_chosen_classes_number_the_mask(location: Location) -> None:
    put(location, "a.json", {"label": "cat", "points": SQUARE}, {"label": "dog", "points": [[40, 5], [50, 5], [50, 9]]})
    found = read_labelme(location, ["dog"])
    assert found.images[0].labels == ("dog",)
    assert sorted(np.unique(found.drawings[str(found.images[0].mask_uri)].draw())) == [0, 1]
