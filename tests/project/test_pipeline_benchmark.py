"""The pipeline's benchmark runs from end to end, in small."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("part", "line"),
    [("stages", "backbone | "), ("steady", "bare loop / Ray: ")],
)
def test_a_part_measures_a_small_run(part, line):
    command = [sys.executable, "tests/benchmarks/pipeline.py", part]
    command += ["--images", "12", "--unit-size", "2", "--size", "65", "--samples", "5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    assert any(printed.startswith(line) for printed in done.stdout.splitlines())
