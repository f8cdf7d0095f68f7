"""Masks that the network was trained on do not measure it: what is measured by default, and what is marked."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.connect import connect
from ficklenet.metrics import confusion_matrix
from jobs.cli.launch import launch_step
from jobs.evaluation.measuring import evaluate_labels
from jobs.reporting.comparison import metrics_side_by_side
from jobs.reporting.page import write_report
from jobs.reporting.run_status import run_status
from jobs.run.directory import Run, open_run
from jobs.run.trained_masks import splits_with_trained_masks
from storage.images import read_mask
from storage.manifest import Manifest, write_manifest
from storage.records import seal

MARK = "trained on these masks"


@pytest.fixture(scope="module")
def masks_run_folder(segmented_run_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("masks") / "run"
    shutil.copytree(segmented_run_folder, folder)
    run = open_run(str(folder), None, ["predictions.splits=train,val"])
    record(run, segmenter={"strong_splits": ["train"]})
    with connect("in-process") as connection:
        launch_step(run, connection, "predictions")
    return folder


@pytest.fixture
def masks_run(masks_run_folder, tmp_path) -> Run:
    """A run with predictions for all images, whose network counts as trained on the masks of the split train."""
    shutil.copytree(masks_run_folder, tmp_path / "masks")
    return open_run(str(tmp_path / "masks"))


def record(run: Run, **changes: dict) -> None:
    """Changes settings that the segmenter's training has recorded; the weights stay."""
    place = Path(run.uri, "segmenter", "step.json")
    content = json.loads(place.read_text())
    for section, values in changes.items():
        content["fingerprint"][section] |= values
    place.write_bytes(seal({key: value for key, value in content.items() if key != "checksum"}))


def measure(run: Run, *splits: str, part=None) -> dict:
    with connect("in-process") as connection:
        figures = evaluate_labels(run, connection, list(splits), part, ("image",), deterministic=False)
    return {figure.labels: figure for figure in figures}


def test_the_default_measures_images_whose_masks_the_network_has_not_seen(masks_run, capsys):
    figures = measure(masks_run)
    assert {(each.splits, each.num_images, each.trained_on) for each in figures.values()} == {(("val",), 2, ())}
    expected = sum(
        confusion_matrix(
            read_mask(row.mask_uri, range(1, 6)), masks_run.labels("predictions").read(row.image_id), 5, 255
        )
        for row in masks_run.manifest().rows(12, 14)
    )
    np.testing.assert_array_equal(figures["predictions"].matrix, expected)
    printed = capsys.readouterr().out
    assert "evaluate: measures val, because the segmentation network was trained on the masks of train." in printed
    assert "'--split train' measures these" in printed and "WARNING: the segmentation network" not in printed


def test_figures_on_masks_of_the_training_are_marked_wherever_they_stand(masks_run, capsys):
    figures = measure(masks_run, "train", part="all")
    assert {name for name, each in figures.items() if each.trained_on == ("train",)} == {
        "predictions",
        "predictions without CRF",
    }
    printed = capsys.readouterr().out
    assert f"predictions ({MARK})" in printed and f"seeds ({MARK})" not in printed
    assert "do not show how good its masks of other images are" in printed
    assert f"'python jobs/evaluate.py --run {masks_run.uri} --split=val'" in printed
    stored = json.loads((masks_run.location / "evaluation/metrics.json").read_bytes())["metrics"]
    assert {each["labels"]: each["trained_on"] for each in stored}["predictions"] == ["train"]
    assert any(row.title.startswith(f"predictions ({MARK}), train") for row in metrics_side_by_side([masks_run]).rows)
    written = write_report(masks_run)
    page = (masks_run.location / "report/index.html").read_bytes().decode()
    assert page.count(MARK) >= 4 and written.figures.is_on_trained_masks and written.figures.measured is None


def test_without_other_masks_the_training_images_are_measured_and_marked(masks_run, capsys):
    manifest = masks_run.manifest()
    rows = [
        replace(row, mask_uri=row.mask_uri if row.split == "train" else None) for row in manifest.iter_written_rows()
    ]
    write_manifest(masks_run.location / "manifest.parquet", rows, manifest.class_names, manifest.class_values)
    Manifest.forget()
    figures = measure(open_run(masks_run.uri))
    assert figures["predictions"].trained_on == ("train",)
    assert "give masks to validation images; training does not read these" in capsys.readouterr().out


def test_which_masks_a_network_has_seen(masks_run):
    assert splits_with_trained_masks(masks_run) == ("train",)
    record(masks_run, segmenter={"strong_splits": ["val"]})  # a validation split is not trained on
    assert splits_with_trained_masks(masks_run) == ()
    record(masks_run, segmenter={"strong_splits": [], "supervision": "masks"})
    assert splits_with_trained_masks(masks_run) == ("train",)
    record(masks_run, data={"train_splits": ["train", "val"]})
    assert splits_with_trained_masks(masks_run) == ("train", "val")


def test_figures_of_an_earlier_network_are_outdated_also_on_masks_of_the_training(masks_run):
    measure(masks_run, "train", part="all")
    place = masks_run.location / "evaluation/metrics.json"
    records = json.loads(place.read_bytes())["metrics"]
    for each in records:
        each["segmenter"] = each["segmenter"] and "of an earlier network"
    place.write_bytes(seal({"metrics": records}))
    status = run_status(masks_run).steps[-1]
    assert (status.state, "--split=train --part=all" in status.command) == ("outdated", True)
    measure(masks_run, "train", part="all")
    assert run_status(masks_run).steps[-1].state == "done"
