"""No process of a job on an own local Ray listens beyond this machine, whatever kind of job it is."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import psutil
import pytest

from cluster.connect import connect, resources
from jobs.cli.launch import launch_step
from jobs.evaluation.measuring import evaluate_labels
from jobs.run.directory import open_run

LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


@contextmanager
def listeners() -> Iterator[dict[tuple[str, int], str]]:
    """Everything that this process and its children listen on during the block: (address, port) -> process."""
    found: dict[tuple[str, int], str] = {}
    has_ended = threading.Event()

    def look() -> None:
        while not has_ended.wait(0.2):
            own = {child.pid: child for child in psutil.Process().children(recursive=True)} | {
                os.getpid(): psutil.Process()
            }
            for connection in psutil.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN and connection.pid in own:
                    try:
                        name = " ".join(own[connection.pid].cmdline()[:2])
                    except psutil.Error:
                        name = "a process that has ended"
                    found[connection.laddr.ip, connection.laddr.port] = name

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        has_ended.set()
        thread.join()


@pytest.mark.cluster
def test_no_job_on_an_own_ray_listens_beyond_loopback(finished_maps_run):
    run = open_run(finished_maps_run.uri)
    cluster = run.config.cluster.model_copy(update={"address": "local", "training_workers": 2})
    run = replace(run, config=run.config.model_copy(update={"cluster": cluster}))
    with connect("local", num_cpus=4) as connection, listeners() as found:
        resources()  # starts it
        launch_step(run, connection, "classifier", restart=True)
        for step in ("maps", "seeds", "pseudo_labels", "segmenter", "retrained", "predictions"):
            launch_step(run, connection, step, restart=step == "maps")
        evaluate_labels(run, connection, [], "all", ("map",), deterministic=False)
    assert len(found) > 5, found  # Ray's own, and the store of the training workers
    beyond = {place: name for place, name in found.items() if place[0] not in LOOPBACK}
    assert not beyond, beyond
