"""A tiny prepared and trained run on drawn scenes, made once and copied for each test."""

import hashlib
import json
import os
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from pycocotools import mask as run_lengths

from cluster.connect import connect
from ficklenet.drawing import DRAWN_CLASS_NAMES
from ficklenet.resampling import resize_square
from ficklenet.segmenter import pack_segmenter
from ficklenet.transforms import normalize
from jobs.cli.launch import launch_step
from jobs.preparation import demo
from jobs.preparation.prepare import prepare
from jobs.run.directory import Run, open_run
from jobs.run.training_record import read_complete
from jobs.steps.networks import load_segmenter
from storage.images import read_image, read_mask
from storage.label_folder import encode_label_png
from storage.location import Location
from storage.receipts import Receipt
from storage.sources import SourceImage

NUM_IMAGES = 14  # units of 4: the last one is short
SETTINGS = {
    "unit_size": 4,
    "images": {"input_size": 65},
    "classifier": {"backbone": "small", "weights": "none", "kernel_size": 5, "epochs": 1, "min_steps": 1},
    "data": {"train_splits": ["train"]},
    "maps": {"num_samples": 8},
    "segmenter": {
        "backbone": "small",
        "weights": "none",
        "dilations": [2],
        "epochs": 2,
        "batch_size": 4,
        "min_steps": 1,
    },
    "cluster": {"address": "in-process"},
}


