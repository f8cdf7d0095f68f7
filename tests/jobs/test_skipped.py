"""A step that had to skip too many images is refused until they are tried again: it is never done without a word."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.connect import connect
from ficklenet.drawing import DRAWN_CLASS_NAMES
from jobs.cli.launch import launch_step
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


def test_images_that_are_away_refuse_the_step_on_every_launch_and_are_tried_again_when_asked(run, photos, capsys):
    away = photos.rename(photos.parent / "unmounted")
    for _ in range(3):
        with pytest.raises(ValueError, match=r"maps: \d+ of 14 images had to be skipped .*--retry-skipped"):
            launch(run, "maps")
    assert state(run, "maps") == "refused"
    assert any(line.startswith("  try again: ") and line.endswith("--retry-skipped") for line in lines(run))

    away.rename(photos)
    with pytest.raises(ValueError, match="had to be skipped"):  # what is recorded holds until it is tried again
        launch(run, "maps")
    capsys.readouterr()
    launch(run, "maps", retry_skipped=True)
    assert "14 images done, 0 skipped, 0 left" in capsys.readouterr().out
    assert state(run, "maps") == "done"


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


def test_only_units_with_skipped_images_are_tried_again(run, photos, capsys):
    lost = photos / "scene_0005.png"
    data = lost.read_bytes()
    lost.unlink()
    launch(run, "maps")
    lost.write_bytes(data)
    launch(run, "maps")
    assert "13 images done, 1 skipped" in capsys.readouterr().out.splitlines()[-1]
    launch(run, "maps", retry_skipped=True)
    printed = capsys.readouterr().out
    assert "maps: 1 skipped image in 1 unit will be tried again." in printed
    assert "maps: 1 of 4 units to do (4 images)." in printed
    assert "14 images done, 0 skipped" in printed


def lines(run: Run) -> list[str]:
    return status_lines(run_status(run))
