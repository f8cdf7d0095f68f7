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
from jobs import export_labels, import_masks, train_segmentation
from jobs.cli.pipeline import require_startable
from jobs.exports.after_import import next_commands
from jobs.exports.regions import regions
from jobs.exports.unchanged import missing_pixels
from jobs.run.directory import Run, open_run
from jobs.run.fingerprints import outdated_steps
from jobs.training.segmenter_job import make_job
from storage.images import read_mask
from storage.label_folder import decode_label_png, encode_label_png
from storage.manifest import Manifest, write_manifest

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
    assert f"measure: 'python jobs/evaluate.py --run {painted_run.uri} --split=train' now, before" in printed
    assert "aggregate_seeds" not in printed  # the run has seeds
    assert printed.index("  measure: ") < printed.index("  next: ")  # with the network of before
    shutil.rmtree(Path(painted_run.uri, "seeds"))
    bring_back(painted_run, tmp_path / "out")
    assert "  next:    'python jobs/aggregate_seeds.py" in capsys.readouterr().out


def test_only_masks_of_training_images_are_proposed_for_the_training(painted_run, tmp_path, capsys):
    bring_back(painted_run, export(painted_run, tmp_path / "val", "--format", "png"))
    printed = capsys.readouterr().out
    assert "strong_splits" not in printed and "train_segmentation" not in printed
    assert f"measure: 'python jobs/evaluate.py --run {painted_run.uri} --split=val'. These masks are not" in printed
    (tmp_path / "val" / "scene_0012.png").unlink()
    bring_back(painted_run, tmp_path / "val")
    assert "other image" not in capsys.readouterr().out  # masks of a validation split are never strong
    folder = export(painted_run, tmp_path / "both", "--format", "png", "--labels", "seeds")
    pixels = np.array(Image.open(folder / "scene_0012.png"))
    pixels[:5, :5] = 2  # the correction
    (folder / "scene_0012.png").write_bytes(encode_label_png(pixels))
    bring_back(painted_run, folder)
    printed = capsys.readouterr().out
    assert "segmenter.strong_splits=train --restart" in printed and "--split=val'. These masks" in printed
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


def test_masks_that_nobody_corrected_are_left_out(painted_run, tmp_path, capsys):
    folder = export(painted_run, tmp_path / "out", "--format", "png", "--min-object-pixels", "150")
    with pytest.raises(
        ValueError,
        match=r"none is a new correction: 2 lack .*has 100 pixels, in scene_0012.* --keep-unchanged, which",
    ):
        bring_back(painted_run, folder, unchanged=False)
    image = folder / "scene_0013.png"
    pixels = np.array(Image.open(image))
    pixels[:5, :5] = 2  # the correction
    image.write_bytes(encode_label_png(pixels))
    before = dict(masks_of(painted_run))
    bring_back(painted_run, folder, unchanged=False)
    assert (
        "import: 1 of 2 masks left out, because nobody corrected it: 1 lacks only small objects of the run's own mask"
        in capsys.readouterr().out
    )
    after = masks_of(painted_run)
    np.testing.assert_array_equal(after["scene_0013"], pixels)
    np.testing.assert_array_equal(after["scene_0012"], before["scene_0012"])
    bring_back(painted_run, folder)
    assert (masks_of(painted_run)["scene_0012"] == np.array(Image.open(folder / "scene_0012.png"))).all()


def test_splits_that_were_strong_before_stay_strong(painted_run):
    run = open_run(painted_run.uri, None, ["segmenter.strong_splits=gold"])
    assert "segmenter.strong_splits=gold,train --restart" in next_commands(run, ["train"])[-1]


