"""The main job on s3:// behind a proxy that breaks what it can: the same bytes as on an undisturbed disk."""

import subprocess
import sys
from pathlib import Path

import pytest

from cluster.connect import connect
from jobs.cli.launch import launch_step
from jobs.run.directory import Run
from storage.errors import StorageError
from storage.location import Location
from storage.steps import Step

REPOSITORY = Path(__file__).parents[2]


def make_maps(run: Run) -> None:
    with connect("in-process") as connection:
        launch_step(run, connection, "maps")


def stored(location: Location) -> dict[str, bytes]:
    """Every shard of the maps, by array and unit."""
    ends = {"max": "0/0/0", "mean": "0/0/0", "score": "0", "classes": "0"}
    keys = [f"{name}/c/{unit}/{end}" for name, end in ends.items() for unit in range(4)]
    return {key: (location / "maps/maps.zarr" / key).read_bytes() for key in keys}


def test_faults_change_no_byte_and_skip_no_image(s3_run, mapped_run_folder, faulty_s3):
    faulty_s3.set(throttle=0.03, fail=0.03, reset=0.03, truncate=0.03, latency=0.01)
    make_maps(s3_run)
    counts = faulty_s3.counts()
    assert sum(counts.get(name, 0) for name in ("throttle", "fail", "reset", "truncate")) > 3
    faulty_s3.set()
    assert stored(s3_run.location) == stored(Location(str(mapped_run_folder)))
    assert not any(receipt.skipped for receipt in Step(s3_run.location / "maps").receipts().values())


def test_credentials_that_expire_in_mid_run_stop_it_and_cost_nothing(s3_run, mapped_run_folder, faulty_s3):
    faulty_s3.set(expire_at="done/000002.json")
    with pytest.raises(StorageError, match="the credentials have expired"):
        make_maps(s3_run)
    faulty_s3.set()  # renewed
    done = Step(s3_run.location / "maps").receipts()
    assert done.keys() == {0, 1}
    make_maps(s3_run)
    assert stored(s3_run.location) == stored(Location(str(mapped_run_folder)))
    receipts = Step(s3_run.location / "maps").receipts()
    assert done.items() <= receipts.items()
    assert not any(receipt.skipped for receipt in receipts.values())


def test_a_forbidden_image_stops_the_step_and_a_missing_one_is_skipped(s3_run, faulty_s3, capsys):
    row = s3_run.manifest().rows(5, 6)[0]
    faulty_s3.set(deny=row.uri.rsplit("/", 1)[1])
    with pytest.raises(StorageError, match="access denied"):
        make_maps(s3_run)
    faulty_s3.set()
    Location(row.uri).delete()
    make_maps(s3_run)
    assert "13 images done, 1 skipped (1 missing: no such file)" in capsys.readouterr().out


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_faults_change_no_byte_on_a_cluster(s3_run, mapped_run_folder, faulty_s3):
    faulty_s3.set(throttle=0.04, fail=0.04, reset=0.04, truncate=0.04, latency=0.02)
    command = [sys.executable, "jobs/generate_maps.py", "--run", s3_run.uri, "--set", "cluster.address=local"]
    command += ["--set", "cluster.cpus=4", "--set", "cluster.max_actors=2"]
    for _ in range(5):  # a launch may be refused in the end: the same command continues
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            break
        assert done.returncode == 1, done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
    faulty_s3.set()
    assert done.returncode == 0, done.stderr
    assert stored(s3_run.location) == stored(Location(str(mapped_run_folder)))
