"""Training the head on a frozen backbone's kept features: each view is decoded once, and nothing else changes."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.connect import connect
from ficklenet.batches import batch_indices, keyed_generator
from ficklenet.classifier_training import make_optimizer, set_learning_rate
from ficklenet.drawing import DRAWN_CLASS_NAMES
from ficklenet.frozen_features import FeatureBatch, head_step
from ficklenet.masks import mask_key
from ficklenet.resampling import resize_square
from ficklenet.transforms import normalize
from jobs.cli.launch import launch_step
from jobs.preparation.prepare import prepare
from jobs.run.directory import Run, open_run
from jobs.run.training_record import read_epochs
from jobs.steps.networks import load_classifier
from jobs.training import frozen_training, kept_features, training_data
from jobs.training.classifier_worker import new_classifier
from jobs.training.kept_features import KeptFeatures
from storage.images import read_image

EPOCHS = 4


@pytest.fixture
def frozen_run(trained_run, drawn_images, tmp_path) -> Run:
    """A prepared run, 4 epochs of 2 steps to train, on the backbone of another run."""
    torch.save(load_classifier(trained_run).backbone.state_dict(), tmp_path / "backbone.pt")
    settings = trained_run.config.model_dump()
    settings["classifier"] |= {
        "epochs": EPOCHS,
        "batch_size": 5,
        "weights": str(tmp_path / "backbone.pt"),
        "frozen_stages": "all",
    }
    run = open_run(str(tmp_path / "frozen"), defaults=settings)
    prepare(run, drawn_images, DRAWN_CLASS_NAMES)
    return run


def train(run: Run, *assignments: str, restart: bool = False, dry_run: bool = False) -> dict[str, torch.Tensor]:
    """The weights of the trained classifier."""
    with connect("in-process") as connection:
        launch_step(open_run(run.uri, None, assignments), connection, "classifier", restart=restart, dry_run=dry_run)
    return {} if dry_run else load_classifier(run).state_dict()


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The images that are decoded from now on."""
    found: list[str] = []

    def read(uri: str, **limits: int) -> np.ndarray:
        found.append(uri)
        return read_image(uri, **limits)

    monkeypatch.setattr(training_data, "read_image", read)
    return found