def test_masks_that_were_imported_before_are_called_so(painted_run, tmp_path, capsys):
    folder = export(painted_run, tmp_path / "out", "--format", "png")
    pixels = np.array(Image.open(folder / "scene_0013.png"))
    pixels[:5, :5] = 2  # the correction
    (folder / "scene_0013.png").write_bytes(encode_label_png(pixels))
    bring_back(painted_run, folder, unchanged=False)
    assert "left out, because nobody corrected it: 1 equals the run's own mask of the image." in capsys.readouterr().out
    with pytest.raises(
        ValueError, match=r"correction: 1 was imported before, 1 equals .* --keep-unchanged, which keeps it"
    ):
        bring_back(painted_run, folder, unchanged=False)
    (folder / "scene_0012.png").unlink()
    with pytest.raises(ValueError, match=r"1 mask, and none is a new correction: 1 was imported before\.$"):
        bring_back(painted_run, folder, unchanged=False)


def test_a_table_has_labels_for_corrected_images_without_any(painted_run, tmp_path):
    hand_mask(painted_run, tmp_path / "hand", "scene_0013", 4)
    manifest = painted_run.manifest()
    rows = [replace(row, labels=()) for row in manifest.iter_written_rows()]
    write_manifest(manifest.location, rows, manifest.class_names, manifest.class_values)
    image = tmp_path / "hand" / "scene_0013.png"
    image.write_bytes(encode_label_png(np.full((120, 160), 2, np.uint8)))
    bring_back(painted_run, tmp_path / "hand", "--table", str(tmp_path / "table.csv"))
    with (tmp_path / "table.csv").open() as file:
        labels = {row["id"]: row["labels"] for row in csv.DictReader(file)}
    assert labels["scene_0013"] == "ring" and labels["scene_0012"] == ""


def hand_mask(run: Run, folder: Path, name: str, label: int) -> np.ndarray:
    """Imports a mask with one object, one speck and unknown pixels for an image; the mask as a label map."""
    mask = np.zeros((120, 160), np.uint8)
    mask[30:70, 40:120], mask[5, 5], mask[100:, :10] = label, label, 255
    folder.mkdir()
    (folder / f"{name}.png").write_bytes(encode_label_png(mask))
    bring_back(run, folder, unchanged=False)
    return mask


def exported_pixels(folder: Path, name: str) -> np.ndarray:
    return np.array(Image.open(folder / f"{name}.png"))


def test_later_exports_have_the_corrected_masks(painted_run, tmp_path, capsys):
    own = predicted(painted_run)
    mask = hand_mask(painted_run, tmp_path / "hand", "scene_0013", 4)
    hand_mask(painted_run, tmp_path / "train", "scene_0003", 4)  # no predictions are exported for this split
    capsys.readouterr()
    folder = export(painted_run, tmp_path / "png", "--format", "png")
    line = "export: 1 image with corrected masks, which are exported instead of the predictions; --without-corrected"
    assert line in capsys.readouterr().out
    np.testing.assert_array_equal(exported_pixels(folder, "scene_0013"), mask)
    np.testing.assert_array_equal(exported_pixels(folder, "scene_0012"), own["scene_0012"])
    folder = export(painted_run, tmp_path / "yolo", "--format", "yolo", "--min-object-pixels", "2")
    assert "export: 1 object of fewer than 2 pixels left out" in capsys.readouterr().out  # the speck drawn by hand
    number, *corners = (folder / "labels" / "scene_0013.txt").read_text().split()
    columns, rows = np.array(corners, float).reshape(-1, 2).T * [[160], [120]]
    assert number == "3"
    np.testing.assert_allclose([columns.min(), columns.max(), rows.min(), rows.max()], [40, 120, 30, 70], atol=1e-3)
    folder = export(painted_run, tmp_path / "seeds", "--format", "png", "--labels", "seeds")
    assert "export: 2 images with corrected masks, which are exported instead of the seeds" in capsys.readouterr().out
    np.testing.assert_array_equal(exported_pixels(folder, "scene_0003"), mask)
    folder = export(painted_run, tmp_path / "own", "--format", "png", "--without-corrected")
    assert "corrected masks" not in capsys.readouterr().out
    np.testing.assert_array_equal(exported_pixels(folder, "scene_0013"), own["scene_0013"])


