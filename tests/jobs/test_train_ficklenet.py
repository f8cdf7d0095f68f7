"""Training on a tiny run: what it leaves, resume, refusals."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.connect import connect
from ficklenet.drawing import DRAWN_CLASS_NAMES
from jobs import classifier_worker
from jobs.prepare_dataset import prepare
from jobs.run import Run, open_run
from jobs.train_ficklenet import train_classifier
from jobs.trained_classifier import load_classifier, require_classifier


def train(run: Run, *assignments: str, restart: bool = False) -> Run:
    changed = open_run(run.uri, None, assignments)
    with connect("in-process") as connection:
        train_classifier(changed, connection, restart=restart)
    return changed


@pytest.fixture
def fresh_run(trained_run, drawn_images, tmp_path) -> Run:
    """A prepared run, three epochs to train."""
    settings = trained_run.config.model_dump()
    settings["classifier"]["epochs"] = 3
    run = open_run(str(tmp_path / "fresh"), defaults=settings)
    prepare(run, drawn_images, DRAWN_CLASS_NAMES)
    return run


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_classifier(run)[0].state_dict()


def test_finished_training_leaves_a_classifier_that_knows_its_classes(fresh_run):
    train(fresh_run)
    trained = require_classifier(fresh_run, DRAWN_CLASS_NAMES)
    assert trained.spec.class_names == DRAWN_CLASS_NAMES
    assert trained.spec.input_size == 65
    assert 0 <= trained.metrics["val_map"] <= 1
    assert np.isfinite(trained.metrics["loss"])


def test_finished_training_says_so_and_does_nothing(fresh_run, capsys):
    train(fresh_run)
    before = (Path(fresh_run.uri) / "classifier" / "model.pt").stat().st_mtime_ns
    train(fresh_run)
    assert "already trained" in capsys.readouterr().out
    assert (Path(fresh_run.uri) / "classifier" / "model.pt").stat().st_mtime_ns == before


def test_interrupted_training_continues_to_the_same_weights(fresh_run, monkeypatch):
    train(fresh_run)
    expected = weights(fresh_run)

    class Killed(BaseException):
        pass

    epochs = []
    whole_epoch = classifier_worker._train_epoch

    def interrupted(*arguments):
        epoch = arguments[4]
        epochs.append(epoch)
        if epoch == 2 and len(epochs) == 3:
            raise Killed
        return whole_epoch(*arguments)

    monkeypatch.setattr(classifier_worker, "_train_epoch", interrupted)
    with pytest.raises(Killed):
        train(fresh_run, restart=True)
    assert not (Path(fresh_run.uri) / "classifier" / "complete.json").exists()
    train(fresh_run)
    assert epochs == [0, 1, 2, 2]  # the finished epochs are not trained again
    for name, value in weights(fresh_run).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


def test_changed_setting_is_refused_before_training(fresh_run):
    train(fresh_run)
    with pytest.raises(ValueError, match=r"classifier\.epochs: 3 -> 4.*--restart classifier"):
        train(fresh_run, "classifier.epochs=4")


def test_diverging_training_stops_with_a_sentence_and_no_classifier(fresh_run):
    with pytest.raises(ValueError, match=r"loss became .* Lower classifier\.learning_rate"):
        train(fresh_run, "classifier.learning_rate=1e30")
    with pytest.raises(ValueError, match="no trained classifier"):
        require_classifier(fresh_run, DRAWN_CLASS_NAMES)


def test_unreadable_image_is_absent_from_training(fresh_run, drawn_images, trained_run, tmp_path):
    images = [replace(drawn_images[0], uri="/nowhere.png"), *drawn_images[1:]]
    run = open_run(str(tmp_path / "gap"), defaults=fresh_run.config.model_dump())
    prepare(run, images, DRAWN_CLASS_NAMES)
    train(run)
    assert np.isfinite(require_classifier(run, DRAWN_CLASS_NAMES).metrics["loss"])


def test_weights_that_are_no_weights_are_refused(fresh_run, tmp_path):
    (tmp_path / "text.pt").write_text("no weights")
    for name, sentence in (
        (str(tmp_path / "text.pt"), "not a PyTorch state dict"),
        ("/nowhere.pt", "no file /nowhere.pt"),
    ):
        with pytest.raises(ValueError, match=sentence):
            train(fresh_run, f"classifier.weights={name}", restart=True)


def test_split_without_labelled_images_is_refused(fresh_run):
    with pytest.raises(ValueError, match=r"no labelled image in the training splits \['tarin'\].*'train', 'val'"):
        train(fresh_run, "classifier.train_splits=tarin")


def test_classifier_of_another_class_list_is_refused(fresh_run):
    train(fresh_run)
    with pytest.raises(ValueError, match="the classifier knows"):
        require_classifier(fresh_run, ("cat", "dog"))


def test_masks_are_never_read(fresh_run, drawn_images, tmp_path):
    images = [replace(image, mask_uri="/nowhere/mask.png") for image in drawn_images]
    run = open_run(str(tmp_path / "maskless"), defaults=fresh_run.config.model_dump())
    prepare(run, images, DRAWN_CLASS_NAMES)
    train(run)
    record = json.loads((Path(run.uri) / "classifier" / "complete.json").read_text())
    train(fresh_run)
    other = json.loads((Path(fresh_run.uri) / "classifier" / "complete.json").read_text())
    assert record["metrics"]["loss"] == other["metrics"]["loss"]


@pytest.mark.timeout(400)
def test_two_workers_train_what_one_trains(fresh_run, local_ray):
    train(fresh_run, "classifier.epochs=2", restart=True)
    expected = weights(fresh_run)
    two = open_run(fresh_run.uri, None, ["classifier.epochs=2", "cluster.training_workers=2"])
    train_classifier(two, local_ray, restart=True)
    for name, value in weights(two).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)
