"""Hosts that are cut off from each other and from the storage, and joined again: partition.py, where it can run."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "partition.py"


@pytest.mark.cluster
@pytest.mark.timeout(3600)
def test_hosts_that_were_cut_off_end_in_the_bytes_of_an_undisturbed_run():
    ended = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    if ended.returncode == 1 and ended.stderr.startswith("partition: "):
        pytest.skip(ended.stderr.strip())
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "the bytes of an undisturbed run in every trial." in ended.stdout