@pytest.fixture(scope="session")
def drawn_images(tmp_path_factory):
    """The source's images: the last two are the validation split."""
    folder = Location(str(tmp_path_factory.mktemp("data")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "NUM_TRAINING", NUM_IMAGES - 2)
        patch.setattr(demo, "NUM_VALIDATION", 2)
        return demo.draw_data_set(folder)


@pytest.fixture
def coco_folder(drawn_images, tmp_path) -> Path:
    """The drawn scenes in COCO's layout, ids 10, 20, ... as categories; the last training image has no annotations."""
    folder = tmp_path / "coco"
    (folder / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (folder / split).mkdir()
        images, annotations = [], []
        scenes = [image for image in drawn_images if image.split == split]
        for number, image in enumerate(scenes):
            shutil.copy(image.uri, folder / split)
            truth = read_mask(image.mask_uri, range(1, 6))
            images.append(
                {"id": number, "file_name": Path(image.uri).name, "height": len(truth), "width": len(truth[0])}
            )
            is_last = split == "train" and number == len(scenes) - 1
            for label in () if is_last else set(np.unique(truth)) - {0, 255}:
                outline = run_lengths.encode(np.asfortranarray(truth == label).astype(np.uint8))
                outline["counts"] = outline["counts"].decode()
                annotations.append({"image_id": number, "category_id": 10 * int(label), "segmentation": outline})
        categories = [{"id": 10 * number, "name": name} for number, name in enumerate(DRAWN_CLASS_NAMES, start=1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session")
def trained_run_folder(drawn_images, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    run = open_run(str(folder), defaults=SETTINGS)
    prepare(run, drawn_images, DRAWN_CLASS_NAMES)
    with connect("in-process") as connection:
        launch_step(run, connection, "classifier")
    return folder


@pytest.fixture
def trained_run(trained_run_folder, tmp_path) -> Run:
    """A copy of the trained run, in a folder of the test's own."""
    shutil.copytree(trained_run_folder, tmp_path / "run")
    return open_run(str(tmp_path / "run"))


@pytest.fixture(scope="module")
def local_ray(s3_environment):
    """A connection to an own Ray, CPUs over-declared; other tests of the module may share it, those on S3 included."""
    with connect("local", num_cpus=4) as connection:
        yield connection


@pytest.fixture(scope="session")
def mapped_run_folder(trained_run_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mapped") / "run"
    shutil.copytree(trained_run_folder, folder)
    with connect("in-process") as connection:
        launch_step(open_run(str(folder)), connection, "maps")
    return folder


@pytest.fixture
def finished_maps_run(mapped_run_folder, tmp_path) -> Run:
    """A copy of a run with finished maps, in a folder of the test's own."""
    shutil.copytree(mapped_run_folder, tmp_path / "mapped")
    return open_run(str(tmp_path / "mapped"))


@pytest.fixture(scope="session")
def seeded_run_folder(mapped_run_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("seeded") / "run"
    shutil.copytree(mapped_run_folder, folder)
    with connect("in-process") as connection:
        launch_step(open_run(str(folder)), connection, "seeds")
    return folder


@pytest.fixture
def seeded_run(seeded_run_folder, tmp_path) -> Run:
    """A copy of a run with seeds, in a folder of the test's own: 12 training images on a grid of 9 x 9."""
    shutil.copytree(seeded_run_folder, tmp_path / "seeded")
    return open_run(str(tmp_path / "seeded"))


@pytest.fixture(scope="session")
def segmented_run_folder(seeded_run_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("segmented") / "run"
    shutil.copytree(seeded_run_folder, folder)
    with connect("in-process") as connection:
        launch_step(open_run(str(folder)), connection, "segmenter")
    return folder


@pytest.fixture
def segmented_run(segmented_run_folder, tmp_path) -> Run:
    """A copy of a run with a trained segmentation network, in a folder of the test's own."""
    shutil.copytree(segmented_run_folder, tmp_path / "segmented")
    return open_run(str(tmp_path / "segmented"))


@pytest.fixture(scope="session")
def predicted_run_folder(segmented_run_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("predicted") / "run"
    shutil.copytree(segmented_run_folder, folder)
    with connect("in-process") as connection:
        launch_step(open_run(str(folder)), connection, "predictions")
    return folder


@pytest.fixture
def predicted_run(predicted_run_folder, tmp_path) -> Run:
    """A copy of a run with predictions of its two validation images, in a folder of the test's own."""
    shutil.copytree(predicted_run_folder, tmp_path / "predicted")
    return open_run(str(tmp_path / "predicted"))


@pytest.fixture
def painted_run(predicted_run) -> Run:
    """A run whose predictions have several classes, a hole and touching corners: the tiny network predicts few."""
    for number, name in enumerate(("scene_0012", "scene_0013")):
        labels = np.zeros((120, 160), np.uint8)
        labels[10:60, 20:90] = 1 + number
        labels[20:30, 30:40] = 0
        labels[60:80, 90:110] = 1 + number
        labels[90:100, :10] = 5
        Path(predicted_run.uri, "predictions", "labels", f"{name}.png").write_bytes(encode_label_png(labels))
    kept = ("unit", "start", "stop", "seconds", "finished", "start_id")
    for file in Path(predicted_run.uri, "predictions", "done").iterdir():  # they hold the checksums of other pixels
        content = json.loads(file.read_text())
        file.unlink()
        predicted_run.step("predictions").write_receipt(Receipt(**{key: content[key] for key in kept}))
    return predicted_run


@pytest.fixture
def decided_run(segmented_run) -> Run:
    """A run with predictions of a network that was changed so that every label wins somewhere."""
    model = load_segmenter(segmented_run)
    last = [layer for layer in model.modules() if isinstance(layer, torch.nn.Conv2d)][-1]
    images = [resize_square(segmented_run_image(segmented_run, name), 65) for name in ("scene_0012", "scene_0013")]
    with torch.no_grad():
        logits = model(normalize(torch.from_numpy(np.stack(images))))
        last.bias -= logits.mean((0, 2, 3))
        factor = 3 / logits.std()
        last.weight *= factor
        last.bias *= factor
    data, folder = pack_segmenter(model), segmented_run.location / "segmenter"
    (folder / "model.pt").write_bytes(data)
    complete = read_complete(folder) | {"sha256": hashlib.sha256(data).hexdigest()}
    (folder / "complete.json").write_bytes(json.dumps(complete).encode())
    with connect("in-process") as connection:
        launch_step(segmented_run, connection, "predictions")
    return segmented_run


def segmented_run_image(run: Run, image_id: str) -> np.ndarray:
    row = run.manifest().index_of(image_id)
    return read_image(run.manifest().rows(row, row + 1)[0].uri)


@pytest.fixture
def s3_run(s3_environment, mapped_run_folder, drawn_images) -> Run:
    """A prepared and trained run on S3, its images too; without maps, and with no cluster configured."""
    place = Location(f"s3://test-bucket/run-{uuid.uuid4().hex[:8]}")
    images = []
    for image in drawn_images:
        copy = place / "images" / image.uri.rsplit("/", 1)[1]
        copy.write_bytes(Path(image.uri).read_bytes())
        images.append(replace(image, uri=copy.uri))
    local = open_run(str(mapped_run_folder))
    run = open_run(f"{place}/run", defaults=local.config.model_dump(mode="json", exclude={"cluster"}))
    prepare(run, images, DRAWN_CLASS_NAMES)
    for name in ("model.pt", "complete.json"):
        (run.location / "classifier" / name).write_bytes((local.location / "classifier" / name).read_bytes())
    return run


@pytest.fixture
def map_images(trained_run_folder, tmp_path):
    """A function that prepares a run of other images and makes its maps by the trained classifier."""

    def make(images: Sequence[SourceImage], *assignments: str, class_values: tuple[int, ...] | None = None) -> Run:
        run = open_run(str(tmp_path / "other"), None, assignments, defaults=SETTINGS)
        prepare(run, images, DRAWN_CLASS_NAMES, class_values)
        (tmp_path / "other" / "classifier").symlink_to(trained_run_folder / "classifier")
        with connect("in-process") as connection:
            launch_step(run, connection, "maps")
        return run

    return make


@pytest.fixture
def kill_at_checkpoint():
    """A function that sends SIGKILL to the training workers of this process's Ray as soon as a restarted step has a
    checkpoint; it returns at once, with a list that will hold their process ids."""

    def start(folder: Path) -> list[int]:
        killed: list[int] = []

        def kill() -> None:
            while not list(folder.glob("start-2-*/checkpoints/checkpoint_*/checkpoint.bin")):
                time.sleep(0.02)
            for process in psutil.Process().children(recursive=True):
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    killed.append(process.pid)
                    os.kill(process.pid, signal.SIGKILL)

        threading.Thread(target=kill, daemon=True).start()
        return killed

    return start
