"""Where work is done if the local Ray, which nobody asked for, does not start, and what is printed while it starts."""

import time
from functools import partial

import pytest

from cluster.connect import Connection
from cluster.errors import ClusterError
from cluster.fanout import Pool, Stages
from jobs.run.config_keys import ClusterConfig
from jobs.steps import compute, machine_load
from jobs.steps.compute import run_stages, waiting_for


def double(unit):
    return {"value": 2 * unit["value"]}


def results(connection: Connection) -> list[int]:
    stages = Stages(partial(lambda: double))
    found = run_stages([{"value": 1}, {"value": 2}], stages, ClusterConfig(), connection, "cpu")
    return [each["value"] for each in found]


def test_work_goes_on_in_this_process_if_the_optional_ray_does_not_start(monkeypatch, capsys):
    monkeypatch.setattr(compute, "start_optional_ray", lambda: "cluster: it did not start.")
    assert results(Connection(2, 0, 1, is_to_start=True, is_optional=True)) == [2, 4]
    assert capsys.readouterr().out == "cluster: it did not start. Now the work goes on in this process, on one core.\n"


def test_a_ray_that_was_asked_for_is_needed(monkeypatch):
    def refuse(*_, **__):
        raise ClusterError("cluster: it did not start.")

    monkeypatch.setattr(compute, "fan_out", refuse)
    with pytest.raises(ClusterError):
        results(Connection(2, 0, 1, is_to_start=True))


def test_a_launch_that_waits_says_for_what(monkeypatch, capsys):
    def slow(*_, **__):
        time.sleep(0.5)
        yield {"value": 7}

    monkeypatch.setattr(compute, "NOTICE_SECONDS", 0.05)
    monkeypatch.setattr(compute, "fan_out", slow)
    monkeypatch.setattr(compute, "resources_if_running", lambda: Connection(8, 0, 2))
    assert results(Connection(8, 0, 2)) == [7]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("no unit is finished after 0 s: workers are starting")
    assert 2 <= len(printed) <= 4  # after 0.05, 0.1, 0.2 and 0.4 s
    monkeypatch.setattr(compute, "NOTICE_SECONDS", 60.0)
    assert results(Connection(8, 0, 2)) == [7]
    assert capsys.readouterr().out == ""


def test_a_missing_gpu_is_named():
    on_gpu = Pool(gpus_per_actor=1.0, autoscaling=True)
    assert "a worker needs 1 GPU, the cluster has 8 CPUs and 0 GPUs now. The launch waits until nodes" in waiting_for(
        on_gpu, Connection(8, 0, 2), 30.0
    )
    assert "workers are starting" in waiting_for(on_gpu, Connection(8, 1, 2), 30.0)
    assert "Ray is still starting" in waiting_for(on_gpu, None, 30.0)


def test_a_launch_that_waits_says_how_long_and_that_the_machine_is_busy(monkeypatch):
    pool, there = Pool(), Connection(2, 0, 1)
    monkeypatch.setattr(machine_load.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(machine_load.os, "getloadavg", lambda: (13.6, 9.0, 8.0))
    waiting = waiting_for(pool, there, 240.0)
    assert waiting.startswith("no unit is finished after 4 min 0 s: workers are starting")
    assert "This machine has 2 CPUs and a load average of 13.6: other programs use it too" in waiting
    monkeypatch.setattr(machine_load.os, "getloadavg", lambda: (2.9, 9.0, 8.0))
    assert "load average" not in waiting_for(pool, there, 240.0)
