"""A step that had to skip too many images is refused until they are tried again: it is never done without a word."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.connect import connect
from ficklenet.drawing import DRAWN_CLASS_NAMES
from jobs import prepare_dataset
from jobs.cli.launch import launch_step
from jobs.cli.pipeline import run_pipeline
from jobs.preparation.prepare import prepare
from jobs.reporting.run_status import run_status, status_lines
from jobs.run.directory import Run, open_run


@pytest.fixture
def photos(drawn_images, tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for image in drawn_images:
        shutil.copy(image.uri, folder)
    return folder


@pytest.fixture
def run(photos, drawn_images, trained_run, tmp_path) -> Run:
    """A run of images in a folder of their own, with a trained classifier."""
    run = open_run(str(tmp_path / "own"), defaults=trained_run.config.model_dump())
    images = [replace(image, uri=str(photos / Path(image.uri).name)) for image in drawn_images]
    prepare(run, images, DRAWN_CLASS_NAMES)
    shutil.copytree(Path(trained_run.uri) / "classifier", tmp_path / "own" / "classifier")
    return run


def launch(run: Run, name: str, **options) -> None:
    with connect("in-process") as connection:
        launch_step(run, connection, name, **options)


def state(run: Run, name: str) -> str:
    return next(step.state for step in run_status(run).steps if step.name == name)


def test_images_that_are_away_refuse_the_step_on_every_launch_until_they_are_back(run, photos, capsys):
    away = photos.rename(photos.parent / "unmounted")
    for dry_run in (False, False, True):
        with pytest.raises(ValueError, match=r"maps: \d+ of 14 images had to be skipped .*Put the files back"):
            launch(run, "maps", dry_run=dry_run)
    assert state(run, "maps") == "refused"
    assert any(line.startswith("  try again: ") and line.endswith("--retry-skipped") for line in lines(run))

    away.rename(photos)
    capsys.readouterr()
    launch(run, "maps", dry_run=True)
    assert "maps, dry run: 4 of 4 units to do (14 of 14 images)." in capsys.readouterr().out
    launch(run, "maps")
    assert "14 images done, 0 skipped, 0 left" in capsys.readouterr().out
    assert state(run, "maps") == "done"


def test_images_that_are_damaged_refuse_the_step_until_they_are_tried_again(run, photos, capsys):
    whole = {place: place.read_bytes() for place in photos.iterdir()}
    for place in whole:
        place.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"maps: \d+ of 14 images had to be skipped"):
        launch(run, "maps")
    for place, data in whole.items():
        place.write_bytes(data)
    with pytest.raises(ValueError, match=r"generate_maps.py --run \S+ --retry-skipped'"):  # what is recorded holds
        launch(run, "maps")
    launch(run, "maps", retry_skipped=True)
    assert "14 images done, 0 skipped, 0 left" in capsys.readouterr().out


def test_images_named_at_their_new_place_are_tried_again(run, photos, capsys):
    launch(run, "maps")
    moved = photos.rename(photos.parent / "elsewhere")
    with pytest.raises(ValueError, match=r"name the images' new folder with prepare_dataset\.py"):
        launch(run, "pseudo_labels")
    prepare_dataset.main(["--run", run.uri, "--images", str(moved)])
    capsys.readouterr()
    for name in ("maps", "pseudo_labels"):
        launch(open_run(run.uri), name)
    printed = capsys.readouterr().out
    assert "maps: 0 of 4 units to do" in printed and "pseudo-labels: 14 images done, 0 skipped" in printed


def test_a_refused_step_refuses_the_steps_that_read_it(run, photos):
    photos.rename(photos.parent / "unmounted")
    for _ in range(4):
        with pytest.raises(ValueError, match="had to be skipped"):
            launch(run, "maps")
    all_tried = open_run(run.uri, None, ["images.max_skipped_fraction=1"])
    launch(all_tried, "maps")
    with pytest.raises(ValueError, match="maps: 14 of 14 images had to be skipped"):
        launch(run, "seeds")
    launch(all_tried, "seeds")  # who raises the fraction wants it so


def test_a_missing_image_that_is_back_is_tried_again(run, photos, capsys):
    lost = photos / "scene_0005.png"
    data = lost.read_bytes()
    lost.unlink()
    launch(run, "maps")
    launch(run, "seeds")
    assert "13 images done, 1 skipped" in capsys.readouterr().out.splitlines()[-1]
    launch(run, "maps")
    assert "maps: 0 of 4 units to do" in capsys.readouterr().out
    lost.write_bytes(data)
    for step in ("maps", "seeds"):
        launch(run, step)
        printed = capsys.readouterr().out
        assert f"{step}: 1 skipped image in 1 unit will be tried again." in printed
        assert f"{step}: 1 of 4 units to do (4 of 14 images)." in printed
        assert "14 images done, 0 skipped" in printed


def test_only_units_with_skipped_images_are_tried_again(run, photos, capsys):
    damaged = photos / "scene_0005.png"
    data = damaged.read_bytes()
    damaged.write_bytes(data[:100])
    launch(run, "maps")
    damaged.write_bytes(data)
    launch(run, "maps")
    assert "13 images done, 1 skipped" in capsys.readouterr().out.splitlines()[-1]
    launch(run, "maps", retry_skipped=True)
    printed = capsys.readouterr().out
    assert "maps: 1 skipped image in 1 unit will be tried again." in printed
    assert "maps: 1 of 4 units to do (4 of 14 images)." in printed
    assert "14 images done, 0 skipped" in printed


def test_the_pipeline_tries_repaired_images_again_in_all_steps(trained_run, drawn_images, capsys):
    image = Path(drawn_images[5].uri)
    data = image.read_bytes()
    try:
        image.write_bytes(data[:100])
        for step in ("maps", "seeds", "pseudo_labels"):
            launch(trained_run, step)
    finally:
        image.write_bytes(data)
    with connect("in-process") as connection:
        run_pipeline(trained_run, connection, retry_skipped=True)
    assert capsys.readouterr().out.count("1 skipped image in 1 unit will be tried again") == 3
    for step in ("maps", "seeds", "pseudo_labels", "predictions"):
        assert not any(receipt.skipped for receipt in trained_run.step(step).receipts().values())


def lines(run: Run) -> list[str]:
    return status_lines(run_status(run))
