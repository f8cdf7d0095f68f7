"""A restart that cannot start is refused before it deletes anything; and so is every launch, before it writes."""

import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest

from cluster.connect import Connection
from cluster.errors import ClusterError
from jobs import verify
from jobs.cli.launch import launch_step
from jobs.cli.pipeline import run_pipeline
from jobs.run.directory import Run, open_run
from jobs.steps import compute, unit_driver
from jobs.steps.restarted import has_restarted
from jobs.training import training_job
from storage.heartbeat import beating

HERE = Connection(num_cpus=2, num_gpus=0, num_nodes=1, in_process=True)
CPUS_ALONE = Connection(num_cpus=4, num_gpus=0, num_nodes=1)
OPTIONAL = Connection(num_cpus=4, num_gpus=0, num_nodes=1, is_to_start=True, is_optional=True)


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch):
    monkeypatch.setattr(compute.torch.cuda, "is_available", lambda: False)


def files_of(run: Run) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in Path(run.uri).rglob("*") if path.is_file()}


def refusal(run: Run, connection: Connection, name: str, *settings: str) -> str:
    """The message of a refused restart, which must leave all files as they are and not say that they are deleted."""
    before = files_of(run)
    with pytest.raises((ClusterError, ValueError)) as refused:
        launch_step(open_run(run.uri, None, settings), connection, name, restart=True)
    assert files_of(run) == before and not has_restarted(refused.value)
    return str(refused.value)


def test_an_error_after_the_old_results_were_deleted_says_so(predicted_run, monkeypatch):
    def fail(*_):
        raise ClusterError("the Ray is gone")

    monkeypatch.setattr(unit_driver, "compute_missing", fail)
    monkeypatch.setattr(training_job, "_train", fail)
    for name in ("maps", "segmenter"):
        with pytest.raises(ClusterError) as lost:
            launch_step(predicted_run, HERE, name, restart=True)
        assert has_restarted(lost.value)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("classifier", "classifier.device"),
        ("maps", "maps.device"),
        ("cells", "maps.device"),
        ("segmenter", "segmenter.device"),
        ("predictions", "predictions.device"),
    ],
)
@pytest.mark.parametrize("connection", [HERE, CPUS_ALONE, OPTIONAL], ids=["in-process", "cluster", "local"])
def test_a_restart_without_the_gpu_that_it_needs_keeps_the_old_results(name, key, connection, predicted_run):
    if name == "cells":
        launch_step(predicted_run, HERE, "cells")
    found = refusal(predicted_run, connection, name, f"{key}=cuda")
    assert f"To use the CPU, give --set {key}=cpu." in found


