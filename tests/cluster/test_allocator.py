"""Freed memory that a process keeps."""

import subprocess
import sys

import pytest

ARRAYS = """
import resource, sys
import numpy as np
from cluster.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        first, second = np.ones(1 << 20, np.uint8), np.ones(3 << 20, np.uint8)
        del first, second
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

without = faults()
keep_freed_memory()
print(without, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_an_array_gets_the_memory_of_the_last_one() -> None:
    done = subprocess.run([sys.executable, "-c", ARRAYS], capture_output=True, text=True, check=True)
    without, kept = map(int, done.stdout.split())
    assert kept < without / 5, "the system clears the pages of every array"
