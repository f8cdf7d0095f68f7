"""Exports read by FiftyOne and Ultralytics themselves, where these packages are installed.

They are too large for the development extra, and Ultralytics is under the AGPL, so install them into an environment of
their own, beside the project (versions seen: fiftyone 1.22.1, ultralytics 8.4.190):

    pip install -e '.[dev]' fiftyone ultralytics
    python -m pytest tests/jobs/test_other_tools.py

FiftyOne starts a MongoDB of its own, or uses the one at FIFTYONE_DATABASE_URI.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as run_lengths

from jobs import export_labels, import_masks
from jobs.run.directory import Run
from storage.images import read_mask
from storage.manifest import Manifest

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of these packages are not ours
NAMES = ("scene_0012", "scene_0013")


@pytest.fixture(scope="module")
def fiftyone(tmp_path_factory) -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIFTYONE_DO_NOT_TRACK", "true")
        patch.setenv("FIFTYONE_DATABASE_VALIDATION", "false")
        patch.setenv("FIFTYONE_DATABASE_DIR", str(tmp_path_factory.mktemp("database")))
        yield pytest.importorskip("fiftyone", reason="fiftyone is not installed")


@pytest.fixture
def ultralytics(tmp_path, monkeypatch) -> ModuleType:
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path / "settings"))
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    pytest.importorskip("ultralytics", reason="ultralytics is not installed")
    return pytest.importorskip("ultralytics.data")


def export(run: Run, folder: Path, *flags: str) -> Path:
    """The labels of the two painted images, with the images beside them, as a data set of the tool has them."""
    export_labels.main(["--run", run.uri, "--out", str(folder), *flags])
    (folder / "images").mkdir()
    for row in run.manifest().iter_rows():
        if row.image_id in NAMES:
            shutil.copy(row.uri, folder / "images" / f"{row.image_id}.png")
    return folder


def painted(run: Run, name: str) -> np.ndarray:
    return run.labels("predictions").read(name)


# FiftyOne


def pasted(sample: Any, names: tuple[str, ...]) -> np.ndarray:
    """FiftyOne's masks of objects, each at its box."""
    labels = np.zeros((120, 160), np.uint8)
    for each in sample.ground_truth.detections:
        left, top, width, height = np.rint(np.array(each.bounding_box) * (160, 120, 160, 120)).astype(int)
        labels[top : top + height, left : left + width][each.mask > 0] = names.index(each.label) + 1
    return labels


@pytest.mark.parametrize("shapes", ["masks", "polygons"])
def test_fiftyone_reads_every_pixel_and_what_it_writes_comes_back(painted_run, tmp_path, fiftyone, shapes):
    folder = export(painted_run, tmp_path / "out", "--format", "coco", "--shapes", shapes)
    kind, names = fiftyone.types.COCODetectionDataset, painted_run.manifest().class_names
    dataset = fiftyone.Dataset.from_dir(
        dataset_type=kind,
        data_path=str(folder / "images"),
        labels_path=str(folder / "annotations.json"),
        label_types="segmentations",
    )
    assert {Path(sample.filepath).stem for sample in dataset} == set(NAMES)
    for sample in dataset:
        np.testing.assert_array_equal(pasted(sample, names), painted(painted_run, Path(sample.filepath).stem))
        for each in sample.ground_truth.detections:
            each["iscrowd"] = 1  # FiftyOne then writes run lengths; its polygons are simplified and lose holes
        sample.save()

    written = tmp_path / "labels.json"
    dataset.export(dataset_type=kind, labels_path=str(written), label_field="ground_truth", export_media=False)
    dataset.delete()
    import_masks.main(["--run", painted_run.uri, "--masks", str(written), "--keep-unchanged"])
    Manifest.forget()
    manifest = painted_run.manifest()
    for row in manifest.iter_rows():
        if row.image_id in NAMES:
            labels, found = painted(painted_run, row.image_id), read_mask(row.mask_uri, manifest.class_values)
            shown = (labels > 0) | (found > 0)
            assert (labels == found)[shown].mean() > 0.95  # FiftyOne rounds some boxes down by a pixel