def test_a_restart_with_a_damaged_network_keeps_the_old_results(predicted_run, capsys):
    for network, step in (("segmenter", "predictions"), ("classifier", "maps")):
        place = Path(predicted_run.step(network).data().uri, "model.pt")
        data = bytearray(place.read_bytes())
        data[len(data) // 2] ^= 1
        place.write_bytes(data)
        assert f"or train again: '{predicted_run.step_command(network, '--restart', network)}'" in refusal(
            predicted_run, HERE, step
        )
        with pytest.raises(ValueError, match=r"model\.pt: not the file that the training wrote") as damage:
            verify.main(["--run", predicted_run.uri])
        assert f"{network}/model.pt: not the file" in capsys.readouterr().out + str(damage.value)


def test_a_restart_with_more_workers_than_fit_keeps_the_old_results(predicted_run):
    assert "40 compute actors and a task need" in refusal(
        predicted_run, CPUS_ALONE, "seeds", "cluster.min_actors=40", "cluster.max_actors=40"
    )
    found = refusal(predicted_run, CPUS_ALONE, "classifier", "cluster.cpus_per_training_worker=8")
    assert "1 training worker needs 8 CPUs, but the cluster has 4" in found


def test_a_training_whose_weights_cannot_be_downloaded_keeps_the_old_network(predicted_run, monkeypatch):
    def fail(name, key):
        raise ValueError(f"{key}: the pretrained weights of {name} cannot be downloaded")

    monkeypatch.setattr(training_job, "fetch_imagenet_weights", fail)
    settings = ("classifier.backbone=vgg16", "classifier.weights=imagenet")
    assert "classifier.weights: the pretrained" in refusal(predicted_run, HERE, "classifier", *settings)


def test_the_pipeline_keeps_the_outdated_results_that_it_cannot_compute_again(predicted_run):
    launch_step(open_run(predicted_run.uri, None, ["seeds.theta=0.5"]), HERE, "seeds", restart=True)
    launch_step(predicted_run, HERE, "pseudo_labels")
    run = open_run(predicted_run.uri, None, ["cluster.cpus_per_training_worker=8"])
    before = files_of(run)
    with pytest.raises(ClusterError, match="1 training worker needs 8 CPUs"):
        run_pipeline(run, CPUS_ALONE, redo_outdated=True)
    kept = {name: time for name, time in files_of(run).items() if "/segmenter/" in name or "/predictions/" in name}
    assert kept == {name: time for name, time in before.items() if "/segmenter/" in name or "/predictions/" in name}


def test_a_first_launch_that_cannot_start_records_no_settings(trained_run):
    with pytest.raises(ClusterError, match=r"maps\.device=cpu"):
        launch_step(open_run(trained_run.uri, None, ["maps.device=cuda"]), CPUS_ALONE, "maps")
    assert not (trained_run.location / "maps").exists()


def test_a_finished_step_needs_no_workers(finished_maps_run):
    launch_step(
        open_run(finished_maps_run.uri, None, ["cluster.min_actors=40", "cluster.max_actors=40"]), CPUS_ALONE, "maps"
    )


@pytest.mark.parametrize("name", ["classifier", "maps", "seeds"])
def test_a_restart_beside_a_launch_that_depends_on_the_step_is_refused(name, predicted_run):
    with beating(predicted_run.step("segmenter").location, "1-of-1"):
        found = refusal(predicted_run, HERE, name, "seeds.theta=0.4")
        launch_step(predicted_run, HERE, "pseudo_labels", restart=True)  # the segmenter does not read them
    driver = rf"{predicted_run.uri}/segmenter: a driver on \S+ \(process {os.getpid()}, last heartbeat \d s ago\)"
    assert re.match(driver, found)
    assert f"is running this step, which depends on the results of the step {name}, and this command would" in found
    assert found.endswith("Stop it first, or wait until it ends. If it was killed, wait 60 s.")


def test_a_dead_launch_of_a_later_step_does_not_stop_a_restart(predicted_run):
    beat = predicted_run.step("segmenter").location / "drivers/1-of-1.json"
    beat.write_bytes(json.dumps({"launch": "1-of-1", "host": "elsewhere", "pid": 1, "started": 0.0}).encode())
    changed = open_run(predicted_run.uri, None, ["seeds.theta=0.5"])
    with pytest.raises(ValueError, match="a driver on elsewhere"):
        launch_step(changed, HERE, "seeds", restart=True)
    os.utime(beat.uri, times=(time.time() - 100, time.time() - 100))
    launch_step(changed, HERE, "seeds", restart=True)


def test_a_damaged_record_of_a_later_step_does_not_stop_a_restart(predicted_run):
    segmenter = predicted_run.step("segmenter").location
    (segmenter / "step.json").write_bytes(b"{")
    with beating(segmenter, "1-of-1"):
        assert "is running this step, which depends on" in refusal(predicted_run, HERE, "seeds")
    launch_step(predicted_run, HERE, "seeds", restart=True)


def test_another_epoch_is_not_kept_while_a_launch_depends_on_the_network(predicted_run):
    folder = Path(predicted_run.step("classifier").data().uri)
    shutil.copy(predicted_run.step("segmenter").data().uri + "/last.pt", folder / "best.pt")  # any other network
    best, before = open_run(predicted_run.uri, None, ["classifier.keep=best"]), (folder / "model.pt").read_bytes()
    with beating(predicted_run.step("maps").location, "1-of-1"):
        with pytest.raises(ValueError, match="depends on the results of the step classifier"):
            launch_step(best, HERE, "classifier")
        launch_step(predicted_run, HERE, "classifier")
    assert (folder / "model.pt").read_bytes() == before


@pytest.mark.parametrize("name", ["segmenter", "pseudo_labels"])
def test_a_launch_whose_input_was_replaced_says_so_whatever_failed_first(name, predicted_run, monkeypatch):
    def replaced_meanwhile(run, *_):
        upstream = "seeds" if name == "segmenter" else "maps"
        step = run.step(upstream)
        step.open({**step.fingerprint(), "theta": 0.5}, "a command", restart=True)
        raise FileNotFoundError("seeds.zarr: there are no arrays here.")

    monkeypatch.setattr(unit_driver, "compute_missing", replaced_meanwhile)
    monkeypatch.setattr(training_job, "_train", replaced_meanwhile)
    with pytest.raises(ValueError, match="another launch has replaced the results of") as lost:
        launch_step(predicted_run, HERE, name, restart=True)
    assert f"'python jobs/run_pipeline.py --run {predicted_run.uri} --redo-outdated'" in str(lost.value)
    assert has_restarted(lost.value)
