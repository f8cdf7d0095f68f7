"""The way there and back: labels exported, corrected as a tool would, brought back pixel for pixel, and learnt."""

import csv
import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from cluster.connect import connect
from ficklenet.drawing import DRAWN_CLASS_NAMES
from jobs import evaluate, export_labels, import_masks, predict_masks, run_pipeline, train_segmentation
from jobs.cli.launch import launch_step
from jobs.cli.pipeline import require_startable
from jobs.exports.after_import import next_commands
from jobs.preparation.prepare import prepare
from jobs.reporting.run_status import run_status
from jobs.run.corrected_masks import all_corrected_from
from jobs.run.directory import Run, open_run
from jobs.run.fingerprints import manifest_change, outdated_steps
from jobs.run.steps import STEPS, TRAINING_COLUMNS
from jobs.training.segmenter_job import make_job
from storage.images import read_mask
from storage.label_folder import encode_label_png
from storage.manifest import Manifest, write_manifest
from storage.records import seal

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


def test_the_run_knows_from_which_masks_all_its_masks_were_corrected(painted_run, tmp_path):
    assert not all_corrected_from(painted_run)  # they are those of the data set
    bring_back(painted_run, export(painted_run, tmp_path / "seeds", "--format", "png", "--labels", "seeds"))
    assert len(masks_of(painted_run)) + len(masks_of(painted_run, "train")) == 14
    assert all_corrected_from(painted_run) == {"seeds"}
    export(painted_run, tmp_path / "predictions", "--format", "png")
    assert all_corrected_from(painted_run) == {"seeds", "predictions"}  # which of the two, nobody knows


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


def refused_steps(run: Run) -> set[str]:
    """The started steps that a launch refuses because of the manifest; a step that waits for another is not refused."""
    found = set()
    for row in STEPS:
        try:
            if row.module and run.step(row.name).fingerprint():
                with connect("in-process") as connection:
                    launch_step(open_run(run.uri), connection, row.name, dry_run=True)
        except ValueError as error:
            if f"/{row.name}: was started with other settings (images, labels" in str(error):
                found.add(row.name)
    return found


def change_rows(run: Run, change) -> None:
    """Writes the manifest again with other rows, behind the back of prepare_dataset."""
    manifest = run.manifest()
    rows = [change(row) for row in manifest.iter_written_rows()]
    write_manifest(manifest.location, rows, manifest.class_names, manifest.class_values)
    Manifest.forget()


@pytest.fixture(scope="module")
def strong_run_folder(predicted_run_folder, tmp_path_factory) -> Path:
    """A run whose network is trained on the masks of the training split, and whose predictions are its."""
    folder = tmp_path_factory.mktemp("strong") / "run"
    shutil.copytree(predicted_run_folder, folder)
    with connect("in-process") as connection:
        launch_step(open_run(str(folder), None, STRONG), connection, "segmenter", restart=True)
        launch_step(open_run(str(folder)), connection, "predictions", restart=True)
        launch_step(open_run(str(folder)), connection, "pseudo_labels")
    return folder


@pytest.fixture
def strong_run(strong_run_folder, tmp_path) -> Run:
    shutil.copytree(strong_run_folder, tmp_path / "strong")
    return open_run(str(tmp_path / "strong"))


@pytest.mark.parametrize(
    ("column", "value", "split", "outdated", "refused"),
    [
        ("mask_uri", "/other.png", "train", {"segmenter", "predictions"}, {"segmenter"}),
        ("mask_uri", "/other.png", "val", set(), set()),  # the training does not read these
        ("source_number", 7, "train", set(), set()),
        (
            "saliency_uri",
            "/saliency.png",
            "train",
            {"seeds", "pseudo_labels", "segmenter", "predictions"},
            {"seeds", "pseudo_labels"},
        ),
    ],
    ids=["masks", "masks-of-val", "numbers", "saliency"],
)
def test_the_steps_that_a_change_of_the_manifest_makes_outdated_are_those_that_refuse_it(
    strong_run, column, value, split, outdated, refused
):
    assert outdated_steps(strong_run) == refused_steps(strong_run) == set()
    change_rows(strong_run, lambda row: replace(row, **{column: value}) if row.split == split else row)
    assert outdated_steps(strong_run) == outdated
    assert {name for name in outdated if manifest_change(strong_run, name)} == refused
    assert refused_steps(strong_run) == refused
    if outdated:
        with pytest.raises(ValueError, match=r"changed since\).* --redo-outdated deletes"):
            require_startable(open_run(strong_run.uri), redo_outdated=False)
    require_startable(open_run(strong_run.uri), redo_outdated=True)


@pytest.mark.parametrize(("column", "value"), [("labels", ()), ("split", "val")])
def test_other_labels_and_splits_are_refused_in_words(strong_run, drawn_images, column, value):
    images = [replace(drawn_images[0], **{column: value}), *drawn_images[1:]]
    with pytest.raises(ValueError, match=f"1 image has another .*{column}"):
        prepare(open_run(strong_run.uri), images, DRAWN_CLASS_NAMES)
    assert outdated_steps(strong_run) == refused_steps(strong_run) == set()
    change_rows(strong_run, lambda row: replace(row, **{column: value}) if row.image_id == "scene_0000" else row)
    assert "classifier" in refused_steps(strong_run)
    with pytest.raises(ValueError, match=r"images or labels or splits in the manifest were changed since\. Put .*'"):
        require_startable(open_run(strong_run.uri), redo_outdated=True)


def test_a_second_import_makes_the_network_outdated_and_its_commands_work(strong_run, tmp_path, capsys):
    flags = ["--format", "png", "--labels", "seeds", "--split", "train"]
    bring_back(strong_run, export(strong_run, tmp_path / "out", *flags))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  next: ")]
    states = {step.name: step for step in run_status(open_run(strong_run.uri)).steps}
    assert states["segmenter"].state == states["predictions"].state == "outdated"
    assert states["segmenter"].note == "masks were added or changed since"
    named = r"outdated, .*: segmenter \(masks were added or changed since\), predictions\. .* --redo-outdated deletes"
    for launch in (["--dry-run"], []):
        with pytest.raises(ValueError, match=named):
            run_pipeline.main(["--run", strong_run.uri, *launch])
    run_pipeline.main(["--run", strong_run.uri, "--redo-outdated", "--dry-run"])
    assert "segmenter, dry run: 2 of 2 epochs to do" in capsys.readouterr().out
    evaluate.main(["--run", strong_run.uri, "--split=val"])  # before the training, as the import advises
    printed = capsys.readouterr().out
    assert "evaluate: WARNING: the step predictions" in printed and "are left out" not in printed
    predict_masks.main(["--run", strong_run.uri])
    assert "WARNING: the step segmenter" in (printed := capsys.readouterr().out)
    assert "is outdated, because masks were added or changed since" in printed
    train, pipeline = (shlex.split(command)[2:] for command in re.findall(r"'(.+?)'(?:, then|$)", line))
    train_segmentation.main(train)
    assert outdated_steps(strong_run) == {"predictions"}
    run_pipeline.main(pipeline)
    assert outdated_steps(strong_run) == set()


def test_a_training_of_an_earlier_version_recorded_the_masks_of_all_images(strong_run):
    place = strong_run.location / "segmenter" / "step.json"
    content = json.loads(place.read_bytes())
    columns = [*TRAINING_COLUMNS, "mask_uri"]
    content["fingerprint"]["manifest"] = strong_run.manifest().column_hash(columns)
    place.write_bytes(seal({key: value for key, value in content.items() if key != "checksum"}))
    assert outdated_steps(strong_run) == refused_steps(strong_run) == set()
