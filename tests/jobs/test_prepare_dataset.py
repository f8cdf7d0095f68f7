"""The manifest's job: what it refuses before anything is frozen."""

from dataclasses import replace
from pathlib import Path

import pytest

from ficklenet.drawing import DRAWN_CLASS_NAMES
from jobs.prepare_dataset import main, prepare
from jobs.run import open_run


@pytest.fixture
def table(drawn_images, tmp_path) -> Path:
    lines = [f"{image.uri},{';'.join(image.labels)}" for image in drawn_images]
    (tmp_path / "labels.csv").write_text("\n".join(["image,labels", *lines]))
    return tmp_path / "labels.csv"


def test_table_becomes_a_manifest_with_the_classes_it_names(table, tmp_path, capsys):
    main(["--run", str(tmp_path / "run"), "--csv", str(table)])
    manifest = open_run(str(tmp_path / "run")).manifest()
    assert manifest.num_images == 14
    assert set(manifest.class_names) <= set(DRAWN_CLASS_NAMES)
    assert "14 images" in capsys.readouterr().out


def test_misspelt_class_is_refused_with_a_suggestion(table, tmp_path):
    with pytest.raises(ValueError, match=r"no image has the label 'mon'\. Did you mean 'moon'"):
        main(["--run", str(tmp_path / "run"), "--csv", str(table), "--classes", "mon,star"])


@pytest.mark.parametrize(("classes", "fault"), [("moon,star,moon", "'moon' is named twice"), ("moon,,", "is empty")])
def test_class_list_with_a_slip_is_refused(table, tmp_path, classes, fault):
    with pytest.raises(ValueError, match=f"--classes {classes}: .*{fault}"):
        main(["--run", str(tmp_path / "run"), "--csv", str(table), "--classes", classes])


def test_images_that_cannot_be_opened_are_counted_and_named(drawn_images, tmp_path, capsys):
    gone = [replace(image, uri=f"/nowhere{image.uri}") for image in drawn_images[:2]]
    prepare(open_run(str(tmp_path / "run")), [*gone, *drawn_images[2:]], DRAWN_CLASS_NAMES)
    assert f"cannot be opened now: 2 images (first: {gone[0].uri}, {gone[1].uri})" in capsys.readouterr().out


def test_folder_without_any_of_the_images_is_refused(drawn_images, tmp_path):
    gone = [replace(image, uri=f"/nowhere{image.uri}") for image in drawn_images]
    run = open_run(str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"none of the 14 images can be opened \(first: /nowhere"):
        prepare(run, gone, DRAWN_CLASS_NAMES)
    assert not (run.location / "manifest.parquet").exists()


def test_manifest_may_be_made_anew_until_a_step_starts(drawn_images, trained_run, tmp_path):
    run = open_run(str(tmp_path / "new"))
    prepare(run, drawn_images[:3], DRAWN_CLASS_NAMES)
    prepare(run, drawn_images[:5], DRAWN_CLASS_NAMES)
    assert run.manifest().num_images == 5
    with pytest.raises(ValueError, match="frozen, since steps were started on it"):
        prepare(trained_run, drawn_images[:3], DRAWN_CLASS_NAMES)