def test_an_export_from_before_an_import_is_not_continued(painted_run, tmp_path, capsys):
    folder = export(painted_run, tmp_path / "png", "--format", "png")
    assert "corrected masks" not in capsys.readouterr().out  # the data set's own masks are none
    (folder / "ficklenet_export" / "done" / "000003.json").unlink()
    hand_mask(painted_run, tmp_path / "first", "scene_0013", 4)
    with pytest.raises(ValueError, match=r"corrected_masks: absent -> 1 mask \(.*--restart ficklenet_export"):
        export(painted_run, folder, "--format", "png")
    export(painted_run, folder, "--format", "png", "--restart", "ficklenet_export")
    hand_mask(painted_run, tmp_path / "second", "scene_0013", 2)
    with pytest.raises(ValueError, match=r"corrected_masks: 1 mask \(.*\) -> 1 mask \("):
        export(painted_run, folder, "--format", "png")


def test_masks_that_nobody_corrected_never_replace_corrected_ones(painted_run, tmp_path, capsys):
    folder = export(painted_run, tmp_path / "out", "--format", "png")
    image = folder / "scene_0013.png"
    own = image.read_bytes()
    pixels = np.array(Image.open(image))
    pixels[:5, :5] = 2  # the correction
    image.write_bytes(encode_label_png(pixels))
    bring_back(painted_run, folder, unchanged=False)
    image.write_bytes(own)  # a later export of the network's masks, in which another image is corrected
    other = np.array(Image.open(folder / "scene_0012.png"))
    other[:5, :5] = 3
    (folder / "scene_0012.png").write_bytes(encode_label_png(other))
    capsys.readouterr()
    bring_back(painted_run, folder, unchanged=True)
    printed = capsys.readouterr().out
    assert "import: 1 mask left out, because the image was corrected before" in printed and "scene_0013" in printed
    np.testing.assert_array_equal(masks_of(painted_run)["scene_0013"], pixels)
    np.testing.assert_array_equal(masks_of(painted_run)["scene_0012"], other)
    (folder / "scene_0012.png").unlink()
    with pytest.raises(ValueError, match="no mask is left"):
        bring_back(painted_run, folder, unchanged=True)


def test_kept_masks_that_nobody_corrected_are_said_to_measure_nothing(painted_run, tmp_path, capsys):
    bring_back(painted_run, export(painted_run, tmp_path / "out", "--format", "png"), unchanged=True)
    printed = capsys.readouterr().out
    assert "import: 2 of 2 masks equal the run's own, so figures measured with them are too good." in printed


@pytest.mark.parametrize("place", ["in the run", "elsewhere"])
def test_an_object_that_the_export_contained_and_a_person_deleted_is_a_correction(painted_run, tmp_path, place):
    flags = ["--format", "png", "--min-object-pixels", "50"]
    if place == "in the run":
        export_labels.main(["--run", painted_run.uri, *flags])
        folder = Path(painted_run.uri, "exports", "png-predictions-min50")
    else:
        folder = export(painted_run, tmp_path / "out", *flags)
    file = next(folder.rglob("scene_0012.png"))
    mask = decode_label_png(file.read_bytes())
    small = min(regions(mask, 5), key=lambda region: region.area)
    assert small.area == 100
    mask[small.in_image(mask.shape)] = 0
    file.write_bytes(encode_label_png(mask))
    bring_back(painted_run, file.parent, unchanged=False)
    np.testing.assert_array_equal(masks_of(painted_run)["scene_0012"], mask)


