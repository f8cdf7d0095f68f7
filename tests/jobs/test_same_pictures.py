"""A picture that occurs under several names gets a note, which says what it does to figures and labels."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.prepare_dataset import main


def picture(place: Path, seed: int) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (60, 80, 3), np.uint8)
    Image.fromarray(pixels).save(place, quality=95)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six different pictures in train and val, larger than the bytes that are compared first."""
    for number, name in enumerate(("train/cat/1", "train/cat/2", "train/dog/1", "val/cat/3", "val/dog/3", "val/dog/4")):
        picture(tmp_path / f"photos/{name}.jpg", number)
        assert (tmp_path / f"photos/{name}.jpg").stat().st_size > 5000
    return tmp_path / "photos"


def notes(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    main([*arguments])
    return [line for line in capsys.readouterr().out.splitlines() if "several names" in line]


def test_different_pictures_need_no_word(photos, tmp_path, capsys):
    assert notes(capsys, "--run", str(tmp_path / "run"), "--folders", str(photos)) == []


def test_a_picture_in_train_and_val_makes_figures_too_good(photos, tmp_path, capsys):
    shutil.copy(photos / "train/cat/1.jpg", photos / "val/cat/other.jpg")
    (note,) = notes(capsys, "--run", str(tmp_path / "run"), "--folders", str(photos))
    assert "1 picture with several names" in note and "in several splits (train, val)" in note
    assert "different labels" not in note


def test_copies_in_two_class_folders_contradict_each_other(photos, tmp_path, capsys):
    shutil.copy(photos / "train/cat/1.jpg", photos / "train/dog/cat and dog.jpg")
    shutil.copy(photos / "train/cat/2.jpg", photos / "train/cat/copy.jpg")
    (note,) = notes(capsys, "--run", str(tmp_path / "run"), "--folders", str(photos))
    assert "2 pictures with several names" in note and "1 of them is under different labels" in note
    assert "--csv" in note and "several splits" not in note


def test_pictures_that_differ_behind_their_first_bytes_are_different(photos, tmp_path, capsys):
    data = (photos / "train/cat/1.jpg").read_bytes()
    (photos / "train/cat/longer.jpg").write_bytes(data + b"x")
    assert notes(capsys, "--run", str(tmp_path / "run"), "--folders", str(photos)) == []


def test_added_copies_from_another_folder_are_told(photos, tmp_path, capsys):
    main(["--run", str(tmp_path / "run"), "--folders", str(photos)])
    capsys.readouterr()
    again = tmp_path / "again/train/cat"
    picture(again / "9.jpg", 9)
    shutil.copy(photos / "train/cat/1.jpg", again / "1.jpg")
    added = ["--run", str(tmp_path / "run"), "--folders", str(tmp_path / "again"), "--add"]
    (note,) = notes(capsys, *added, "--dry-run")
    assert "1 picture with several names" in note
    assert notes(capsys, *added) == [note]
