"""Training on a tiny run: what it leaves, resume, refusals."""

import json
import runpy
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.connect import connect
from cluster.errors import ClusterError
from ficklenet.classifier import unpack_classifier
from ficklenet.drawing import DRAWN_CLASS_NAMES
from ficklenet.model_file import model_record
from jobs import verify
from jobs.cli.launch import launch_step
from jobs.preparation.prepare import prepare
from jobs.reporting.run_status import run_status
from jobs.run.directory import Run, open_run
from jobs.run.training_record import read_complete, read_epochs
from jobs.steps import waiting
from jobs.steps.networks import load_classifier, require_network
from jobs.steps.states import run_state
from jobs.training import classifier_worker, one_at_a_time, training_job
from jobs.training.training_log import TrainingLog
from storage.heartbeat import beating
from storage.images import read_image
from storage.steps import Skipped

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def train(run: Run, *assignments: str, restart: bool = False) -> Run:
    changed = open_run(run.uri, None, assignments)
    with connect("in-process") as connection:
        launch_step(changed, connection, "classifier", restart=restart)
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
    return load_classifier(run).state_dict()


def metrics(run: Run) -> list[dict]:
    return read_epochs(run.data("classifier"))


def record(run: Run) -> dict:
    return read_complete(run.data("classifier")) or {}


def test_finished_training_leaves_a_classifier_that_knows_its_classes(fresh_run):
    train(fresh_run)
    trained = require_network(fresh_run, "classifier", "test")
    assert trained.spec.class_names == DRAWN_CLASS_NAMES
    assert trained.spec.input_size == 65
    assert 0 <= trained.metrics["val_map"] <= 1
    assert np.isfinite(trained.metrics["loss"])


def test_a_model_has_the_same_bytes_in_every_training(trained_run, drawn_images, tmp_path):
    run = open_run(str(tmp_path / "again"), defaults=trained_run.config.model_dump())
    prepare(run, drawn_images, DRAWN_CLASS_NAMES)
    train(run)
    models = [Path(each.uri, "classifier", "model.pt").read_bytes() for each in (run, trained_run)]
    assert models[0] == models[1]


def test_validation_may_be_left_to_the_last_epoch(fresh_run):
    train(fresh_run, "classifier.validate_every=100")
    assert ["val_map" in line for line in metrics(fresh_run)] == [False, False, True]


def test_finished_training_says_so_and_does_nothing(fresh_run, capsys):
    train(fresh_run)
    before = (Path(fresh_run.uri) / "classifier" / "model.pt").stat().st_mtime_ns
    train(fresh_run)
    assert "already trained" in capsys.readouterr().out
    assert (Path(fresh_run.uri) / "classifier" / "model.pt").stat().st_mtime_ns == before


def test_a_second_launch_waits_until_the_first_ends_and_names_it(trained_run, monkeypatch, capsys):
    step = trained_run.step("classifier").location
    waits = []

    def first_launch_ends(seconds: float) -> None:
        waits.append(seconds)
        (step / "drivers/1-of-1.json").delete()

    monkeypatch.setattr(one_at_a_time.time, "sleep", first_launch_ends)
    beat = {"launch": "1-of-1", "host": "elsewhere", "pid": 4711, "started": 1795771875.0, "start_id": ""}
    (step / "drivers/1-of-1.json").write_bytes(json.dumps(beat).encode())
    train(trained_run)
    waiting, done = capsys.readouterr().out.splitlines()
    assert waiting.startswith(
        "classifier: process 4711 on host elsewhere already trains this step, since 2026-11-27 09:31 UTC. This launch "
    )
    assert "already trained" in done
    assert len(waits) == 1


def test_a_launch_with_other_settings_is_refused_without_waiting(trained_run, monkeypatch):
    step = trained_run.step("classifier").location
    monkeypatch.setattr(one_at_a_time.time, "sleep", lambda _: pytest.fail("it waits"))
    with beating(step, "1-of-1"), pytest.raises(ValueError, match="was started with other settings"):
        train(trained_run, "classifier.batch_size=3")


def test_a_training_counts_as_running_before_its_first_epoch(trained_run, monkeypatch):
    states = []
    monkeypatch.setattr(training_job, "record_run", lambda run, _: states.append(run_status(run).steps[0].state))
    train(trained_run)
    assert states == ["running"]


class Killed(BaseException):
    pass


