"""Files that `import_masks` refuses: each with one sentence that says what to do."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import export_labels, import_masks, prepare_dataset
from jobs.run.directory import Run, open_run
from storage.label_folder import encode_label_png
from storage.manifest import Manifest


def export(run: Run, folder: Path, *flags: str) -> Path:
    export_labels.main(["--run", run.uri, "--out", str(folder), *flags])
    return folder


def bring_back(run: Run, place: Path, *flags: str, unchanged: bool = True) -> None:
    """Imports masks, by default also those that nobody corrected."""
    kept = ["--keep-unchanged"] if unchanged else []
    import_masks.main(["--run", run.uri, "--masks", str(place), *kept, *flags])
    Manifest.forget()


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
    refused('label="star"', 'label="Star"', r"'Star' is not a class of the run\. Did you mean 'star'\?")
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


def test_names_without_their_folders_get_the_names_with_them(tmp_path):
    """Tools write the last part of a name only, if images were uploaded without their folders."""
    for place in ("cat/1", "dog/1", "dog/2"):
        (tmp_path / "photos" / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 24), (90, 90, 90)).save(tmp_path / "photos" / f"{place}.jpg")
    prepare_dataset.main(["--run", str(tmp_path / "run"), "--folders", str(tmp_path / "photos")])
    run = open_run(str(tmp_path / "run"))
    for name, sentence in (
        ("2", r"Did you mean 'dog/2'\? Keep the folders in the names of the export"),
        ("1", r"Did you mean 'cat/1' or another of the 2 images with this file name\?"),
        ("3", "Were its files renamed"),
    ):
        shutil.rmtree(tmp_path / "pngs", ignore_errors=True)
        (tmp_path / "pngs").mkdir()
        (tmp_path / "pngs" / f"{name}.png").write_bytes(encode_label_png(np.ones((24, 32), np.uint8)))
        with pytest.raises(ValueError, match=sentence):
            bring_back(run, tmp_path / "pngs")


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
    (tmp_path / "task.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"--masks .*task.zip: is an archive\. Unpack it"):
        bring_back(painted_run, tmp_path / "task.zip")


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


def test_yolo_s_boxes_and_unknown_classes_are_refused(painted_run, tmp_path):
    folder = export(painted_run, tmp_path / "boxes", "--format", "yolo", "--shapes", "boxes")
    with pytest.raises(ValueError, match="is a box, not a polygon"):
        bring_back(painted_run, folder)
    (folder / "labels" / "scene_0012.txt").write_text("77 0 0 0.5 0 0.5 0.5\n")
    with pytest.raises(ValueError, match=r"class 77, but data\.yaml names 5 classes"):
        bring_back(painted_run, folder)
    (folder / "labels" / "other.txt").write_text("0 0 0 0.5 0 0.5 0.5\n")
    (folder / "labels" / "scene_0012.txt").unlink()
    with pytest.raises(ValueError, match=r"no image of .* is called 'other.txt'"):
        bring_back(painted_run, folder)


def test_a_mask_of_colours_is_refused_with_a_way_out(painted_run, tmp_path):
    (tmp_path / "pngs").mkdir()
    Image.new("RGB", (160, 120), (200, 0, 0)).save(tmp_path / "pngs" / "scene_0012.png")
    with pytest.raises(ValueError, match=r"the mask has colours\. Save it as a grey PNG"):
        bring_back(painted_run, tmp_path / "pngs")
