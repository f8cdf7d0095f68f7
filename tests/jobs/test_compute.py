"""Where work is done if the local Ray, which nobody asked for, does not start."""

from functools import partial

import pytest

from cluster.connect import Connection
from cluster.errors import ClusterError
from cluster.fanout import Stages
from jobs.run.config_keys import ClusterConfig
from jobs.steps import compute
from jobs.steps.compute import run_stages


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
