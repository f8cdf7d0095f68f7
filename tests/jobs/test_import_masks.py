"""The way there and back: labels exported, corrected as a tool would, brought back pixel for pixel, and learnt."""

import csv
import json
import re
import shlex
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from cluster.connect import connect
from jobs import export_labels, import_masks, train_segmentation
from jobs.cli.pipeline import require_startable
from jobs.exports.after_import import next_commands
from jobs.reporting.run_status import run_status
from jobs.run.directory import Run, open_run
from jobs.run.fingerprints import outdated_steps
from jobs.training.segmenter_job import make_job
from storage.images import read_mask
from storage.label_folder import encode_label_png
from storage.manifest import Manifest

STRONG = ["segmenter.strong_splits=train"]


def export(run: Run, folder: Path, *flags: str) -> Path:
    export_labels.main(["--run", run.uri, "--out", str(folder), *flags])
    return folder


def bring_back(run: Run, place: Path, *flags: str, unchanged: bool = True) -> None:
    """Imports masks, by default also those that nobody corrected."""
    kept = ["--keep-unchanged"] if unchanged else []
    import_masks.main(["--run", run.uri, "--masks", str(place), *kept, *flags])
    Manifest.forget()


def masks_of(run: Run, split: str = "val") -> dict[str, np.ndarray]:
    """The masks of a split's images, as training reads them."""
    manifest = run.manifest()
    rows = [row for row in manifest.iter_rows() if row.split == split and row.mask_uri]
    return {row.image_id: read_mask(row.mask_uri, manifest.class_values) for row in rows}


def predicted(run: Run) -> dict[str, np.ndarray]:
    return {name: run.labels("predictions").read(name) for name in ("scene_0012", "scene_0013")}


@pytest.mark.parametrize(
    ("flags", "file"),
    [
        (["--format", "coco"], "annotations.json"),
        (["--format", "coco", "--shapes", "polygons"], "annotations.json"),
        (["--format", "cvat"], "annotations.xml"),
        (["--format", "cvat", "--shapes", "polygons"], "annotations.xml"),
        (["--format", "label-studio"], "tasks.json"),
        (["--format", "label-studio", "--shapes", "polygons"], "tasks.json"),
        (["--format", "yolo"], ""),
        (["--format", "hugging-face"], ""),
        (["--format", "png"], ""),
    ],
    ids=lambda value: "-".join(value[1::2]) if isinstance(value, list) else "",
)
def test_masks_come_back_pixel_for_pixel(painted_run, tmp_path, flags, file):
    before = predicted(painted_run)
    folder = export(painted_run, tmp_path / "out", *flags)
    bring_back(painted_run, folder / file)
    after = masks_of(painted_run)
    assert set(after) == set(before)
    for name, labels in before.items():
        np.testing.assert_array_equal(after[name], labels)


def test_a_corrected_mask_changes_the_next_training_and_no_earlier_step(painted_run, tmp_path, capsys):
    def fingerprint() -> dict:
        with connect("in-process") as connection:
            return dict(make_job(open_run(painted_run.uri, None, STRONG), connection).fingerprint)

    image = (
        export(painted_run, tmp_path / "out", *["--format", "png", "--labels", "seeds", "--split", "train"])
        / "scene_0003.png"
    )
    bring_back(painted_run, tmp_path / "out")
    first, upstream = fingerprint(), painted_run.step("seeds").fingerprint()
    pixels = np.array(Image.open(image))
    pixels[:5, :5] = 2  # the correction
    image.write_bytes(encode_label_png(pixels))
    capsys.readouterr()
    bring_back(painted_run, tmp_path / "out")
    second = fingerprint()
    assert first["manifest"] != second["manifest"] and first["upstream"] == second["upstream"]
    assert painted_run.step("seeds").fingerprint() == upstream
    assert masks_of(painted_run, "train")["scene_0003"][0, 0] == 2
    printed = capsys.readouterr().out
    assert "import: 12 masks of" in printed and "--set segmenter.strong_splits=train --restart segmenter" in printed
    assert f"then 'python jobs/run_pipeline.py --run {painted_run.uri} --redo-outdated'" in printed
    measure = f"python jobs/evaluate.py --run {painted_run.uri}"
    assert f"measure: '{measure} --split=train --part=all && {measure} --split=val' now, before" in printed
    assert run_status(painted_run).steps[-1].command in printed  # the same as in the status
    assert "aggregate_seeds" not in printed  # the run has seeds
    assert printed.index("  measure: ") < printed.index("  next: ")  # with the network of before
    shutil.rmtree(Path(painted_run.uri, "seeds"))
    bring_back(painted_run, tmp_path / "out")
    assert "  next:    'python jobs/aggregate_seeds.py" in capsys.readouterr().out


def test_only_masks_of_training_images_are_proposed_for_the_training(painted_run, tmp_path, capsys):
    bring_back(painted_run, export(painted_run, tmp_path / "val", "--format", "png"))
    printed = capsys.readouterr().out
    assert "strong_splits" not in printed and "train_segmentation" not in printed
    measure = f"python jobs/evaluate.py --run {painted_run.uri}"
    assert (
        f"measure: '{measure} --split=val && {measure} --split=train --part=all'. The masks of val are not" in printed
    )
    (tmp_path / "val" / "scene_0012.png").unlink()
    bring_back(painted_run, tmp_path / "val")
    assert "other image" not in capsys.readouterr().out  # masks of a validation split are never strong
    folder = export(painted_run, tmp_path / "both", "--format", "png", "--labels", "seeds")
    pixels = np.array(Image.open(folder / "scene_0012.png"))
    pixels[:5, :5] = 2  # the correction
    (folder / "scene_0012.png").write_bytes(encode_label_png(pixels))
    bring_back(painted_run, folder)
    printed = capsys.readouterr().out
    assert "segmenter.strong_splits=train --restart" in printed and "--split=val' now, before" in printed
    assert printed.index("  measure: ") < printed.index("  next: ")


