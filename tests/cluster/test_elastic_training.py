"""Training with a range of workers on a cluster of several nodes, which come and go."""

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from ray import cloudpickle
from ray._private import ray_constants
from ray.cluster_utils import Cluster

from cluster.connect import connect
from cluster.errors import ClusterError
from cluster.training import train
from cluster.training_context import TrainingContext

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test module

PATIENCE = 150  # seconds until a change of the cluster must show


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head and another node of one CPU each, on the loopback interface."""
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
    monkeypatch.setenv(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, "0")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        with connect(cluster.address):
            yield cluster
    finally:
        cluster.shutdown()


def count_steps(context: TrainingContext, config: dict[str, Any]) -> None:
    """Adds 1 to a sum in every step, over all workers together, until a file appears."""
    stored = context.latest()
    total = 0 if stored is None else int(stored)
    while True:
        share = torch.tensor([1 / context.world_size])
        if context.world_size > 1:
            torch.distributed.all_reduce(share)
        else:
            share = torch.ones(1)
        total += round(float(share))
        is_over = any(context.gather(Path(config["stop"]).exists()))
        context.report({"workers": context.world_size, "total": total}, str(total).encode())
        if is_over:
            return
        time.sleep(0.2)


@pytest.mark.timeout(600)
def test_number_of_workers_follows_the_nodes_and_training_goes_on(two_nodes: Cluster, tmp_path: Path) -> None:
    reports: list[dict[str, Any]] = []
    with ThreadPoolExecutor(1) as thread:
        training = thread.submit(
            train,
            count_steps,
            {"stop": str(tmp_path / "stop")},
            num_workers=(1, 2),
            use_gpu=False,
            storage_uri=str(tmp_path / "run"),
            name="count",
            resize_seconds=2.0,
            on_report=reports.append,
        )
        try:
            wait_for(lambda: workers_of(reports) == 2, training)
            (node,) = two_nodes.worker_nodes
            two_nodes.remove_node(node, allow_graceful=False)
            wait_for(lambda: workers_of(reports) == 1, training)
            two_nodes.add_node(num_cpus=1)
            wait_for(lambda: workers_of(reports) == 2, training)
        finally:
            (tmp_path / "stop").touch()
        last = training.result(timeout=PATIENCE)
    totals = [report["total"] for report in reports]
    assert last["total"] == totals[-1]
    assert sorted(set(totals)) == list(range(1, totals[-1] + 1)), "a step is missing"
    repeated = len(totals) - len(set(totals))
    assert repeated <= 2, "each change may cost the work since the last checkpoint only"


def test_fewer_nodes_than_the_least_of_the_range_are_refused(two_nodes: Cluster, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="3 training workers need 3 CPUs, but the cluster has 2"):
        train(count_steps, {}, num_workers=(3, 5), use_gpu=False, storage_uri=str(tmp_path), name="count")


def workers_of(reports: list[dict[str, Any]]) -> int:
    return reports[-1]["workers"] if reports else 0


def wait_for(condition: Callable[[], bool], training: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if training.done():
            training.result()  # its error
        assert time.monotonic() < deadline, "the number of workers did not change"
        time.sleep(0.2)