def test_training_interrupted_in_mid_epoch_continues_to_the_same_weights_and_metrics(fresh_run, monkeypatch):
    every_ten_steps = ("classifier.batch_size=1", "classifier.checkpoint_minutes=0")  # of 12 in an epoch
    train(fresh_run, *every_ten_steps)
    expected, lines = weights(fresh_run), metrics(fresh_run)

    steps = []
    whole_step = classifier_worker.training_step

    def interrupted(*arguments, **options):
        steps.append(arguments[5])  # the epoch
        if len(steps) == 12 + 11:
            raise Killed
        return whole_step(*arguments, **options)

    monkeypatch.setattr(classifier_worker, "training_step", interrupted)
    with pytest.raises(Killed):
        train(fresh_run, *every_ten_steps, restart=True)
    assert not (Path(fresh_run.uri) / "classifier" / "complete.json").exists()
    before = len(steps)
    train(fresh_run, *every_ten_steps)
    assert steps[before:] == [1] * 2 + [2] * 12  # from step 10 of the second epoch on
    for name, value in weights(fresh_run).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)
    for line, wanted in zip(metrics(fresh_run), lines, strict=True):
        assert line["loss"] == pytest.approx(wanted["loss"], rel=1e-6)
        assert line["val_map"] == wanted["val_map"]


def test_a_small_set_is_trained_for_more_epochs_than_are_configured(fresh_run, capsys):
    train(fresh_run, "classifier.min_steps=7")  # 1 step an epoch
    printed = capsys.readouterr().out
    assert "12 images in batches of 10: 3 epochs would be 3 steps, so 7 epochs = 7 steps are trained." in printed
    assert len(metrics(fresh_run)) == 7
    assert ["val_map" in line for line in metrics(fresh_run)] == [False, False, True, False, False, True, True]
    assert "epoch 3 of 7" in printed and "epoch 4 of 7" not in printed  # as many lines as configured epochs
    state = run_state(fresh_run, fresh_run.manifest()).steps["classifier"]
    assert (state.state, state.done, state.left) == ("done", 7, 0)
    train(fresh_run, "classifier.min_steps=7")
    assert "already trained" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"raised_epochs: 7 -> 8.*--restart classifier"):
        train(fresh_run, "classifier.min_steps=8")


def test_a_training_that_learns_nothing_says_so_after_its_first_epoch(fresh_run, monkeypatch, capsys):
    monkeypatch.setattr("jobs.training.training_warnings.ENOUGH_STEPS", 12)
    train(fresh_run, "classifier.batch_size=1", "classifier.learning_rate=1e-9")
    warnings = [line for line in capsys.readouterr().out.splitlines() if "WARNING" in line]
    (warning,) = warnings
    assert "the loss of epoch 1 is 0.69" in warning and "The tiny network of a trial often does that" in warning
    assert "Stop the training" not in warning


def test_changed_setting_is_refused_before_training(fresh_run):
    train(fresh_run)
    with pytest.raises(ValueError, match=r"classifier\.epochs: 3 -> 4.*--restart classifier"):
        train(fresh_run, "classifier.epochs=4")


def test_diverging_training_stops_with_a_sentence_and_no_classifier(fresh_run):
    settings = ("classifier.learning_rate=1e30", "classifier.batch_size=1", "classifier.checkpoint_minutes=0")
    with pytest.raises(ValueError, match=r"loss became .* by step 10 .* Lower classifier\.learning_rate"):
        train(fresh_run, *settings)
    assert not (Path(fresh_run.uri) / "classifier" / "checkpoints").exists()  # none of weights that are no numbers
    with pytest.raises(ValueError, match="has no trained classifier"):
        require_network(fresh_run, "classifier", "test")


def test_unreadable_image_is_absent_from_training_and_counted(fresh_run, drawn_images, tmp_path, capsys):
    images = [replace(drawn_images[0], uri="/nowhere.png"), *drawn_images[1:]]
    run = open_run(str(tmp_path / "gap"), defaults=fresh_run.config.model_dump())
    prepare(run, images, DRAWN_CLASS_NAMES)
    train(run)
    assert np.isfinite(record(run)["metrics"]["loss"])
    assert record(run)["metrics"]["skipped"] == 1
    last_line = capsys.readouterr().out.splitlines()[-1]
    assert last_line == "classifier: skipped 1: missing: no such file (scene_0000)"


def test_skipped_images_are_told_by_whatever_launch_ends_the_training(fresh_run, drawn_images, tmp_path, monkeypatch):
    images = [replace(drawn_images[0], uri="/nowhere.png"), *drawn_images[1:]]
    run = open_run(str(tmp_path / "gap"), defaults=fresh_run.config.model_dump())
    prepare(run, images, DRAWN_CLASS_NAMES)
    keep_line = TrainingLog.add

    def killed_before_its_line(self: TrainingLog, report: dict) -> None:
        raise Killed

    monkeypatch.setattr(TrainingLog, "add", killed_before_its_line)
    with pytest.raises(Killed):
        train(run)
    monkeypatch.setattr(TrainingLog, "add", keep_line)
    train(run)
    assert [line.get("skipped") for line in metrics(run)] == [1, 1]  # of epochs 2 and 3: the first was lost
    told = [step.skipped for step in run_state(run, run.manifest()).steps.values() if step.name == "classifier"]
    assert told == [(Skipped("scene_0000", "missing: no such file"),)]


