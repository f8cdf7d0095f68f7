"""The main job on a cluster of three nodes, of which one is lost in mid-run: it ends without a relaunch."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.steps import Step

REPOSITORY = Path(__file__).parents[2]
UNITS = 4
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}  # or 127.0.0.1 is not believed


@pytest.fixture
def three_nodes() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A cluster of three nodes of two CPUs and a head: its address, and the process that takes "kill"."""
    script = REPOSITORY / "tests/cluster/several_nodes.py"
    cluster = subprocess.Popen(
        [sys.executable, str(script), "3"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | LOOPBACK,
    )
    try:
        assert cluster.stdout is not None
        yield cluster.stdout.readline().strip(), cluster
    finally:
        assert cluster.stdin is not None
        cluster.stdin.close()  # which ends it
        cluster.wait(timeout=120)


def stored_bytes(folder: Path) -> dict[str, bytes]:
    root = folder / "maps" / "maps.zarr"
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_a_lost_node_costs_its_units_a_second_time_and_no_relaunch(three_nodes, trained_run, mapped_run_folder):
    address, cluster = three_nodes
    command = [sys.executable, "jobs/generate_maps.py", "--run", trained_run.uri]
    command += ["--set", f"cluster.address={address}", "--set", "cluster.max_actors=3"]
    environment, pipe = os.environ | LOOPBACK, subprocess.PIPE
    job = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=pipe, stderr=pipe, text=True)
    step, deadline = Step(trained_run.location / "maps"), time.monotonic() + 240
    while not step.receipts() and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    finished = len(step.receipts())
    assert cluster.stdin is not None and cluster.stdout is not None
    cluster.stdin.write("kill\n")
    cluster.stdin.flush()
    out, err = job.communicate(timeout=400)
    assert job.returncode == 0, err
    assert 0 < finished < UNITS, "the node was lost too late to matter"
    assert "14 images done, 0 skipped, 0 left" in out
    assert stored_bytes(Path(trained_run.uri)) == stored_bytes(mapped_run_folder)
