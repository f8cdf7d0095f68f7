"""`--dry-run` of every job: it says what would be done, refuses what would be refused, and changes nothing."""

import shutil
from pathlib import Path

import pytest

from cluster.connect import Connection
from jobs import (
    aggregate_seeds,
    contact_sheet,
    evaluate,
    export_labels,
    generate_maps,
    make_pseudo_labels,
    prepare_dataset,
    report,
    train_ficklenet,
)
from jobs.cli import plans
from jobs.cli.estimate import Estimate
from jobs.run.config_keys import ClusterConfig
from jobs.steps.unit_dry_run import describe_connection
from storage.heartbeat import beating, heartbeats
from storage.steps import Step


@pytest.fixture(autouse=True)
def untimed(monkeypatch):
    """Timing has its own tests, in test_estimates.py."""
    monkeypatch.setattr(plans, "estimate_steps", lambda *_, **__: Estimate({}, 0.0, 0.0))


def files_of(run) -> dict[str, tuple[int, int]]:
    files = [path for path in Path(run.uri).rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in files}


def dry_run_of(job, run, capsys, *arguments: str) -> str:
    """What the job's dry run prints; it must not touch the run."""
    before = files_of(run)
    job.main(["--run", run.uri, "--dry-run", *arguments])
    assert files_of(run) == before
    text = capsys.readouterr().out
    assert text.endswith("nothing was started, nothing was written.\n")
    return text


@pytest.mark.parametrize(
    ("job", "arguments", "sentence"),
    [
        (
            train_ficklenet,
            [],
            "dry run: 0 of 1 epoch to do, because it is already trained.",
        ),
        (generate_maps, [], "maps, dry run: 0 of 4 units to do (0 of 14 images)."),
        (aggregate_seeds, [], "seeds, dry run: 4 of 4 units to do (14 of 14 images)."),
        (make_pseudo_labels, ["--shard", "1/2"], "pseudo-labels, dry run: 2 of 2 units to do (8 of 8 images)."),
        (export_labels, ["--format", "npy"], "export, dry run: 4 of 4 units to do (14 of 14 images)."),
        (report, [], "report, dry run: a page of 14 images"),
        (contact_sheet, [], "contact_sheet, dry run: 8 of 14 mapped images on one picture"),
    ],
)
def test_every_job_says_what_it_would_do(job, arguments, sentence, finished_maps_run, capsys):
    assert sentence in dry_run_of(job, finished_maps_run, capsys, *arguments)


def test_evaluation_is_described(finished_maps_run, capsys):
    aggregate_seeds.main(["--run", finished_maps_run.uri])
    capsys.readouterr()
    text = dry_run_of(evaluate, finished_maps_run, capsys, "--split", "val")
    assert "would measure 2 kinds of labels on val, 1 unit" in text


def test_a_manifest_is_described(finished_maps_run, tmp_path, capsys):
    images = finished_maps_run.manifest().rows(0, 3)
    table = tmp_path / "labels.csv"
    table.write_text("image,labels\n" + "".join(f"{row.uri},star\n" for row in images))
    target = tmp_path / "new run"
    prepare_dataset.main(["--run", str(target), "--csv", str(table), "--dry-run"])
    assert not target.exists()
    text = capsys.readouterr().out
    assert f"prepare: 3 images in the run {target}\n" in text
    assert "KB to write; nothing was started" in text


def test_time_and_storage_follow_from_the_finished_units(finished_maps_run, capsys):
    step = Step(finished_maps_run.location / "maps")
    (step.location / "done/000001.json").delete()
    text = dry_run_of(generate_maps, finished_maps_run, capsys)
    assert "1 of 4 units to do (4 of 14 images)" in text
    assert "1 worker (cpu), in this process\n" in text  # without a Ray to start
    assert "measured on the finished units" in text
    assert f"more in {step.location}" in text


def test_resources_are_told_without_starting_a_ray(finished_maps_run, capsys):
    shutil.rmtree(Path(finished_maps_run.uri, "maps/done"))
    settings = ["--restart", "maps", "--set", "cluster.address=local", "--set", "cluster.cpus=4"]
    text = dry_run_of(generate_maps, finished_maps_run, capsys, *settings)
    assert "first:   deletes" in text
    assert "4 workers (cpu), on a Ray of 1 node, 4 CPUs" in text
    assert "storage: at most " in text  # storage, by the grid and the labels


def test_a_training_begun_anew_is_described_whole(finished_maps_run, capsys):
    text = dry_run_of(train_ficklenet, finished_maps_run, capsys, "--restart", "classifier")
    assert "classifier, dry run: 1 of 1 epoch to do" in text and "  first:   deletes " in text and "time: " in text


def test_only_an_own_ray_that_is_not_there_yet_takes_time_to_start():
    there, promised = (Connection(4, 0, num_nodes=1, is_to_start=is_to_start) for is_to_start in (False, True))
    assert describe_connection(ClusterConfig(), there) == "on a Ray of 1 node, 4 CPUs, 0 GPUs"
    assert describe_connection(ClusterConfig(), promised).endswith(" 0 GPUs (about 10 s to start it)")


def test_a_dry_run_is_refused_like_the_launch(finished_maps_run, capsys):
    before = files_of(finished_maps_run)
    with pytest.raises(ValueError, match=r"maps.num_samples: 8 -> 9.*--restart maps"):
        generate_maps.main(["--run", finished_maps_run.uri, "--dry-run", "--set", "maps.num_samples=9"])
    with beating(Step(finished_maps_run.location / "maps").location, "1-of-1"):
        while not heartbeats(finished_maps_run.location / "maps"):
            pass
        with pytest.raises(ValueError, match="is running this step"):
            generate_maps.main(["--run", finished_maps_run.uri, "--dry-run", "--restart", "maps"])
    with pytest.raises(ValueError, match="seeds are complete for 0 of 14 images"):
        evaluate.main(["--run", finished_maps_run.uri, "--dry-run"])
    assert files_of(finished_maps_run) == before