def test_without_a_validation_split_nothing_is_validated(fresh_run, capsys):
    train(fresh_run, "data.val_splits=[]")
    assert "images (labelled, of the training splits), none for validation" in capsys.readouterr().out
    assert "val_map" not in record(fresh_run)["metrics"]


def test_training_stops_where_too_many_images_cannot_be_read(fresh_run, drawn_images, tmp_path):
    images = [replace(image, uri="/nowhere.png") if image.split == "train" else image for image in drawn_images]
    run = open_run(str(tmp_path / "gap"), defaults=fresh_run.config.model_dump())
    prepare(run, images, DRAWN_CLASS_NAMES)
    sentence = r"10 of 12 images could not be read \(first: scene_0000: missing.*prepare_dataset.py --images"
    with pytest.raises(ValueError, match=sentence):
        train(run)


def test_weights_that_are_no_weights_are_refused(fresh_run, tmp_path):
    (tmp_path / "text.pt").write_text("no weights")
    for name, sentence in (
        (str(tmp_path / "text.pt"), "was not written by torch.save"),
        ("/nowhere.pt", "no file /nowhere.pt"),
    ):
        with pytest.raises(ValueError, match=sentence):
            train(fresh_run, f"classifier.weights={name}", restart=True)


def test_split_without_labelled_images_is_refused(fresh_run):
    with pytest.raises(ValueError, match=r"no labelled image in the training splits \['tarin'\].*'train', 'val'"):
        train(fresh_run, "data.train_splits=tarin")


def test_classifier_of_another_class_list_is_refused(fresh_run):
    train(fresh_run)
    complete = fresh_run.location / "classifier" / "complete.json"
    complete.write_bytes(json.dumps(record(fresh_run) | {"class_names": ["cat", "dog"]}).encode())
    with pytest.raises(ValueError, match="the classifier was trained for"):
        require_network(fresh_run, "classifier", "test")


def test_masks_are_never_read(fresh_run, drawn_images, tmp_path):
    masks = [Path(shutil.copy(image.mask_uri, tmp_path)) for image in drawn_images]
    images = [replace(image, mask_uri=str(mask)) for image, mask in zip(drawn_images, masks, strict=True)]
    run = open_run(str(tmp_path / "maskless"), defaults=fresh_run.config.model_dump())
    prepare(run, images, DRAWN_CLASS_NAMES)
    for mask in masks:
        mask.unlink()
    train(run)
    train(fresh_run)
    assert record(run)["metrics"]["loss"] == record(fresh_run)["metrics"]["loss"]


def test_best_epochs_classifier_is_kept_beside_the_last(fresh_run, monkeypatch):
    scores = iter([0.25, 0.75, 0.5])
    monkeypatch.setattr(classifier_worker, "average_precision", lambda *_: next(scores))
    train(fresh_run, "classifier.keep=best")
    folder = Path(fresh_run.uri) / "classifier"
    assert (folder / "model.pt").read_bytes() == (folder / "best.pt").read_bytes()
    found = record(fresh_run)
    assert (found["kept"], found["metrics"]["epoch"], found["metrics"]["val_map"]) == ("best", 2, 0.75)

    train(fresh_run, "classifier.keep=last")  # needs no training
    assert (folder / "model.pt").read_bytes() == (folder / "last.pt").read_bytes()
    assert require_network(fresh_run, "classifier", "test").metrics["epoch"] == 3