def test_a_task_that_is_corrected_further_after_a_training_brings_no_old_prediction_back(painted_run, tmp_path, capsys):
    folder = export(painted_run, tmp_path / "out", "--format", "png", "--min-object-pixels", "50")
    for name in ("scene_0012", "scene_0013"):  # the network was trained again and predicts something else
        labels = np.zeros((120, 160), np.uint8)
        labels[40:90, 30:100] = 3
        Path(painted_run.uri, "predictions", "labels", f"{name}.png").write_bytes(encode_label_png(labels))
    with pytest.raises(ValueError, match="none is a new correction: 2 equal what the run exported before its masks"):
        bring_back(painted_run, folder, unchanged=False)
    image = folder / "scene_0013.png"
    pixels = np.array(Image.open(image))
    pixels[:5, :5] = 2  # the correction
    image.write_bytes(encode_label_png(pixels))
    bring_back(painted_run, folder, unchanged=False)
    assert "1 of 2 masks left out, because nobody corrected it: 1 equals what the run" in capsys.readouterr().out
    np.testing.assert_array_equal(masks_of(painted_run)["scene_0013"], pixels)


def test_a_corrected_file_in_the_folder_of_the_export_is_kept_when_the_export_runs_again(painted_run, tmp_path, capsys):
    flags = ("--format", "cvat", "--min-object-pixels", "50")
    file = export(painted_run, tmp_path / "out", *flags) / "annotations.xml"
    export(painted_run, tmp_path / "out", *flags)
    assert len(list(file.parent.glob("*.xml"))) == 1  # the same content
    assert "0 objects of fewer" not in capsys.readouterr().out.partition("0 of 1 unit")[2]
    corrected = file.read_text().replace('label="square"', 'label="disc"', 1).encode() + b"<!-- corrected -->"
    file.write_bytes(corrected)
    export(painted_run, tmp_path / "out", *flags)
    (kept,) = file.parent.glob("annotations.before-*.xml")
    assert kept.read_bytes() == corrected
    assert f"annotations.xml was another file before; that one is kept as {kept}" in capsys.readouterr().out


def test_what_counts_as_unchanged():
    own = np.zeros((50, 60), np.uint8)
    own[5:25, 5:25], own[40:45, 40:45], own[30, 30], own[48] = 1, 2, 2, 255
    known = np.where(own == 255, 0, own)

    def with_changes(*changes: tuple[slice, slice, int]) -> np.ndarray:
        mask = known.copy()
        for rows, columns, value in changes:
            mask[rows, columns] = value
        return mask

    speck, small, large = (slice(30, 31),) * 2, (slice(40, 45),) * 2, (slice(5, 25),) * 2
    assert missing_pixels(own, own, 5, 30) == missing_pixels(known, own, 5, 30) == 0
    assert missing_pixels(with_changes((*speck, 0)), own, 5, 30) == 1  # --min-object-pixels 2
    assert missing_pixels(with_changes((*speck, 0), (*small, 0)), own, 5, 30) == 25
    assert missing_pixels(with_changes((*small, 0)), own, 5, 30) is None  # the speck is smaller and still there
    assert missing_pixels(with_changes((*speck, 0), (*small, 0), (*large, 0)), own, 5, 30) is None
    assert missing_pixels(with_changes((*speck, 1)), own, 5, 30) is None
    assert missing_pixels(with_changes((slice(5, 6), slice(5, 6), 0)), own, 5, 30) is None
    assert missing_pixels(known[:40], own, 5, 30) is None
    assert missing_pixels(np.zeros_like(own), np.full_like(own, 255), 5, 30) is None


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