def reference(run: Run) -> dict[str, torch.Tensor]:
    """What the training comes to, without anything kept."""
    torch.manual_seed(run.config.seed)
    classifier = new_classifier(run.config, DRAWN_CLASS_NAMES)
    optimizer = make_optimizer(classifier, learning_rate=1e-3)
    set_learning_rate(optimizer, 1e-3)
    rows = [row for row in run.manifest().iter_rows() if row.split == "train"]
    for step in range(EPOCHS * 2):
        chosen = [rows[number] for number in batch_indices(step, len(rows), 5, 0)]
        pixels = []
        for row in chosen:
            image = resize_square(read_image(row.uri, 10**6), 65)
            is_mirrored = keyed_generator(0, "mirror", step // 2, row.image_id).random() < 0.5
            pixels.append(image[..., ::-1].copy() if is_mirrored else image)
        with torch.no_grad():
            features = classifier.backbone(normalize(torch.from_numpy(np.stack(pixels)))).half()
        targets = torch.stack([torch.tensor([float(label in row.labels) for label in range(5)]) for row in chosen])
        batch = FeatureBatch(features, targets, [mask_key(0, row.image_id) for row in chosen])
        head_step(classifier.head, optimizer, batch, step // 2, drop_rate=0.9)
    return classifier.state_dict()


def test_each_view_is_decoded_once_and_the_head_learns_what_it_learns_without_keeping(frozen_run, decoded):
    found, expected = train(frozen_run), reference(frozen_run)
    counts = Counter(decoded)
    rows = list(frozen_run.manifest().iter_rows())
    assert max(counts[row.uri] for row in rows if row.split == "train") == 2  # itself and its mirror image
    assert [counts[row.uri] for row in rows if row.split == "val"] == [1, 1]  # in 4 validations
    assert len(decoded) < EPOCHS * 10
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)
    assert not torch.equal(found["head.weight"], new_classifier(frozen_run.config, DRAWN_CLASS_NAMES).head.weight)
    assert json.loads((Path(frozen_run.uri) / "classifier" / "complete.json").read_text())["metrics"]["val_map"] >= 0


@pytest.mark.parametrize("places", ["1e-9", "3e-5"])  # none, and two
def test_without_room_features_are_computed_again_and_the_weights_are_the_same(frozen_run, decoded, places):
    expected = train(frozen_run)
    num_decoded = len(decoded)
    found = train(frozen_run, f"classifier.kept_features_gb={places}", restart=True)
    assert len(decoded) - num_decoded > num_decoded
    for name, value in found.items():
        assert torch.equal(value, expected[name])


class Killed(BaseException):
    pass


def test_an_interrupted_training_continues_to_the_same_weights(frozen_run, monkeypatch):
    expected, steps, whole_step = train(frozen_run), [], frozen_training.head_step

    def interrupted(*arguments, **options):
        steps.append(arguments[3])
        if len(steps) == 6:  # in the third epoch
            raise Killed
        return whole_step(*arguments, **options)

    monkeypatch.setattr(frozen_training, "head_step", interrupted)
    with pytest.raises(Killed):
        train(frozen_run, restart=True)
    found = train(frozen_run)
    assert steps[6:] == [2, 2, 3, 3]
    for name, value in found.items():
        assert torch.equal(value, expected[name])


def test_an_unreadable_image_weighs_nothing_and_is_counted(frozen_run, drawn_images, tmp_path, capsys):
    images = [replace(drawn_images[0], uri="/nowhere.png"), *drawn_images[1:]]
    run = open_run(str(tmp_path / "gap"), defaults=frozen_run.config.model_dump())
    prepare(run, images, DRAWN_CLASS_NAMES)
    assert all(torch.isfinite(value).all() for value in train(run).values())
    assert capsys.readouterr().out.splitlines()[-1] == "classifier: skipped 1: missing: no such file (scene_0000)"


def test_the_cost_is_said_before_it_starts_and_in_a_dry_run(frozen_run, capsys):
    train(frozen_run, dry_run=True)
    sentence = "each image and its mirror image run through it once: up to 26 passes"
    assert f"  the backbone is frozen, so {sentence}" in capsys.readouterr().out
    train(frozen_run)
    printed = capsys.readouterr().out
    assert f"classifier: the backbone is frozen, so {sentence}" in printed
    assert "classifier.kept_features_gb = 40" in printed


def test_a_training_on_whole_images_is_another_than_one_on_crops(frozen_run):
    train(frozen_run)
    with pytest.raises(ValueError, match=r"images_are: whole -> absent"):
        train(frozen_run, "classifier.frozen_stages=3")
    with pytest.raises(ValueError, match="frozen stages: 5 given; this backbone has 0 to 4"):
        train(frozen_run, "classifier.frozen_stages=5", restart=True)


def test_kept_features_come_back_as_they_were_and_leave_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    kept = KeptFeatures((2, 3, 3), 5, most_bytes=2 * 36)
    values = np.arange(36, dtype=np.float16).reshape(2, 2, 3, 3)
    assert [kept.reserve(key) for key in ("a", "b", "c", "a", "c")] == [True, True, True, False, True]
    kept.put("b", values[1])
    kept.put("a", values[0])
    kept.put("c", values[0])  # has no place
    np.testing.assert_array_equal(kept.get("a"), values[0])
    np.testing.assert_array_equal(kept.get("b"), values[1])
    assert kept.num_places == 2 and list(tmp_path.iterdir()) == []


def test_the_first_passes_print_their_progress_and_are_timed_apart(frozen_run, monkeypatch, capsys):
    monkeypatch.setattr(kept_features, "LOG_INTERVAL", 0.0)
    train(frozen_run)
    lines = [line for line in capsys.readouterr().out.splitlines() if "through the frozen backbone" in line]
    assert lines[0].startswith("classifier: 5 of up to 26 passes through the frozen backbone, about ")
    assert len(lines) > 2 and lines[0].endswith(" left for these")
    first, *_, last = read_epochs(frozen_run.step("classifier").data())
    assert 0 <= last["backbone_seconds"] < first["backbone_seconds"] < first["seconds"]
