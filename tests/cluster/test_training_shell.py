"""The training shell on a real Ray Train, and in-process."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from ray import cloudpickle

from cluster.connect import Connection
from cluster.errors import ClusterError
from cluster.training import TrainingContext, is_begun_on_ray, train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")  # Ray Data warns of its own settings

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test module

NUM_STEPS = 5
BATCH = 8


def fit_a_line(context: TrainingContext, config: dict[str, Any]) -> None:
    """A small regression whose step k sees the same batch whatever the number of workers."""
    model = context.wrap(torch.nn.Linear(4, 1, bias=False))
    weight = next(model.parameters())
    stored = context.latest()
    first, weights = (0, np.zeros(4, np.float32)) if stored is None else unpack(stored)
    with torch.no_grad():
        weight.copy_(torch.from_numpy(weights))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(first + 1, NUM_STEPS + 1):
        inputs = torch.randn(BATCH, 4, generator=torch.Generator().manual_seed(step))
        mine = slice(context.rank, None, context.world_size)
        loss = (model(inputs[mine]) - inputs[mine].sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        misbehave(context, config, step)
        weights = weight.detach().numpy().ravel()
        context.report(
            {"step": step, "workers": context.world_size, "first": first + 1, "weights": weights.tolist()},
            pack(step, weights),
        )


def misbehave(context: TrainingContext, config: dict[str, Any], step: int) -> None:
    is_last_rank = context.rank == context.world_size - 1
    mark = Path(config.get("mark", "/nonexistent"))
    if config.get("fault_at") != step or not is_last_rank or mark.exists():
        return
    mark.touch()
    if config["fault"] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    raise ValueError("the loss is not a number; lower the learning rate.")


def pack(step: int, weights: np.ndarray) -> bytes:
    return step.to_bytes(4, "little") + weights.tobytes()


def unpack(checkpoint: bytes) -> tuple[int, np.ndarray]:
    return int.from_bytes(checkpoint[:4], "little"), np.frombuffer(checkpoint[4:], np.float32).copy()


def train_here(folder: Path, **config: Any) -> tuple[dict[str, Any], list[int]]:
    """Trains in-process; the last metrics and the steps reported."""
    steps: list[int] = []
    last = train(
        fit_a_line, config, num_workers=1, use_gpu=False, storage_uri=str(folder), name="line", in_process=True,
        on_report=lambda metrics: steps.append(metrics["step"]),
    )  # fmt: skip
    return last, steps


def train_on_ray(folder: Path, num_workers: int, **config: Any) -> tuple[dict[str, Any], list[int]]:
    """The same with Ray Train."""
    steps: list[int] = []
    started: list[int] = []  # the reports before each start of a worker
    last = train(
        fit_a_line, config, num_workers=num_workers, use_gpu=False, storage_uri=str(folder), name="line",
        on_report=lambda metrics: steps.append(metrics["step"]), on_start=lambda: started.append(len(steps)),
    )  # fmt: skip
    assert started[:num_workers] == [0] * num_workers
    return last, steps


def test_in_process_training_reports_every_step_and_resumes_from_the_latest(tmp_path: Path) -> None:
    expected, steps = train_here(tmp_path / "whole")
    assert steps == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="not a number"):
        train_here(tmp_path / "broken", fault="raise", fault_at=4, mark=str(tmp_path / "mark"))
    resumed, steps = train_here(tmp_path / "broken", fault="raise", fault_at=4, mark=str(tmp_path / "mark"))
    assert steps == [4, 5]
    assert resumed["weights"] == expected["weights"]


@pytest.mark.cluster
def test_a_workers_error_comes_back_as_itself_and_the_same_name_resumes(local_ray: Connection, tmp_path: Path) -> None:
    fault = {"fault": "raise", "fault_at": 4, "mark": str(tmp_path / "mark")}
    with pytest.raises(ValueError) as caught:
        train_on_ray(tmp_path / "ray", 1, **fault)
    assert type(caught.value) is ValueError
    assert str(caught.value) == "the loss is not a number; lower the learning rate."
    resumed, steps = train_on_ray(tmp_path / "ray", 1, **fault)
    assert steps == [4, 5]
    assert resumed["weights"] == train_here(tmp_path / "here")[0]["weights"]


@pytest.mark.cluster
def test_two_workers_learn_what_one_does_and_go_on_when_one_is_killed(local_ray: Connection, tmp_path: Path) -> None:
    last, steps = train_on_ray(tmp_path / "ray", 2, fault="die", fault_at=4, mark=str(tmp_path / "mark"))
    assert last["workers"] == 2
    assert last["first"] > 1, "started anew instead of from the latest checkpoint"
    assert sorted(set(steps)) == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(last["weights"], train_here(tmp_path / "here")[0]["weights"], rtol=1e-5)


def report_listeners(context: TrainingContext, config: dict[str, Any]) -> None:
    """The addresses on which the workers' processes and all others of this Ray listen, by rank 0."""
    ours = psutil.Process(config["driver"]).children(recursive=True)
    pids = {process.pid for process in ours}
    connections = [each for each in psutil.net_connections("inet") if each.status == psutil.CONN_LISTEN]
    listening = sorted({each.laddr.ip for each in connections if each.pid in pids})
    mine = [each.laddr.ip for each in connections if each.pid == os.getpid()]
    context.report({"workers": len(context.gather(os.getpid())), "listening": listening, "mine": mine})


LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@pytest.mark.cluster
@pytest.mark.parametrize("num_workers", [1, 2])
def test_training_on_an_own_ray_listens_on_loopback_alone(
    local_ray: Connection, tmp_path: Path, num_workers: int
) -> None:
    last = train(
        report_listeners, {"driver": os.getpid()}, num_workers=num_workers, use_gpu=False,
        storage_uri=str(tmp_path), name="listeners",
    )  # fmt: skip
    assert last["workers"] == num_workers
    assert last["mine"], "rank 0 has a store"
    assert set(last["listening"]) <= LOOPBACK, last["listening"]


def test_more_workers_than_the_cluster_has_are_refused(local_ray: Connection, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"9 training workers need 9 CPUs, but the cluster has 4"):
        train_on_ray(tmp_path, 9)


def test_in_process_training_refuses_remote_storage() -> None:
    with pytest.raises(ClusterError, match="'s3://bucket/run'"):
        train(fit_a_line, {}, num_workers=1, use_gpu=False, storage_uri="s3://bucket/run", name="x", in_process=True)


@pytest.mark.cluster
def test_ray_continues_a_training_that_began_in_one_process(local_ray: Connection, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a number"):
        train_here(tmp_path, fault="raise", fault_at=4, mark=str(tmp_path / "mark"))
    assert not is_begun_on_ray(str(tmp_path), "line")
    _, steps = train_on_ray(tmp_path, 1)
    assert steps == [4, 5]
    assert is_begun_on_ray(str(tmp_path), "line")