def test_what_cannot_be_brought_back_is_refused(painted_run, tmp_path):
    file = export(painted_run, tmp_path / "out", "--format", "cvat") / "annotations.xml"
    text = file.read_text()

    def refused(old: str, new: str, sentence: str, end: str = "</mask>") -> None:
        file.write_text(text.replace(old, new).replace("</mask>", end))
        with pytest.raises(ValueError, match=sentence):
            bring_back(painted_run, file)

    refused('name="scene_0012.png"', 'name="other.png"', r"no image of .* is called 'other.png'")
    refused('name="scene_0012.png"', 'name="scene_0013.png"', r"the image 'scene_0013.png' has two masks")
    refused('width="160" height="120">', 'width="160" height="121">', r"has 160 x 121 pixels, but the run's image has")
    refused("<mask label=", '<mask label="unicorn" other=', r"'unicorn' is not a class of the run")
    refused("<mask ", "<box ", r"an object that is neither a polygon nor a mask of 160 x 120 pixels", "</box>")
    refused("</annotations>", "", r"not CVAT's XML")
    file.write_text(text)
    (tmp_path / "pngs").mkdir()
    (tmp_path / "pngs" / "scene_0012.png").write_bytes(encode_label_png(np.full((120, 160), 77)))
    with pytest.raises(ValueError, match=r"value 77 is not a class\. Masks must have the data set's values"):
        bring_back(painted_run, tmp_path / "pngs")
    earlier = Path(painted_run.uri, "manifest.parquet").read_bytes()
    (tmp_path / "pngs" / "scene_0012.png").write_bytes(encode_label_png(np.ones((40, 160), np.uint8)))
    with pytest.raises(
        ValueError, match=r"'scene_0012.png' has 160 x 40 pixels, but the run's image has 160 x 120\. C"
    ):
        bring_back(painted_run, tmp_path / "pngs")
    assert Path(painted_run.uri, "manifest.parquet").read_bytes() == earlier


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


def test_a_png_whose_object_is_unknown_or_of_another_class_is_named(painted_run, tmp_path, capsys):
    pixels = np.zeros((120, 160), np.uint8)
    pixels[20:60, 30:90] = 255
    (tmp_path / "pngs").mkdir()
    image = tmp_path / "pngs" / "scene_0012.png"
    image.write_bytes(encode_label_png(pixels))
    before = Path(painted_run.uri, "manifest.parquet").read_bytes()
    with pytest.raises(
        ValueError, match=r"no pixel has a class, and 255 is unknown\. .* value of its class: 1 star, 2 "
    ):
        bring_back(painted_run, tmp_path / "pngs")
    image.write_bytes(encode_label_png(np.zeros_like(pixels)))
    with pytest.raises(ValueError, match=r"has no mask with an object; give --empty-is-background"):
        bring_back(painted_run, tmp_path / "pngs")
    assert Path(painted_run.uri, "manifest.parquet").read_bytes() == before
    manifest = painted_run.manifest()
    labels = next(row.labels for row in manifest.iter_rows() if row.image_id == "scene_0012")
    other = next(number for number in range(manifest.num_classes) if number not in labels)
    image.write_bytes(encode_label_png(np.where(pixels > 0, other + 1, 0).astype(np.uint8)))
    capsys.readouterr()
    bring_back(painted_run, tmp_path / "pngs")
    printed = capsys.readouterr().out
    assert "import: 1 of 1 mask with a class that is not a label of the image (first: scene_0012 has " in printed
    assert f"scene_0012 has {manifest.class_names[other]}, its label is" in printed