def test_fiftyone_reads_grey_label_images(painted_run, tmp_path, fiftyone):
    folder = export(painted_run, tmp_path / "out", "--format", "cityscapes")
    (tmp_path / "masks").mkdir()
    for name in NAMES:
        shutil.copy(
            folder / "gtFine" / "val" / "all" / f"{name}_gtFine_labelIds.png", tmp_path / "masks" / f"{name}.png"
        )
    dataset = fiftyone.Dataset.from_dir(
        dataset_type=fiftyone.types.ImageSegmentationDirectory,
        data_path=str(folder / "images"),
        labels_path=str(tmp_path / "masks"),
    )
    for sample in dataset:
        np.testing.assert_array_equal(sample.ground_truth.get_mask(), painted(painted_run, Path(sample.filepath).stem))
    assert len(dataset) == 2
    dataset.delete()


# Ultralytics


def read_by(ultralytics: ModuleType, folder: Path, task: str) -> dict[str, dict[str, Any]]:
    """Labels by image, as Ultralytics reads them for a training. The painted images are all for validation."""
    place = folder / "data.yaml"
    place.write_text(f"train: val.txt\n{place.read_text()}")  # it refuses a file without training images
    data = ultralytics.utils.check_det_dataset(str(place))
    dataset = ultralytics.YOLODataset(img_path=data["val"], data=data, task=task, augment=False)
    return {Path(each["im_file"]).stem: each for each in dataset.labels}


def test_ultralytics_reads_every_polygon(painted_run, tmp_path, ultralytics):
    folder = export(painted_run, tmp_path / "out", "--format", "yolo")
    read = read_by(ultralytics, folder, "segment")
    assert set(read) == set(NAMES)
    for name, found in read.items():
        labels, filled, drawn = painted(painted_run, name), np.zeros((120, 160), int), np.zeros((120, 160), int)
        assert found["shape"] == (120, 160) and len(found["segments"]) == len(found["cls"]) > 1
        for (number,), corners in zip(found["cls"], found["segments"], strict=True):
            outline = (corners.astype(float) * (160, 120)).reshape(1, -1)
            runs = run_lengths.merge(run_lengths.frPyObjects(outline.tolist(), 120, 160))
            filled[run_lengths.decode(runs) > 0] = number + 1
            drawn[ultralytics.utils.polygon2mask((120, 160), [np.rint(outline[0])]) > 0] = number + 1
        np.testing.assert_array_equal(filled, labels)
        shown = (labels > 0) | (drawn > 0)
        assert 0.9 < (labels == drawn)[shown].mean() < 1  # its training also fills the pixels that an outline touches


def test_ultralytics_validates_on_other_images_than_it_trains_on(painted_run, tmp_path, ultralytics):
    folder = tmp_path / "out"
    export_labels.main(["--run", painted_run.uri, "--out", str(folder), "--format", "yolo", "--labels", "seeds"])
    (folder / "images").mkdir()
    rows = list(painted_run.manifest().iter_rows())
    for row in rows:
        shutil.copy(row.uri, folder / "images" / f"{row.image_id}.png")
    data = ultralytics.utils.check_det_dataset(str(folder / "data.yaml"))
    for split in ("train", "val"):
        dataset = ultralytics.YOLODataset(img_path=data[split], data=data, task="segment", augment=False)
        expected = {row.image_id for row in rows if row.split == split}
        assert {Path(each["im_file"]).stem for each in dataset.labels} == expected


def test_ultralytics_reads_every_box(painted_run, tmp_path, ultralytics):
    folder = export(painted_run, tmp_path / "out", "--format", "yolo", "--shapes", "boxes")
    export_labels.main(["--run", painted_run.uri, "--out", str(tmp_path / "coco"), "--format", "coco"])
    content = json.loads((tmp_path / "coco" / "annotations.json").read_text())
    stems = {each["id"]: Path(each["file_name"]).stem for each in content["images"]}
    for name, found in read_by(ultralytics, folder, "detect").items():
        expected = sorted(each["bbox"] for each in content["annotations"] if stems[each["image_id"]] == name)
        boxes = found["bboxes"] * (160, 120, 160, 120)
        corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], 1)
        np.testing.assert_allclose(sorted(corners.tolist()), expected, atol=1e-3)
