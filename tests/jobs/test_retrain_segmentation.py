"""Retraining on a tiny run: what teaches it, what it leaves, who uses it, refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.connect import connect
from jobs.cli.launch import launch_step
from jobs.reporting.run_status import run_status
from jobs.run.directory import Run, open_run
from jobs.run.training_record import read_training
from jobs.run_pipeline import main as pipeline
from jobs.steps.networks import load_segmenter
from jobs.training import segmentation_worker
from storage.steps import Step


def retrain(run: Run, *assignments: str, restart: bool = False) -> dict:
    with connect("in-process") as connection:
        launch_step(open_run(run.uri, None, assignments), connection, "retrained", restart=restart)
    return read_training(run.data("retrained")).metrics


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_segmenter(run, "retrained").state_dict()


def test_a_second_network_learns_from_the_first_and_predicts_when_asked(segmented_run):
    first = (segmented_run.location / "segmenter/model.pt").read_bytes()
    (segmented_run.location / "seeds").delete_tree()  # it needs none
    assert np.isfinite(retrain(segmented_run)["loss"])
    assert (segmented_run.location / "segmenter/model.pt").read_bytes() == first
    with connect("in-process") as connection:
        launch_step(segmented_run, connection, "predictions")
        retrained = open_run(segmented_run.uri, None, ["predictions.network=retrained"])
        with pytest.raises(ValueError, match=r"network: segmenter -> retrained.*--restart predictions"):
            launch_step(retrained, connection, "predictions")
        launch_step(retrained, connection, "predictions", restart=True)
    fingerprint = Step(segmented_run.location / "predictions").fingerprint()
    retrained_id = read_training(segmented_run.data("retrained")).sha256
    assert fingerprint is not None and fingerprint["upstream"] == {"retrained": retrained_id}


def test_the_first_networks_labels_are_what_is_learnt(segmented_run, monkeypatch):
    relabelled = []
    whole_step = segmentation_worker.segmentation_step

    def look(model, optimizer, batch, loss_weights, **options):
        relabelled.append((batch.truth, loss_weights))
        return whole_step(model, optimizer, batch, loss_weights, **options)

    monkeypatch.setattr(segmentation_worker, "segmentation_step", look)
    retrain(segmented_run)
    assert all((truth <= 5).all() for truth, _ in relabelled)  # every pixel is labelled
    assert all((losses.seed, losses.boundary, losses.full) == (0, 0, 1) for _, losses in relabelled)


class Killed(BaseException):
    pass


def test_interrupted_retraining_continues_to_the_same_weights(segmented_run, monkeypatch):
    retrain(segmented_run)
    expected, steps = weights(segmented_run), []
    whole_step = segmentation_worker.segmentation_step

    def interrupted(*arguments, **options):
        steps.append(1)
        if len(steps) == 5:  # in the second epoch, of 3 steps each
            raise Killed
        return whole_step(*arguments, **options)

    monkeypatch.setattr(segmentation_worker, "segmentation_step", interrupted)
    with pytest.raises(Killed):
        retrain(segmented_run, restart=True)
    retrain(segmented_run)
    assert len(steps) == 5 + 3
    for name, value in weights(segmented_run).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


def test_status_tells_of_it_once_it_is_started_and_when_its_teacher_is_another(segmented_run):
    def states() -> dict[str, str]:
        return {step.name: step.state for step in run_status(segmented_run).steps}

    assert "retrained" not in states()
    retrain(segmented_run)
    assert states()["retrained"] == "done"
    with connect("in-process") as connection:
        launch_step(open_run(segmented_run.uri, None, ["segmenter.epochs=1"]), connection, "segmenter", restart=True)
    assert states()["retrained"] == "outdated"
    with pytest.raises(ValueError, match=r"its segmenter changed since.*retrain_segmentation\.py.*--restart retrained"):
        retrain(segmented_run)


def test_what_cannot_be_retrained_is_refused(seeded_run, segmented_run):
    with pytest.raises(ValueError, match=r"retrain_segmentation: .* no trained segmentation network.*train_segmentat"):
        retrain(seeded_run)
    with pytest.raises(ValueError, match=r"supervision=masks the network was trained on all masks"):
        retrain(segmented_run, "segmenter.supervision=masks")
    retrained = open_run(segmented_run.uri, None, ["predictions.network=retrained"])
    sentence = r"retrained has no trained segmentation network.*jobs/retrain_segmentation\.py"
    with connect("in-process") as connection, pytest.raises(ValueError, match=sentence):
        launch_step(retrained, connection, "predictions")
    assert not Path(segmented_run.uri, "retrained").exists()


def test_pipeline_retrains_where_that_network_is_to_predict(segmented_run, capsys):
    pipeline(["--run", segmented_run.uri, "--dry-run", "--set", "predictions.network=retrained"])
    printed = capsys.readouterr().out
    assert "step 6 of 7, retrained\nretrained, dry run: 2 of 2 epochs to do, 3 steps of 4 images each." in printed
    extent = "predictions, dry run: 1 of 1 unit to do (2 of 2 images)"
    assert f"{extent}; details are known after the steps above are finished" in printed
