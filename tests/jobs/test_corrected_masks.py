"""What counts as a correction: masks that nobody corrected stay out, and corrected ones are never lost."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import export_labels, import_masks
from jobs.exports.regions import regions
from jobs.exports.unchanged import missing_pixels
from jobs.run.directory import Run
from storage.images import read_mask
from storage.label_folder import decode_label_png, encode_label_png
from storage.manifest import Manifest, write_manifest


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
    with pytest.raises(
        ValueError, match=r"made before masks were imported that .*png --restart ficklenet_export' writes"
    ):
        export(painted_run, folder, "--format", "png")
    export(painted_run, folder, "--format", "png", "--restart", "ficklenet_export")
    hand_mask(painted_run, tmp_path / "second", "scene_0013", 2)
    with pytest.raises(ValueError, match="made before masks were imported that the run has now"):
        export(painted_run, folder, "--format", "png")


def test_the_export_for_a_labelling_tool_is_written_again_after_an_import(painted_run, tmp_path, capsys):
    """Its command is printed by the pipeline and the report, and the file is kept if somebody has changed it."""
    command = ["--run", painted_run.uri, "--format", "cvat"]
    export_labels.main(command)
    (file,) = Path(painted_run.uri, "exports").glob("*/annotations.xml")
    first = file.read_bytes() + b"<!-- mine -->"
    file.write_bytes(first)
    hand_mask(painted_run, tmp_path / "first", "scene_0013", 4)
    capsys.readouterr()
    export_labels.main([*command, "--dry-run"])
    assert file.read_bytes() == first
    export_labels.main(command)
    assert "the masks of the run have changed since this export was made, so it is written" in capsys.readouterr().out
    (kept,) = file.parent.glob("annotations.before-*.xml")
    assert kept.read_bytes() == first and file.read_bytes() != first
    export_labels.main(command)
    assert "written again" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="--restart ficklenet_export"):  # other settings are not masks
        export_labels.main(
            ["--run", painted_run.uri, "--format", "cvat", "--out", str(file.parent), "--shapes=polygons"]
        )


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
