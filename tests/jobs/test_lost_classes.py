"""Classes that no usable image has are named by the preparation, with the number of their images and what to do."""

from pathlib import Path

import pytest
from PIL import Image

from jobs.prepare_dataset import main


def put_picture(place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 24), (90, 90, 90)).save(place)


def put_file(place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("no picture")


@pytest.fixture
def photos(tmp_path) -> Path:
    for name in ("cats/0.jpg", "dogs/0.jpg"):
        put_picture(tmp_path / "photos" / name)
    return tmp_path / "photos"


def printed(capsys, photos: Path, *source: str) -> str:
    main(["--run", str(photos.parent / "run"), *source])
    return capsys.readouterr().out


def test_a_class_without_a_readable_image_is_named_with_its_number_of_images(photos, capsys):
    for number in range(3):
        put_file(photos / f"birds/{number}.jpg")
    assert (
        "  note:    1 class without an image that can be used: birds (3 images). The classifier cannot learn it. "
        "Repair or convert their images and prepare again, or leave it out with --classes cats,dogs.\n"
    ) in printed(capsys, photos, "--folders", str(photos))


def test_classes_of_rows_that_cannot_be_used_stay_and_are_named(photos, capsys):
    rows = ["image,labels", "cats/0.jpg,cat", "dogs/0.jpg,dog", "../x.jpg,bird", ",cow", "cats/1.jpg,cat", "no.jpg,cow"]
    (photos / "labels.csv").write_text("\n".join(rows) + "\n")
    out = printed(capsys, photos, "--csv", str(photos / "labels.csv"))
    assert "  classes: bird 0, cat 2, cow 1, dog 1\n" in out
    assert "2 classes without an image that can be used: bird (1 image), cow (2 images). The classifier cannot" in out


def test_a_class_of_which_all_rows_are_left_out_is_named(photos, capsys):
    (photos / "labels.csv").write_text("image,cat,dog,bird\ncats/0.jpg,1,0,0\ndogs/0.jpg,0,1,0\na.jpg,0,0,-1\n")
    out = printed(capsys, photos, "--csv", str(photos / "labels.csv"), "--minus-one", "skip")
    assert "bird (no image). The classifier cannot learn it. Leave it out with --classes cat,dog.\n" in out


@pytest.mark.parametrize("above", ["", "train/"])
def test_a_folder_of_files_that_are_no_images_is_named(above, tmp_path, capsys):
    photos = tmp_path / "photos"
    put_picture(photos / above / "cats/0.jpg")
    put_file(photos / above / "cats/notes.txt")
    put_file(photos / above / "raw/0.dng")
    out = printed(capsys, photos, "--folders", str(photos))
    assert "note:    no class is made of raw, because none of the 1 files there has the suffix of an image." in out


def test_nothing_is_said_if_each_class_has_an_image(photos, capsys):
    put_file(photos / "cats/broken.jpg")
    out = printed(capsys, photos, "--folders", str(photos))
    assert "without an image that can be used" not in out and "no class is made" not in out
