"""Where work is done if the local Ray, which nobody asked for, does not start, and what is printed while it starts."""

import time
from functools import partial

import pytest

from cluster.connect import Connection
from cluster.errors import ClusterError
from cluster.fanout import Pool, Stages
from jobs.run.config_keys import ClusterConfig
from jobs.steps import compute
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
        time.sleep(0.3)
        yield {"value": 7}

    monkeypatch.setattr(compute, "NOTICE_SECONDS", 0.05)
    monkeypatch.setattr(compute, "fan_out", slow)
    monkeypatch.setattr(compute, "resources_if_running", lambda: Connection(8, 0, 2))
    assert results(Connection(8, 0, 2)) == [7]
    assert capsys.readouterr().out.startswith("no unit is finished after 0 s: workers are starting")
    monkeypatch.setattr(compute, "NOTICE_SECONDS", 60.0)
    assert results(Connection(8, 0, 2)) == [7]
    assert capsys.readouterr().out == ""


def test_a_missing_gpu_is_named():
    on_gpu = Pool(gpus_per_actor=1.0, autoscaling=True)
    assert "a worker needs 1 GPU, the cluster has 8 CPUs and 0 GPUs now. The launch waits until nodes" in waiting_for(
        on_gpu, Connection(8, 0, 2)
    )
    assert "workers are starting" in waiting_for(on_gpu, Connection(8, 1, 2))
    assert "Ray is still starting" in waiting_for(on_gpu, None)


def test_a_slow_start_on_one_machine_names_the_way_without_ray():
    without = "If this machine is busy, stop the command and give --set cluster.address=in-process"
    for alone in (Connection(2, 0, 1), None):
        assert without in waiting_for(Pool(), alone)
    assert without not in waiting_for(Pool(), Connection(8, 0, 2))
