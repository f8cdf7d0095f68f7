"""Exports read back by independent readers: Pillow, numpy with pickle, pycocotools."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from scipy import ndimage

from cluster.connect import connect
from ficklenet.seeds import resize_labels
from ficklenet.transforms import resize_maps
from jobs.cli.launch import launch_step
from jobs.exports.export_job import ExportRequest, export, export_folder, finest_labels
from jobs.run.directory import Run, open_run
from jobs.steps import finished
from jobs.steps.launch import LaunchOptions
from storage.errors import NotYet
from storage.images import read_mask
from storage.label_folder import encode_label_png, voc_palette
from storage.location import Location
from storage.manifest import write_manifest

VALUES = (8, 10, 3, 254, 1)  # of the drawn classes in a data set's own masks


@pytest.fixture
def seeded_run(map_images, drawn_images) -> Run:
    """Four images of a data set whose masks number the classes otherwise; the last cannot be read."""
    images = [replace(drawn_images[0], image_id="a b:c"), *drawn_images[1:3], replace(drawn_images[3], uri="/gone.png")]
    run = map_images(images, class_values=VALUES)
    with connect("in-process") as connection:
        launch_step(run, connection, "seeds")
    return run


def export_to(
    run: Run, format: str, out: Path, labels: str = "", shapes: str = "", splits=(), min_pixels=0, **options
) -> None:
    request = ExportRequest(format, labels, shapes, tuple(splits), min_pixels)
    request.check()
    with connect("in-process") as connection:
        export(run, connection, request.resolved(run), Location(str(out)), LaunchOptions(**options))


def labels_at_image_size(run: Run, index: int) -> np.ndarray:
    return resize_labels(run.seeds().read(index), (120, 160))


def files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.is_file())


def test_png_holds_source_values_in_voc_colours_and_255(seeded_run, tmp_path, capsys):
    export_to(seeded_run, "png", tmp_path / "png")
    assert files(tmp_path / "png") == ["a%20b%3Ac.png", "scene_0001.png", "scene_0002.png"]
    printed = capsys.readouterr().out
    assert "3 images done, 1 skipped (1 missing: no such file)" in printed
    assert "export: do not use these masks: this run is a trial." in printed
    found = set()
    for index, name in enumerate(files(tmp_path / "png")):
        image = Image.open(tmp_path / "png" / name)
        assert image.mode == "P"
        np.testing.assert_array_equal(np.array(image.getpalette()).reshape(-1, 3), voc_palette())
        stored, expected = np.asarray(image), labels_at_image_size(seeded_run, index)
        assert stored.shape == (120, 160)
        for label, value in enumerate((0, *VALUES)):
            np.testing.assert_array_equal(stored == value, expected == label)
        np.testing.assert_array_equal(stored == 255, expected == 255)
        found |= set(np.unique(stored).tolist())
    assert 0 in found and found & set(VALUES)


def test_known_voc_colours():
    palette = voc_palette()
    assert palette[[0, 1, 8, 15, 255]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [64, 0, 0],
        [192, 128, 128],
        [224, 224, 192],
    ]


def test_npy_is_read_as_irns_scripts_read_it(seeded_run, tmp_path):
    export_to(seeded_run, "npy", tmp_path / "npy")
    store = seeded_run.maps()
    for index, name in enumerate(files(tmp_path / "npy")):
        cam_dict = np.load(tmp_path / "npy" / name, allow_pickle=True).item()
        maps = store.read(index)
        keys = np.pad(cam_dict["keys"] + 1, (1, 0), mode="constant")
        assert keys.tolist() == [0, *np.array(VALUES)[maps.classes]]  # as IRN's scripts label, in the source's values
        assert isinstance(cam_dict["cam"], torch.Tensor) and cam_dict["cam"].shape == (len(keys) - 1, 30, 40)
        cams = np.pad(cam_dict["high_res"], ((1, 0), (0, 0), (0, 0)), mode="constant", constant_values=0.35)
        expected = resize_maps(torch.from_numpy(maps.max.astype(np.float32)), (120, 160)).numpy()
        np.testing.assert_array_equal(cams[1:], expected)
        np.testing.assert_array_equal(cam_dict["cam"].numpy(), expected[:, ::4, ::4])
        assert set(np.unique(keys[cams.argmax(0)])) <= {0, *VALUES}


def test_unlabelled_images_have_empty_dictionaries(map_images, drawn_images, tmp_path):
    run = map_images([replace(drawn_images[0], labels=()), drawn_images[1]])
    export_to(run, "npy", tmp_path / "npy")
    cam_dict = np.load(tmp_path / "npy" / "scene_0000.npy", allow_pickle=True).item()
    assert len(cam_dict["keys"]) == 0 and cam_dict["high_res"].shape == (0, 120, 160)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools and numpy 2
def test_pycocotools_decodes_the_same_masks(seeded_run, tmp_path):
    export_to(seeded_run, "coco", tmp_path / "coco")
    coco = COCO(str(tmp_path / "coco" / "annotations.json"))
    assert [each["id"] for each in coco.loadCats(coco.getCatIds())] == list(VALUES)
    assert coco.getImgIds() == [1, 2, 3]
    assert sorted(coco.anns) == list(range(1, len(coco.anns) + 1))
    for index in range(3):
        expected, decoded = labels_at_image_size(seeded_run, index), np.zeros((120, 160), np.uint8)
        assert coco.imgs[index + 1]["file_name"].endswith(f"/scene_{index:04d}.png")
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=[index + 1])):
            mask = coco.annToMask(annotation).astype(bool)
            assert annotation["area"] == mask.sum()
            left, top, width, height = annotation["bbox"]
            assert mask[top : top + height, left : left + width].sum() == mask.sum()
            assert mask.any(0).sum() <= width == np.ptp(np.flatnonzero(mask.any(0))) + 1
            assert ndimage.label(mask, np.ones((3, 3)))[1] == 1, "one annotation is one component"
            decoded[mask] = VALUES.index(annotation["category_id"]) + 1
        np.testing.assert_array_equal(decoded, np.where(expected == 255, 0, expected))


def test_pseudo_labels_are_exported_as_they_are(seeded_run, tmp_path):
    with pytest.raises(ValueError, match=r"pseudo_labels are complete for 0 of 4.*jobs/make_pseudo_labels.py"):
        export_to(seeded_run, "png", tmp_path / "png", "pseudo_labels")
    with connect("in-process") as connection:
        launch_step(seeded_run, connection, "pseudo_labels")
    export_to(seeded_run, "png", tmp_path / "png", "pseudo_labels")
    exported = read_mask(str(tmp_path / "png" / "scene_0001.png"), VALUES)
    stored = read_mask(f"{seeded_run.uri}/pseudo_labels/labels/scene_0001.png", range(1, 6))
    np.testing.assert_array_equal(exported, stored)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools and numpy 2
def test_predictions_are_exported_as_they_are_and_of_the_predicted_splits_alone(predicted_run, tmp_path):
    for format in ("png", "coco"):
        export_to(predicted_run, format, tmp_path / format, "predictions")
    assert files(tmp_path / "png") == ["scene_0012.png", "scene_0013.png"]
    coco = COCO(str(tmp_path / "coco" / "annotations.json"))
    assert coco.getImgIds() == [13, 14]
    for image_id, name in zip((13, 14), files(tmp_path / "png"), strict=True):
        stored = np.asarray(Image.open(Path(predicted_run.uri, "predictions", "labels", name)))
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "png" / name)), stored)
        decoded = np.zeros_like(stored)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=[image_id])):
            decoded[coco.annToMask(annotation).astype(bool)] = annotation["category_id"]
        np.testing.assert_array_equal(decoded, stored)


def test_predictions_hold_the_classes_own_values(decided_run, tmp_path, monkeypatch):
    manifest = decided_run.manifest()
    rows = manifest.rows(0, manifest.num_images)
    write_manifest(decided_run.location / "manifest.parquet", rows, manifest.class_names, VALUES)
    with connect("in-process") as connection:
        launch_step(decided_run, connection, "predictions", restart=True)
    monkeypatch.setattr(finished, "outdated_in_words", lambda *_: "")  # the earlier steps are of the other values
    export_to(decided_run, "png", tmp_path / "png", "predictions")
    stored = decided_run.labels("predictions").read("scene_0012")
    assert len(np.unique(stored)) > 2
    expected = np.array([0, *VALUES])[stored]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "png" / "scene_0012.png")), expected)


def test_predictions_that_are_not_of_this_network_and_these_settings_are_refused(
    segmented_run, predicted_run, tmp_path
):
    with pytest.raises(ValueError, match=r"predictions are complete for 0 of 2 images.*predict_masks"):
        export_to(segmented_run, "png", tmp_path / "png", "predictions")
    with pytest.raises(ValueError, match=r"mirror: False -> True.*--restart predictions"):
        export_to(open_run(predicted_run.uri, None, ["predictions.mirror=true"]), "png", tmp_path, "predictions")
    with connect("in-process") as connection:
        launch_step(open_run(predicted_run.uri, None, ["segmenter.epochs=1"]), connection, "segmenter", restart=True)
    with pytest.raises(ValueError, match=r"its segmenter changed since.*--restart predictions"):
        export_to(predicted_run, "png", tmp_path / "png", "predictions")


def test_each_kind_of_export_has_a_folder_of_its_own(seeded_run):
    requests = {
        "png-seeds": ExportRequest("png"),
        "png-pseudo_labels": ExportRequest("png", "pseudo_labels"),
        "coco-seeds": ExportRequest("coco", shapes="masks"),
        "coco-seeds-polygons": ExportRequest("coco", "seeds", "polygons"),
        "cvat-seeds-val": ExportRequest("cvat", splits=("val",)),
        "npy-maps": ExportRequest("npy"),
        "cvat-seeds-val-min20": ExportRequest("cvat", splits=("val",), min_object_pixels=20),
        "png-seeds-without-corrected": ExportRequest("png", without_corrected=True),
    }
    for name, request in requests.items():
        assert export_folder(seeded_run, request.resolved(seeded_run), None).name == name


def test_an_export_before_there_are_masks_names_the_pipeline(finished_maps_run):
    with pytest.raises(NotYet, match=r"no finished masks yet, .* Run 'python jobs/run_pipeline.py --run .*' first"):
        ExportRequest("cvat").resolved(finished_maps_run)


def test_the_finest_finished_labels_are_the_default(seeded_run, predicted_run):
    assert finest_labels(seeded_run) == "seeds"
    with connect("in-process") as connection:
        launch_step(seeded_run, connection, "pseudo_labels")
    assert finest_labels(seeded_run) == "pseudo_labels"
    assert finest_labels(predicted_run) == "predictions"
    (predicted_run.location / "predictions" / "done" / "000003.json").delete()
    assert finest_labels(predicted_run) == "seeds"


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (
            ExportRequest("png", shapes="polygons"),
            "--shapes polygons does not go with --format png; this format has",
        ),
        (
            ExportRequest("yolo", shapes="masks"),
            "--shapes masks does not go with --format yolo; allowed: polygons or box",
        ),
        (
            ExportRequest("npy", min_object_pixels=20),
            "--min-object-pixels 20 does not go with --format npy, which has maps and no objects. Leave it out.",
        ),
        (
            ExportRequest("npy", without_corrected=True),
            "--without-corrected does not go with --format npy, which has maps and no masks. Leave it out.",
        ),
    ],
)
def test_flags_without_meaning_are_refused(request_, sentence):
    with pytest.raises(ValueError, match=sentence):
        request_.check()


def test_labels_for_a_format_of_maps_are_not_used_and_that_is_printed(finished_maps_run, capsys):
    request = ExportRequest("npy", "seeds").resolved(finished_maps_run)
    assert request == ExportRequest("npy").resolved(finished_maps_run)
    assert "--format npy exports the maps, so --labels seeds is not used" in capsys.readouterr().out


def test_only_the_splits_asked_for_are_exported(predicted_run, tmp_path):
    export_to(predicted_run, "png", tmp_path / "png", "seeds", splits=["val"])
    assert files(tmp_path / "png") == ["scene_0012.png", "scene_0013.png"]
    with pytest.raises(ValueError, match=r"--split gold: no such split; the manifest has train, val"):
        export_to(predicted_run, "png", tmp_path / "other", "seeds", splits=["gold"])


def test_images_without_masks_are_named_and_an_export_of_none_is_refused(predicted_run, tmp_path, capsys):
    export_to(predicted_run, "png", tmp_path / "png", "predictions")
    printed = capsys.readouterr().out
    assert "export: 12 of 14 images are not exported, because masks are predicted for the split val only." in printed
    with pytest.raises(ValueError, match=r"12 of 12 images are not exported.* --set predictions.splits=train,val --re"):
        export_to(predicted_run, "cvat", tmp_path / "cvat", "predictions", splits=["train"])
    assert not (tmp_path / "cvat").exists()
    export_to(predicted_run, "cvat", tmp_path / "val", "predictions", splits=["val"])
    assert "not exported" not in capsys.readouterr().out


def test_images_without_an_object_are_counted(painted_run, seeded_run, tmp_path, capsys):
    export_to(painted_run, "png", tmp_path / "full", "predictions")
    assert "no object" not in capsys.readouterr().out
    labels = painted_run.location / "predictions" / "labels"
    for names, sentence in (
        (["scene_0012"], "export: 1 of 2 images have no object"),
        (["scene_0013"], "export: WARNING: no object in any of the 2 images: every pixel is background or unknown."),
    ):
        for name in names:
            (labels / f"{name}.png").write_bytes(encode_label_png(np.zeros((120, 160), np.uint8)))
        export_to(painted_run, "png", tmp_path / names[0], "predictions")
        printed = capsys.readouterr().out
        assert sentence in printed and "Other labels" not in printed  # of a trial, no labels are good


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools and numpy 2
def test_objects_below_a_size_are_left_out_of_every_format_and_counted(painted_run, tmp_path, capsys):
    specks = np.zeros((120, 160), np.uint8)
    specks[10:20, 10:20], specks[50, 50:53], specks[80:84, 90], specks[15, 15] = 1, 2, 1, 3  # 99, 3, 4 and 1 pixels
    whole = np.zeros((120, 160), np.uint8)
    whole[10:20, 10:20], whole[15, 15], whole[80:84, 90] = 1, 0, 1
    labels = painted_run.location / "predictions" / "labels"
    for name, content in (("scene_0012", specks), ("scene_0013", np.zeros_like(specks))):
        (labels / f"{name}.png").write_bytes(encode_label_png(content))
    export_to(painted_run, "png", tmp_path / "counted", "predictions")
    sentence = (
        "export: 2 images with 4 objects; 4 of them have fewer than 100 pixels, and --min-object-pixels 100 leaves"
    )
    assert sentence in capsys.readouterr().out
    export_to(painted_run, "png", tmp_path / "png", "predictions", min_pixels=4)
    assert "export: 2 objects of fewer than 4 pixels left out; they count as background" in capsys.readouterr().out
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "png/scene_0012.png")), whole)
    export_to(painted_run, "coco", tmp_path / "coco", "predictions", min_pixels=4)
    assert sorted(each["area"] for each in COCO(str(tmp_path / "coco/annotations.json")).anns.values()) == [4, 99]
    export_to(painted_run, "cvat", tmp_path / "cvat", "predictions", min_pixels=4)
    assert (tmp_path / "cvat/annotations.xml").read_text().count("<mask ") == 2
    capsys.readouterr()
    export_to(painted_run, "cvat", tmp_path / "all", "predictions")
    assert "left out" not in capsys.readouterr().out
    assert (tmp_path / "all/annotations.xml").read_text().count("<mask ") == 4
    with pytest.raises(ValueError, match=r"min_object_pixels: 4 -> .*--restart ficklenet_export"):
        export_to(painted_run, "cvat", tmp_path / "cvat", "predictions", min_pixels=5)


def test_interrupted_export_writes_only_what_is_missing(finished_maps_run, tmp_path, capsys):
    export_to(finished_maps_run, "npy", tmp_path / "npy")
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "npy").glob("*.npy")}
    (tmp_path / "npy" / "ficklenet_export" / "done" / "000001.json").unlink()
    capsys.readouterr()
    export_to(finished_maps_run, "npy", tmp_path / "npy")
    after = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "npy").glob("*.npy")}
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {f"scene_{number:04d}.npy" for number in range(4, 8)}
    with connect("in-process") as connection:
        launch_step(finished_maps_run, connection, "seeds")
    with pytest.raises(ValueError, match=r"format: npy -> png.*--restart ficklenet_export"):
        export_to(finished_maps_run, "png", tmp_path / "npy")


def test_class_values_beyond_a_palette_are_refused(map_images, drawn_images, tmp_path):
    run = map_images(drawn_images[:2], class_values=(1, 2, 3, 4, 255))
    with connect("in-process") as connection:
        launch_step(run, connection, "seeds")
    with pytest.raises(ValueError, match="255 means ignore"):
        export_to(run, "png", tmp_path / "png")


def test_labels_of_long_class_lists_survive_a_png(tmp_path):
    labels = np.array([[0, 300], [65535, 255]], np.uint16)
    (tmp_path / "long.png").write_bytes(encode_label_png(labels))
    values = list(range(1, 301))
    np.testing.assert_array_equal(read_mask(str(tmp_path / "long.png"), values), labels)


def test_files_that_mix_training_and_validation_images_say_so(painted_run, tmp_path, capsys):
    for format in ("coco", "png"):
        export_to(painted_run, format, tmp_path / format, labels="seeds")
        printed = capsys.readouterr().out
        assert "the files do not say which images are of train and which of val" in printed
        assert "such as --split train" in printed
    for format, splits in (("png", ["val"]), ("yolo", []), ("cityscapes", [])):
        export_to(painted_run, format, tmp_path / f"{format}-{len(splits)}", labels="seeds", splits=splits)
        assert "which images are of" not in capsys.readouterr().out


def test_yolo_s_lists_follow_the_run_s_splits(painted_run, tmp_path, capsys):
    export_to(painted_run, "yolo", tmp_path / "yolo", labels="seeds")
    assert len((tmp_path / "yolo/train.txt").read_text().splitlines()) == 12
    validation = (tmp_path / "yolo/val.txt").read_text().splitlines()
    assert validation == ["./images/scene_0012.png", "./images/scene_0013.png"]
    assert "12 images for training, 2 images for validation" in capsys.readouterr().out
    export_to(painted_run, "yolo", tmp_path / "one", labels="seeds", splits=["train"])
    assert "WARNING: there is no validation set" in capsys.readouterr().out
    other = open_run(painted_run.uri, None, ["data.val_splits=train"])
    with pytest.raises(ValueError, match="roles"):
        export_to(other, "yolo", tmp_path / "yolo", labels="seeds")
