"""A folder per class: labels, splits, ids, and what is no image."""

import pytest

from storage.class_folders import read_class_folders
from storage.location import Location
from storage.sources import join_images


def put(place: Location, *paths: str) -> Location:
    for path in paths:
        (place / path).write_bytes(b"1")
    return place


def test_folders_are_classes_and_the_same_names_in_them_are_different_images(location: Location) -> None:
    put(location, "cats/0.jpg", "cats/1.JPG", "dogs/0.jpg", "dogs/pugs/2.png")
    found = read_class_folders(location)
    images, _ = join_images(found.images)
    assert [(image.image_id, image.labels, image.split) for image in images] == [
        ("cats__0", ("cats",), ""),
        ("cats__1", ("cats",), ""),
        ("dogs__0", ("dogs",), ""),
        ("dogs__pugs__2", ("dogs",), ""),
    ]
    assert images[3].uri == (location / "dogs/pugs/2.png").uri and found.notes == ()


def test_folders_of_splits_hold_folders_of_classes(location: Location) -> None:
    put(location, "train/cat/0.jpg", "valid/cat/0.jpg", "test/dog/0.jpg")
    images, _ = join_images(read_class_folders(location).images)
    assert {image.image_id: (image.split, image.labels) for image in images} == {
        "train__cat__0": ("train", ("cat",)),
        "valid__cat__0": ("valid", ("cat",)),
        "dog__0": ("test", ("dog",)),
    }
    assert len(read_class_folders(location, ["train", "valid"]).images) == 2
    with pytest.raises(ValueError, match=r"--split val: no such folder in .*; there are test, train, valid"):
        read_class_folders(location, ["val"])


def test_other_files_are_passed_over_and_counted(location: Location) -> None:
    put(location, "cats/0.jpg", "cats/Thumbs.db", "cats/.hidden.jpg", "readme.txt", "loose.jpg")
    found = read_class_folders(location)
    assert [image.image_id for image in found.images] == ["cats__0"]
    assert "suffix" in found.notes[0] and "2 of 4 files" in found.notes[0]
    assert found.notes[1] == f"ignored, because not in a class's folder: 1 in {location} (first: loose.jpg)."


def test_a_folder_without_class_folders_is_refused_with_the_way_out(location: Location) -> None:
    put(location, "0.jpg", "1.jpg")
    with pytest.raises(ValueError, match=r"2 images that are not in a folder. --folders needs a folder .*--csv"):
        read_class_folders(location)
    with pytest.raises(ValueError, match="no such folder" if location.is_local else "no images"):
        read_class_folders(location / "nowhere")


@pytest.mark.parametrize("above", ["", "train/"])
def test_an_empty_folder_is_named_because_it_makes_no_class(tmp_path, above: str) -> None:
    folder = put(Location(str(tmp_path)), f"{above}cats/0.jpg", f"{above}sheep/0.jpg")
    assert read_class_folders(folder).notes == ()
    (tmp_path / above / "dogs").mkdir()
    (tmp_path / above / ".thumbnails").mkdir()
    assert read_class_folders(folder).notes == ("no class is made of dogs, because the folder has no file.",)