def test_a_folder_without_pngs_is_refused_with_the_reason(painted_run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--masks .*nothere: no such file or folder"):
        bring_back(painted_run, tmp_path / "nothere")
    (tmp_path / "jpegs").mkdir()
    Image.new("L", (160, 120)).save(tmp_path / "jpegs" / "scene_0012.jpg")
    with pytest.raises(ValueError, match=r"JPEGs, which change values\. Save them as PNG"):
        bring_back(painted_run, tmp_path / "jpegs")


def test_a_task_that_was_annotated_twice_is_refused(painted_run, tmp_path):
    file = export(painted_run, tmp_path / "out", "--format", "label-studio") / "tasks.json"
    tasks = json.loads(file.read_text())
    tasks[0]["annotations"] *= 2
    file.write_text(json.dumps(tasks))
    with pytest.raises(ValueError, match=r"has 2 annotations\. Keep one"):
        bring_back(painted_run, file)
    tasks[0]["annotations"][0] = {"was_cancelled": True, "result": []}
    file.write_text(json.dumps(tasks))
    bring_back(painted_run, file)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda result: result.update(type="rectanglelabels"), "neither a polygon nor a mask"),
        (lambda result: result.update(original_width=30), "objects other than brush masks and polygons"),
        (lambda result: result["value"].update(rle=result["value"]["rle"][:20]), "neither a polygon nor a mask"),
        (lambda result: result["value"].update(brushlabels=["unicorn"]), "'unicorn' is not a class"),
    ],
)
def test_objects_of_label_studio_that_are_no_masks_are_refused(painted_run, tmp_path, change, sentence):
    file = export(painted_run, tmp_path / "out", "--format", "label-studio") / "tasks.json"
    tasks = json.loads(file.read_text())
    change(tasks[0]["annotations"][0]["result"][0])
    file.write_text(json.dumps(tasks))
    with pytest.raises(ValueError, match=sentence):
        bring_back(painted_run, file)


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


def test_yolo_s_boxes_and_unknown_classes_are_refused(painted_run, tmp_path):
    folder = export(painted_run, tmp_path / "boxes", "--format", "yolo", "--shapes", "boxes")
    with pytest.raises(ValueError, match="is a box, not a polygon"):
        bring_back(painted_run, folder)
    (folder / "labels" / "scene_0012.txt").write_text("77 0 0 0.5 0 0.5 0.5\n")
    with pytest.raises(ValueError, match=r"class 77, but data\.yaml names 5 classes"):
        bring_back(painted_run, folder)
    (folder / "labels" / "other.txt").write_text("0 0 0 0.5 0 0.5 0.5\n")
    (folder / "labels" / "scene_0012.txt").unlink()
    with pytest.raises(ValueError, match=r"no image of the run is called 'other.txt'"):
        bring_back(painted_run, folder)


@pytest.mark.parametrize("kept", [False, True])
def test_an_export_with_corrected_masks_comes_back_and_they_stay(painted_run, tmp_path, capsys, kept):
    hand_mask(painted_run, tmp_path / "hand", "scene_0013", 4)
    before = masks_of(painted_run)["scene_0013"]
    folder = export(painted_run, tmp_path / "cvat", "--format", "cvat", "--min-object-pixels", "2")  # no 255, no speck
    capsys.readouterr()
    if kept:
        bring_back(painted_run, folder / "annotations.xml")
        assert "import: 1 mask left out, because the image was corrected before" in capsys.readouterr().out
    else:
        with pytest.raises(
            ValueError, match=r"correction: 1 was imported before with small objects that are missing now, .* stay, 1"
        ):
            bring_back(painted_run, folder / "annotations.xml", unchanged=False)
    np.testing.assert_array_equal(masks_of(painted_run)["scene_0013"], before)


def test_an_object_deleted_from_a_corrected_mask_is_a_correction(painted_run, tmp_path):
    mask = hand_mask(painted_run, tmp_path / "hand", "scene_0013", 4)
    mask[80:92, 60:72] = 4  # 144 pixels, 0.75 % of the image
    image = tmp_path / "hand" / "scene_0013.png"
    for pixels in (mask, np.where(np.indices(mask.shape)[0] >= 75, 0, mask).astype(np.uint8)):
        image.write_bytes(encode_label_png(pixels))
        bring_back(painted_run, tmp_path / "hand", unchanged=False)
        np.testing.assert_array_equal(masks_of(painted_run)["scene_0013"], pixels)


def test_a_mask_of_colours_is_refused_with_a_way_out(painted_run, tmp_path):
    (tmp_path / "pngs").mkdir()
    Image.new("RGB", (160, 120), (200, 0, 0)).save(tmp_path / "pngs" / "scene_0012.png")
    with pytest.raises(ValueError, match=r"the mask has colours\. Save it as a grey PNG"):
        bring_back(painted_run, tmp_path / "pngs")
