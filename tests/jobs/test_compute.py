"""Where work is done if the local Ray, which nobody asked for, does not start, and what is printed while it starts."""

import time
from functools import partial

import pytest

from cluster.connect import Connection, connect
from cluster.errors import ClusterError
from cluster.fanout import Stages
from cluster.training_context import require_local_folder
from jobs import aggregate_seeds
from jobs.cli import plans
from jobs.run.config_keys import ClusterConfig, Config
from jobs.run.directory import Run, open_run, record_run
from jobs.run.steps import STEPS
from jobs.steps import compute, machine_load, waiting
from jobs.steps.compute import actor_pool, note_on_cpus, run_stages
from jobs.steps.waiting import waiting_for
from storage.location import Location


def double(unit):
    return {"value": 2 * unit["value"]}


def results(connection: Connection) -> list[int]:
    stages = Stages(partial(lambda: double))
    found = run_stages([{"value": 1}, {"value": 2}], stages, ClusterConfig(), connection, "cpu")
    return [each["value"] for each in found]


def test_work_goes_on_in_this_process_if_the_optional_ray_does_not_start(monkeypatch, capsys):
    def refuse(*_, **__):
        raise Exception("The current node timed out during startup.\nSee the logs.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("cluster.connect._promised", [])
    for name, function in (("init", refuse), ("is_initialized", lambda: False), ("shutdown", lambda: None)):
        monkeypatch.setattr(f"ray.{name}", function)
    with connect() as connection:
        assert connection.is_optional
        for _ in range(3):  # the steps of a launch
            assert results(connection) == [2, 4]
    assert capsys.readouterr().out == (
        "The local Ray did not start (The current node timed out during startup), so the work goes on in this process, "
        "on one core.\n"
    )


def test_no_ray_is_started_for_no_work(monkeypatch):
    monkeypatch.setattr(compute, "start_optional_ray", lambda _: pytest.fail("a Ray was started"))
    optional = Connection(2, 0, num_nodes=1, is_optional=True)
    assert list(run_stages([], Stages(partial(lambda: double)), ClusterConfig(), optional, "cpu")) == []


def test_a_ray_that_was_asked_for_is_needed(monkeypatch):
    def refuse(*_, **__):
        raise ClusterError("cluster: it did not start.")

    monkeypatch.setattr(compute, "fan_out", refuse)
    with pytest.raises(ClusterError):
        results(Connection(2, 0, 1, is_to_start=True))


def test_a_launch_that_waits_says_for_what_again_and_again(monkeypatch, capsys):
    def slow(*_, **__):
        time.sleep(0.4)
        yield {"value": 7}

    monkeypatch.setattr(waiting, "FIRST_SECONDS", 0.05)
    monkeypatch.setattr(compute, "fan_out", slow)
    monkeypatch.setattr(waiting, "resources_if_running", lambda: Connection(8, 0, 2))
    assert results(Connection(8, 0, 2)) == [7]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 2
    assert all(line.startswith("no unit is finished after 0 s: workers are starting") for line in lines)
    monkeypatch.setattr(waiting, "FIRST_SECONDS", 60.0)
    assert results(Connection(8, 0, 2)) == [7]
    assert capsys.readouterr().out == ""


def test_a_training_whose_workers_start_late_says_so_until_they_have_started(monkeypatch, capsys):
    monkeypatch.setattr(waiting, "FIRST_SECONDS", 0.05)
    monkeypatch.setattr(waiting, "resources_if_running", lambda: Connection(8, 0, 2))
    with waiting.notices("no worker has started", "the training needs", 2, 2, come="they have started") as has_started:
        time.sleep(0.1)
        has_started()
        time.sleep(0.2)
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("no worker has started after 0 s: the training needs 2 GPUs, the cluster has 8 CPUs and 0")
    assert last == "they have started after 0 s."
    with waiting.notices("no worker has started", "the training needs", 2, 2, come="they have started"):
        time.sleep(0.1)  # an error ends the training before
    assert "they have" not in capsys.readouterr().out


def test_a_missing_gpu_is_named():
    assert waiting_for("a worker needs", 1.0, 1.0, Connection(8, 0, 2)) == (
        "a worker needs 1 GPU, the cluster has 8 CPUs and 0 GPUs now. The launch waits for nodes, without a time limit."
    )
    assert "workers are starting" in waiting_for("a worker needs", 1.0, 1.0, Connection(8, 1, 2))
    assert waiting_for("the training needs", 7.0, 1.0, Connection(4, 1, 1)).startswith(
        "the training needs 1 GPU and 7 CPUs, the cluster has 4 CPUs and 1 GPU now."
    )
    assert "Ray is still starting" in waiting_for("a worker needs", 1.0, 1.0, None)


def set_load(monkeypatch, load):
    monkeypatch.setattr(machine_load.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(machine_load.os, "getloadavg", lambda: (load, 9.0, 8.0))


def test_a_slow_start_on_a_busy_machine_names_the_way_without_ray(monkeypatch):
    set_load(monkeypatch, 13.6)
    without = " You can stop the command and give --set cluster.address=in-process, which works without Ray."
    own = Connection(2, 0, 1, is_own=True)
    for there in (own, None):
        assert waiting_for("a worker needs", 1.0, 0.0, there).endswith(without)
        assert "in-process" not in waiting_for("the training needs", 1.0, 0.0, there, needs_ray=True)
    for there in (Connection(8, 0, 1), Connection(8, 0, 2), Connection(16, 1, 1, is_own=True)):
        assert "in-process" not in waiting_for("a worker needs", 1.0, 0.0, there)
    set_load(monkeypatch, 2.9)
    assert "in-process" not in waiting_for("a worker needs", 1.0, 0.0, own)


def test_steps_on_cpus_have_their_own_number_of_actors():
    head_alone = Connection(0, 0, 1)
    config = ClusterConfig(autoscaling=True, max_actors=8, max_cpu_actors=32)
    assert actor_pool(config, head_alone, "cuda").max_actors == 8
    assert actor_pool(config, head_alone, "cpu").max_actors == 32
    assert actor_pool(ClusterConfig(autoscaling=True, max_actors=8), head_alone, "cpu").max_actors == 8


def test_actors_that_work_mostly_on_their_cpu_share_a_gpu():
    local, autoscaling = ClusterConfig(), ClusterConfig(autoscaling=True, max_actors=8)
    for there, actors in (
        (Connection(16, 1, 1), 4),
        (Connection(4, 1, 1), 3),
        (Connection(2, 1, 1), 1),
        (Connection(64, 8, 8), 4 * 8),
    ):
        pool = actor_pool(local, there, "cuda", 4)
        assert pool.min_actors == pool.max_actors == actors
        pool.require(there)
    pool = actor_pool(autoscaling, Connection(0, 0, 1), "cuda", 4)
    assert (pool.min_actors, pool.max_actors, pool.gpus_per_actor) == (1, 24, 0.3333)
    assert actor_pool(local, Connection(4, 1, 1), "cuda", 4).gpus_per_actor * 3 <= 1
    assert actor_pool(local, Connection(16, 1, 1), "cuda") == actor_pool(local, Connection(2, 1, 1), "cuda")
    assert actor_pool(local, Connection(16, 1, 1), "cpu", 4) == actor_pool(local, Connection(16, 1, 1), "cpu")
    assert {row.name for row in STEPS if row.actors_per_gpu > 1} == {"cells", "refined"}


def test_a_step_on_cpus_of_a_cluster_whose_gpus_are_to_come_says_so():
    cluster, head_alone = ClusterConfig(autoscaling=True), Connection(0, 0, 1)
    config = Config(cluster=cluster)
    assert note_on_cpus(config, head_alone, "segmenter.device") == (
        "segmenter.device: auto, and the cluster has no GPU now, so this step computes on CPUs, to its end. To wait "
        "for a GPU node instead: --set segmenter.device=cuda."
    )
    on_cpus = Config(cluster=cluster, maps={"device": "cpu"})
    assert not note_on_cpus(on_cpus, head_alone, "maps.device") and note_on_cpus(
        on_cpus, head_alone, "classifier.device"
    )
    for there, given in (
        (Connection(8, 1, 2), config),
        (Connection(2, 0, 1, in_process=True), config),
        (head_alone, Config()),
    ):
        assert note_on_cpus(given, there, "maps.device") == ""
    assert note_on_cpus(config, head_alone, "") == ""  # the pseudo-labels: always on CPUs


def test_a_node_of_an_autoscaling_cluster_has_no_more_actors_than_cpus_and_one():
    """The head has no CPU, so the cluster's mean says nothing about the nodes to come."""
    for there in (Connection(0, 0, 1), Connection(8, 0, 2)):
        pool = actor_pool(ClusterConfig(autoscaling=True, max_cpu_actors=32), there, "cpu")
        assert 8 <= 8 / pool.cpus_per_actor < 10


def test_a_launch_that_waits_says_that_the_machine_is_busy(monkeypatch):
    there = Connection(2, 0, 1)
    set_load(monkeypatch, 13.6)
    busy = " This machine has 2 CPUs and a load average of 13.6: other programs use it too, so expect more time."
    for connection in (there, None):
        assert busy in waiting_for("a worker needs", 1.0, 0.0, connection)
    set_load(monkeypatch, 2.9)
    assert "load average" not in waiting_for("a worker needs", 1.0, 0.0, there)


def test_a_dry_run_on_a_busy_machine_says_so_before_it_times_the_steps(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(plans, "can_be_timed_here", lambda *_: True)
    monkeypatch.setattr(plans, "estimate_steps", lambda *_, **__: plans.Estimate({}, 0.0, 0.0))
    monkeypatch.setattr(plans, "busy_in_words", lambda: "Other programs use it.")
    run = Run(Location(str(tmp_path)), Config())
    plans._estimate(run, Connection(2, 0, 1), [], "pipeline", is_whole=True)
    assert capsys.readouterr().out.endswith("and the time to start. Other programs use it.\n")


NOTE = "cluster: the run has recorded cluster.address=in-process, so this process does the work"


def test_a_launch_says_that_the_run_has_recorded_that_no_ray_is_used(finished_maps_run, tmp_path, capsys):
    given = ["cluster.address=in-process"]
    (file := tmp_path / "own.toml").write_text('[cluster]\naddress = "in-process"\n')
    for run in (open_run(finished_maps_run.uri, None, given), open_run(finished_maps_run.uri, str(file))):
        with compute.connected(run):
            assert NOTE not in capsys.readouterr().out
    aggregate_seeds.main(["--run", finished_maps_run.uri])
    assert NOTE in (printed := capsys.readouterr().out) and "add '--set cluster.address='" in printed
    with compute.connected(open_run(finished_maps_run.uri, None, ["cluster.address="])) as connection:
        assert not connection.in_process and NOTE not in capsys.readouterr().out


def test_a_launch_does_not_record_which_ray_it_used(finished_maps_run, tmp_path, capsys):
    record_run(open_run(finished_maps_run.uri, None, ["cluster.address="]))  # as the preparation does
    (file := tmp_path / "own.toml").write_text('[cluster]\naddress = "in-process"\n')
    for _ in range(2):
        aggregate_seeds.main(["--run", finished_maps_run.uri, "--config", str(file), "--set", "cluster.max_actors=3"])
    cluster = open_run(finished_maps_run.uri).config.cluster
    assert cluster.address == "" and cluster.max_actors == 3


def test_a_training_without_ray_on_s3_names_the_setting_that_uses_ray():
    with pytest.raises(ClusterError, match=r"with '--set cluster.address=', also if the run has recorded"):
        require_local_folder("s3://bucket/run/segmenter")
