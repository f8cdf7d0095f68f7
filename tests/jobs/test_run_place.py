"""Where a run may lie beside its images: a place where one could be taken for the other is refused."""

from pathlib import Path

import pytest
from PIL import Image

from jobs.prepare_dataset import main
from jobs.run.directory import open_run


def put_pictures(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 24), (90, 90, 90)).save(folder / name)
    return folder


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize(
    ("run", "place"), [("photos", "is the folder of"), ("photos/run1", "is inside the"), ("link/a/b", "is inside the")]
)
@pytest.mark.parametrize("flag", ["--folders", "--labelme", "--hugging-face"])
def test_a_run_in_a_folder_of_which_every_file_is_read_is_refused(flag, run, place, tmp_path):
    photos = put_pictures(tmp_path / "photos", "cats/0.jpg", "dogs/0.jpg")
    (tmp_path / "link").symlink_to(photos)
    before = files(tmp_path)
    with pytest.raises(ValueError, match=rf"--run .*: {place} .* Give a run outside .*, such as --run .*photos-run\.$"):
        main(["--run", str(tmp_path / run), flag, str(photos)])
    assert files(tmp_path) == before


def test_a_run_beside_a_folder_with_a_longer_name_is_accepted(tmp_path):
    photos = put_pictures(tmp_path / "photos", "cats/0.jpg", "dogs/0.jpg")
    main(["--run", str(tmp_path / "photos-run"), "--folders", str(photos)])


@pytest.mark.parametrize("run", ["photos", "photos/run1"])
def test_a_run_in_the_images_folder_of_a_table_reads_only_the_images_of_the_table(run, tmp_path):
    photos = put_pictures(tmp_path / "photos", "0.jpg", "1.jpg")
    (tmp_path / "labels.csv").write_text("image,labels\n0.jpg,cat\n1.jpg,dog\n")
    arguments = ["--run", str(tmp_path / run), "--csv", str(tmp_path / "labels.csv"), "--images", str(photos)]
    main(arguments)
    first = (tmp_path / run / "manifest.parquet").read_bytes()
    put_pictures(tmp_path / run, "pseudo_labels/labels/0.png", "report/0.jpg")  # as the steps write them
    main(arguments)
    assert (tmp_path / run / "manifest.parquet").read_bytes() == first


def test_images_in_a_folder_of_the_run_are_read(tmp_path):
    photos = put_pictures(tmp_path / "run/photos", "cats/0.jpg", "dogs/0.jpg")
    for _ in range(2):
        main(["--run", str(tmp_path / "run"), "--folders", str(photos)])
    assert open_run(str(tmp_path / "run")).manifest().num_images == 2


@pytest.mark.parametrize("source", ["csv", "folders"])
def test_images_in_the_folder_of_a_step_are_refused(source, tmp_path):
    put_pictures(tmp_path / "photos", "cells/a/0.jpg", "cells/b/1.jpg")  # learn_cells writes into photos/cells
    (tmp_path / "labels.csv").write_text("image,labels\ncells/a/0.jpg,a\ncells/b/1.jpg,b\n")
    flags = ["--csv", str(tmp_path / "labels.csv"), "--images", str(tmp_path / "photos")]
    if source == "folders":
        flags = ["--folders", str(tmp_path / "photos/cells")]
    before = files(tmp_path)
    with pytest.raises(ValueError, match="is in its folder cells/, in which the step cells writes and deletes files"):
        main(["--run", str(tmp_path / "photos"), *flags])
    assert files(tmp_path) == before


@pytest.mark.parametrize("given", ["s3:/bucket/run", "s3:bucket/run", "s3//bucket/run"])
def test_a_run_on_s3_with_a_missing_slash_is_no_local_folder(given: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="begins nearly, but not exactly, with 's3://'"):
        open_run(given)


@pytest.mark.parametrize(
    ("flag", "found"), [("--folders", "a run"), ("--folders", "an export"), ("--labelme", "a run")]
)
def test_a_folder_of_images_with_the_masks_of_a_run_in_it_is_refused(flag, found, tmp_path):
    photos = put_pictures(tmp_path / "photos", "cats/0.jpg", "dogs/0.jpg", "old/masks/pseudo_labels/0.png")
    names = ("run.json", "manifest.parquet") if found == "a run" else ("ficklenet_export/step.json",)
    for name in names:
        (photos / "old/masks" / name).parent.mkdir(exist_ok=True)
        (photos / "old/masks" / name).write_text("{}")
    with pytest.raises(ValueError, match=rf"photos: has {found} in it, old/masks/, and its masks .* Move it out"):
        main(["--run", str(tmp_path / "run"), flag, str(photos)])