def test_the_printed_commands_train_and_predict_again(painted_run, tmp_path, capsys):
    flags = ["--format", "png", "--labels", "seeds", "--split", "train"]
    bring_back(painted_run, export(painted_run, tmp_path / "out", *flags))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  next: ")]
    train, pipeline = (shlex.split(command)[2:] for command in re.findall(r"'(.+?)'(?:, then|$)", line))
    train_segmentation.main(train)
    assert pipeline == ["--run", painted_run.uri, "--redo-outdated"]
    run = open_run(painted_run.uri)
    assert outdated_steps(run) == {"predictions"}
    require_startable(run, redo_outdated=True)  # as the pipeline does before it starts


def test_splits_that_were_strong_before_stay_strong(painted_run):
    run = open_run(painted_run.uri, None, ["segmenter.strong_splits=gold"])
    assert "segmenter.strong_splits=gold,train --restart" in next_commands(run, ["train"])[-1]


def test_a_table_makes_corrected_images_a_split_of_a_new_run(painted_run, tmp_path, capsys):
    from jobs import prepare_dataset

    before = painted_run.manifest().column_hash(["image_id", "split", "mask_uri"])
    folder = export(painted_run, tmp_path / "out", "--format", "cvat")
    bring_back(painted_run, folder / "annotations.xml", "--table", str(tmp_path / "table.csv"))
    assert painted_run.manifest().column_hash(["image_id", "split", "mask_uri"]) == before
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows if row["split"] == "corrected"] == ["scene_0012", "scene_0013"]
    (flags,) = re.findall(r"--run NEW_RUN (.*)'\n", capsys.readouterr().out)
    prepare_dataset.main(["--run", str(tmp_path / "new"), *shlex.split(flags)])
    new = open_run(str(tmp_path / "new"))
    assert new.config.segmenter.strong_splits == ("corrected",)
    manifest = new.manifest()
    for row in manifest.iter_rows():
        if row.split == "corrected":
            found = read_mask(row.mask_uri, manifest.class_values)
            np.testing.assert_array_equal(found, predicted(painted_run)[row.image_id])


def test_an_image_without_objects_is_left_out_unless_it_is_said_to_be_background(painted_run, tmp_path, capsys):
    file = export(painted_run, tmp_path / "out", "--format", "cvat") / "annotations.xml"
    tree = ElementTree.parse(file)
    image = tree.getroot().find("image")
    for shape in list(image):
        image.remove(shape)
    tree.write(file)
    bring_back(painted_run, file)
    assert "1 image without any object left out (first: scene_0012.png)" in capsys.readouterr().out
    bring_back(painted_run, file, "--empty-is-background")
    assert not masks_of(painted_run)["scene_0012"].any()


def test_hugging_face_s_own_package_loads_the_export_and_what_it_saves_comes_back(painted_run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="`datasets` is not installed (pip install -e '.[dev]')")
    before = predicted(painted_run)
    folder = export(painted_run, tmp_path / "out", "--format", "hugging-face")
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"val"}
    names = ["background", *loaded["val"].features["labels"].feature.names]
    for row in loaded["val"]:
        labels = before[row["image_id"]]
        np.testing.assert_array_equal(np.array(row["mask"]), labels)
        assert row["image"].size == labels.shape[::-1]
        shown = {names[label] for label in np.unique(labels) if 0 < label < 255}
        assert {names[label + 1] for label in row["labels"]} == shown

    def corrected(row: dict) -> dict:
        pixels = np.array(row["mask"])
        pixels[:5, :5] = 2
        return {**row, "mask": Image.fromarray(pixels)}

    changed = loaded["val"].map(corrected, cache_file_name=str(tmp_path / "mapped.arrow"))
    changed.to_parquet(str(tmp_path / "back" / "0.parquet"))
    bring_back(painted_run, tmp_path / "back")
    for name, mask in masks_of(painted_run).items():
        assert (mask[:5, :5] == 2).all()
        np.testing.assert_array_equal(mask[5:], before[name][5:])


def test_an_image_without_objects_in_label_studio_can_be_background(painted_run, tmp_path):
    file = export(painted_run, tmp_path / "out", "--format", "label-studio") / "tasks.json"
    tasks = json.loads(file.read_text())
    tasks[0]["annotations"][0]["result"] = []
    file.write_text(json.dumps(tasks))
    bring_back(painted_run, file, "--empty-is-background")
    assert not masks_of(painted_run)["scene_0012"].any()


def test_yolo_s_class_numbers_mean_the_names_in_data_yaml(painted_run, tmp_path):
    before = predicted(painted_run)
    folder = export(painted_run, tmp_path / "out", "--format", "yolo")
    names = list(painted_run.manifest().class_names)
    turned = dict(enumerate(names[::-1]))
    (folder / "data.yaml").write_text(f"names: {json.dumps([turned[n] for n in range(len(names))])}\n")
    for file in (folder / "labels").iterdir():
        lines = [line.split(" ", 1) for line in file.read_text().splitlines()]
        file.write_text("".join(f"{len(names) - 1 - int(number)} {rest}\n" for number, rest in lines))
    bring_back(painted_run, folder)
    for name, mask in masks_of(painted_run).items():
        np.testing.assert_array_equal(mask, before[name])
