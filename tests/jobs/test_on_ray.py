"""What a Ray computes is what this process computes: maps and seeds bit by bit, trained weights within rounding.

The tests are in one file because a Ray takes seconds to start.
"""

from pathlib import Path

import pytest
import torch

from cluster.connect import connect
from jobs.cli.launch import launch_step
from jobs.run.directory import Run, open_run
from jobs.steps.networks import load_classifier

pytestmark = pytest.mark.timeout(400)
NO_ADDRESS = "cluster.address="


def stored_bytes(run: Run, step: str) -> dict[str, bytes]:
    root = Path(run.data(step).uri) / f"{step}.zarr"
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_classifier(run).state_dict()


@pytest.mark.parametrize("setting", ["autoscaling=true", pytest.param("autoscaling=false", marks=pytest.mark.cluster)])
def test_workers_and_their_number_do_not_change_a_map(finished_maps_run, local_ray, setting, capsys):
    """In an autoscaling cluster, as beside a GPU, separate processes read and write; else an actor does all."""
    expected = stored_bytes(finished_maps_run, "maps")  # of one process
    run = open_run(finished_maps_run.uri, None, ["cluster.max_actors=2", f"cluster.{setting}", NO_ADDRESS])
    launch_step(run, local_ray, "maps", restart=True)
    assert stored_bytes(run, "maps") == expected
    assert ("maps: maps.device: auto, and the cluster has no GPU now" in capsys.readouterr().out) == ("true" in setting)


@pytest.mark.cluster
def test_seeds_from_ray_are_those_made_in_process(seeded_run, local_ray):
    expected = stored_bytes(seeded_run, "seeds")
    launch_step(open_run(seeded_run.uri, None, [NO_ADDRESS]), local_ray, "seeds", restart=True)
    assert stored_bytes(seeded_run, "seeds") == expected


def test_two_workers_train_what_one_trains(trained_run, local_ray):
    settings = ["classifier.epochs=2", "classifier.batch_size=5"]  # odd shares: 3 and 2 images
    with connect("in-process") as connection:
        launch_step(open_run(trained_run.uri, None, settings), connection, "classifier", restart=True)
    expected = weights(trained_run)
    settings += ["cluster.training_workers=2", "classifier.micro_batch_size=2", "classifier.loader_workers=1"]
    two = open_run(trained_run.uri, None, settings)
    launch_step(two, local_ray, "classifier", restart=True)
    # Adam makes a full step of 1e-3 of a gradient that is all rounding, so a few weights may differ; their mean may not
    differences = torch.cat([(value - expected[name]).abs().flatten() for name, value in weights(two).items()])
    assert differences.mean() < 3e-5  # 3e-4 where each worker averages over its own share
