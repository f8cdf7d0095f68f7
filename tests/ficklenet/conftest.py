"""A process that runs scripts under Triton's interpreter, which is chosen when the kernels are defined."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Listener
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVE = """
import sys, traceback
from multiprocessing.connection import Client

with Client(sys.argv[1]) as connection:
    while script := connection.recv():
        try:
            exec(script, {})
        except BaseException:
            connection.send(traceback.format_exc())
        else:
            connection.send("")
"""


@pytest.fixture(scope="session")
def run_interpreted() -> Iterator[Callable[[str], None]]:
    """Runs a script in one process for all tests, which imports torch only once; fails as the script fails."""
    pytest.importorskip("triton", reason="the GPU kernels need Triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    with Listener(family="AF_UNIX") as listener:
        child = subprocess.Popen([sys.executable, "-c", SERVE, str(listener.address)], cwd=ROOT, env=environment)
        with listener.accept() as connection:

            def run(script: str) -> None:
                connection.send(script)
                assert connection.poll(240), "the script has not ended after 240 s"
                if failure := connection.recv():
                    pytest.fail(failure)

            yield run
            connection.send("")
    child.wait(60)
