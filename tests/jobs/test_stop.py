"""SIGTERM, as `ray job stop` sends it: the job ends in order, says so, and the same command continues."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from storage.heartbeat import heartbeats
from storage.steps import Step

REPOSITORY = Path(__file__).parents[2]
SLOW = "maps.num_samples=2000"


@pytest.mark.timeout(400)
@pytest.mark.parametrize("address", ["in-process", pytest.param("local", marks=pytest.mark.cluster)])
def test_a_stopped_job_ends_in_order_and_continues(address, trained_run):
    command = [sys.executable, "jobs/generate_maps.py", "--run", trained_run.uri, "--set", SLOW]
    command += ["--set", f"cluster.address={address}", "--set", "cluster.max_actors=1"]
    job = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    step, deadline = Step(trained_run.location / "maps"), time.monotonic() + 200
    while not step.receipts() and time.monotonic() < deadline:
        time.sleep(0.05)
    children = psutil.Process(job.pid).children(recursive=True)
    job.send_signal(signal.SIGTERM)
    out, err = job.communicate(timeout=60)
    assert (job.returncode, err) == (143, "stopped; the same command continues.\n")
    assert "maps: " in out.splitlines()[-1]  # how far it came
    assert heartbeats(step.location) == []
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
    assert len(step.receipts()) < 4