@pytest.mark.parametrize("epoch", ["best", "last"])
def test_a_damaged_epoch_does_not_become_the_network(trained_run, epoch):
    folder = Path(trained_run.uri) / "classifier"
    whole, place = (folder / "model.pt").read_bytes(), folder / f"{epoch}.pt"
    data = bytearray(place.read_bytes())
    data[len(data) // 2] ^= 4
    place.write_bytes(data)
    with pytest.raises(ValueError, match=rf"{epoch}\.pt: damaged, the bytes of .* model\.pt beside it, which is whole"):
        verify.main(["--run", trained_run.uri])
    if epoch == "last":
        (folder / "complete.json").unlink()  # as the sentence on a damaged one says
    with pytest.raises(ValueError, match=rf"{epoch}\.pt: damaged, .*or train again: --restart classifier"):
        train(trained_run, f"classifier.keep={epoch}")
    assert (folder / "model.pt").read_bytes() == whole


def test_a_damaged_checkpoint_is_not_continued(fresh_run, monkeypatch, capsys):
    def killed(self: TrainingLog, report: dict) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLog, "add", killed)
        with pytest.raises(Killed):
            train(fresh_run)
    (place,) = (Path(fresh_run.uri) / "classifier" / "checkpoints").rglob("checkpoint.bin")
    data = bytearray(place.read_bytes())
    data[len(data) // 2] ^= 4
    place.write_bytes(data)
    with pytest.raises(ValueError, match=r"classifier: its latest checkpoint is damaged: the bytes .*--restart class"):
        train(fresh_run)
    train(fresh_run, restart=True)
    assert (
        "classifier: --restart deletes the network and checkpoints of the earlier training, " in capsys.readouterr().out
    )


def test_best_without_validation_images_is_refused(fresh_run):
    with pytest.raises(ValueError, match=r"given 'best', but there is no labelled image .* \['tset'\]"):
        train(fresh_run, "classifier.keep=best", "data.val_splits=tset")


def test_files_say_where_they_come_from(fresh_run):
    train(fresh_run)
    found = record(fresh_run)
    assert found["class_names"] == list(DRAWN_CLASS_NAMES)
    assert found["geometry"]["input_size"] == 65
    assert found["config"]["classifier"]["epochs"] == 3
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert found["fingerprint"]["seed"] == 0
    about = model_record((Path(fresh_run.uri) / "classifier" / "model.pt").read_bytes())["about"]
    assert about["fingerprint"] == found["fingerprint"] and about["metrics"] == found["metrics"]


def test_bare_machine_trains_the_same_classifier_from_decoded_images(fresh_run, drawn_images, tmp_path, monkeypatch):
    train(fresh_run, "classifier.batch_size=5")
    targets = torch.tensor([[name in image.labels for name in DRAWN_CLASS_NAMES] for image in drawn_images])
    data = {
        "images": [torch.from_numpy(read_image(image.uri, 10**6)) for image in drawn_images],
        "targets": targets.float(),
        "image_ids": [image.image_id for image in drawn_images],
        "class_names": list(DRAWN_CLASS_NAMES),
        "validation": [image.split == "val" for image in drawn_images],
    }
    torch.save(data, tmp_path / "decoded.pt")
    given = f"--data {tmp_path}/decoded.pt --out {tmp_path}/model.pt --backbone small --size 65 --kernel-size 5"
    given += " --epochs 3 --batch 5 --precision float32 --loaders 0"
    monkeypatch.setattr(sys, "argv", ["gpu_train.py", *given.split()])
    monkeypatch.syspath_prepend(BENCHMARKS)
    runpy.run_path(str(BENCHMARKS / "gpu_train.py"), run_name="__main__")
    found = unpack_classifier((tmp_path / "model.pt").read_bytes())
    assert found.spec == load_classifier(fresh_run).spec
    for name, value in weights(fresh_run).items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_more_workers_than_images_in_a_batch_are_refused(fresh_run):
    with pytest.raises(ValueError, match=r"cluster\.training_workers: given 11, allowed: 1 to 10"):
        train(fresh_run, "cluster.training_workers=2..11")


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_worker_killed_in_mid_epoch_changes_nothing(fresh_run, local_ray, kill_at_checkpoint):
    settings = ["classifier.batch_size=1", "classifier.checkpoint_minutes=0", "classifier.epochs=6"]
    train(fresh_run, *settings)
    expected, lines = weights(fresh_run), metrics(fresh_run)

    alone = open_run(fresh_run.uri, None, settings)
    killed = kill_at_checkpoint(Path(fresh_run.uri, "classifier"))
    launch_step(alone, local_ray, "classifier", restart=True)
    assert len(killed) == 1
    for name, value in weights(alone).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)
    for line, wanted in zip(metrics(alone), lines, strict=True):
        assert line["loss"] == pytest.approx(wanted["loss"], rel=1e-4)


def test_a_training_whose_workers_are_late_says_what_it_waits_for(fresh_run, monkeypatch, capsys):
    def late(*_, on_start, **__):
        time.sleep(0.2)
        on_start()
        time.sleep(0.2)
        raise ClusterError("cluster: enough.")

    monkeypatch.setattr(waiting, "FIRST_SECONDS", 0.15)
    monkeypatch.setattr(training_job, "train", late)
    with pytest.raises(ClusterError):
        train(fresh_run)
    printed = capsys.readouterr().out
    assert "classifier: no training worker has started after 0 s: " in printed
    assert "classifier: the training workers have started after 0 s." in printed
