"""`ray job submit` of a run on S3, which is stopped or loses its driver in mid-run, and the same command again."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.connect import connect
from jobs.cli.launch import launch_step
from jobs.run.directory import Run, open_run
from storage.heartbeat import heartbeats
from storage.steps import Receipt, Step

REPOSITORY = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))


@pytest.fixture
def dashboard(s3_environment) -> Iterator[dict[str, str]]:
    """A Ray with its dashboard and a token: the environment in which `ray job` reaches it."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # a short path: Ray puts sockets there
    token = Path(folder, "token")
    token.write_text(uuid.uuid4().hex)
    ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    numbers = [each.getsockname()[1] for each in ports]
    for each in ports:
        each.close()
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_TMPDIR": folder,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }
    environment.pop("PYTHONPATH", None)  # the submitted copy must do
    command = [RAY, "start", "--head", "--block", f"--port={numbers[0]}", f"--dashboard-port={numbers[1]}"]
    command += [f"--dashboard-agent-listen-port={numbers[2]}", "--dashboard-host=127.0.0.1", "--num-cpus=4"]
    command += ["--node-ip-address=127.0.0.1"]
    head = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{numbers[1]}"
        deadline = time.monotonic() + 180
        while subprocess.run(
            [RAY, "job", "list", "--address", address], env=environment, capture_output=True
        ).returncode:
            assert head.poll() is None and time.monotonic() < deadline, "no dashboard"
            time.sleep(1)
        yield environment | {"RAY_API_SERVER_ADDRESS": address}
    finally:
        head.terminate()
        head.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


MANY = "maps.num_samples=200000"  # a unit takes seconds, so that there is time to stop between two of them


def submit(run: Run, environment: dict[str, str], name: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [RAY, "job", "submit", "--submission-id", name, "--working-dir", str(REPOSITORY), *options, "--"]
    command += ["python", "jobs/generate_maps.py", "--run", run.uri, "--set", "cluster.max_actors=1", "--set", MANY]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.cluster
@pytest.mark.timeout(1200)
def test_a_submitted_run_is_stopped_and_submitted_again(dashboard, s3_run, finished_maps_run):
    with connect("in-process") as connection:
        launch_step(open_run(finished_maps_run.uri, None, [MANY]), connection, "maps", restart=True)
    step = submitted_and_at_work(s3_run, dashboard)
    assert "was stopped" in ray_job("stop", "first", dashboard)
    done = step.receipts()
    assert 0 < len(done) < 4, "stopped too late to matter"
    assert "the same command continues." in ray_job("logs", "first", dashboard)
    assert heartbeats(step.location) == []
    require_the_same_bytes_after_another_submission(s3_run, dashboard, done, finished_maps_run)


@pytest.mark.cluster
@pytest.mark.timeout(1200)
def test_the_same_command_is_submitted_again_after_its_driver_was_lost(dashboard, s3_run, finished_maps_run):
    with connect("in-process") as connection:
        launch_step(open_run(finished_maps_run.uri, None, [MANY]), connection, "maps", restart=True)
    step = submitted_and_at_work(s3_run, dashboard)
    drivers = [
        process
        for process in psutil.process_iter(["cmdline"])
        if {"jobs/generate_maps.py", s3_run.uri} <= {*(process.info["cmdline"] or ())}
    ]
    assert drivers, "the driver has ended too early to be lost"
    for process in drivers:
        process.kill()
    end = time.monotonic() + 120
    while "'first' failed" not in ray_job("status", "first", dashboard) and time.monotonic() < end:
        time.sleep(1)
    assert "'first' failed" in ray_job("status", "first", dashboard)
    done = step.receipts()
    assert 0 < len(done) < 4, "killed too late to matter"
    require_the_same_bytes_after_another_submission(s3_run, dashboard, done, finished_maps_run)


def submitted_and_at_work(run: Run, environment: dict[str, str]) -> Step:
    """Submits the maps of a run, and waits for the first receipt."""
    step = Step(run.location / "maps")
    first = submit(run, environment, "first", "--no-wait")
    assert first.returncode == 0, first.stderr
    deadline = time.monotonic() + 600
    while not step.receipts() and time.monotonic() < deadline:
        time.sleep(0.05)
    return step


def ray_job(what: str, name: str, environment: dict[str, str]) -> str:
    ended = subprocess.run([RAY, "job", what, name], env=environment, capture_output=True, text=True, check=False)
    return ended.stdout + ended.stderr


def require_the_same_bytes_after_another_submission(
    run: Run, environment: dict[str, str], done: dict[int, Receipt], undisturbed: Run
) -> None:
    second = submit(run, environment, "second")
    assert second.returncode == 0, second.stdout + second.stderr
    assert f"{4 - len(done)} of 4 units to do" in second.stdout + second.stderr
    assert done.items() <= Step(run.location / "maps").receipts().items()
    for unit in range(4):
        found, wanted = (each.data("maps") / f"maps.zarr/max/c/{unit}/0/0/0" for each in (run, undisturbed))
        assert found.read_bytes() == wanted.read_bytes()
