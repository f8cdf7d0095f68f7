"""Units that keep ending their processes: image by image, only the killers are left out."""

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from ray import cloudpickle

from cluster.connect import Connection
from cluster.errors import ClusterError
from cluster.fanout import MAX_BEGINS, Payload, Pool, Stages, fan_out
from cluster.quarantine import LEFT_OUT, REASON, run_quarantined

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")  # Ray Data warns of its own settings

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test module

UNIT = {"unit": 7}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def read(killers: dict[int, str], folder: Path, unit: Payload) -> Payload:
    """Four images, of which those in `killers` end the process or raise."""
    numbers = [number for number in range(4) if number not in unit.get(LEFT_OUT, {})]
    for number in numbers:
        with open(folder / str(number), "a") as tries:
            tries.write(".")
        match killers.get(number):
            case "die":
                die()
            case "die once" if (folder / str(number)).read_text() == ".":
                die()
            case "raise":
                raise ValueError(f"image {number}: no such thing.")
    if killers.get(-1) == "die together" and len(numbers) > 1:
        die()
    return unit | {"read": numbers}


def compute(unit: Payload) -> Payload:
    return unit | {"computed": unit["read"]}


def write(unit: Payload) -> Payload:
    return {"unit": unit["unit"], "done": unit["computed"], "skipped": unit.get(LEFT_OUT, {})}


def stages_of(killers: dict[int, str], folder: Path, make: Callable[[], object] = lambda: compute) -> Stages:
    return Stages(make, partial(read, killers, folder), write)


def quarantined(stages: Stages, unit: Payload = UNIT) -> Payload:
    def trial(compute_unit: Callable[[Payload], Payload], unit: Payload) -> None:
        compute_unit(stages.read(unit))

    return run_quarantined(unit, 4, stages, trial, Pool())


def test_only_the_images_that_kill_are_left_out_with_the_reason(local_ray: Connection, tmp_path: Path) -> None:
    receipt = quarantined(stages_of({1: "die", 3: "die"}, tmp_path))
    assert receipt == {"unit": 7, "done": [0, 2], "skipped": {1: REASON, 3: REASON}}
    assert len((tmp_path / "1").read_text()) == MAX_BEGINS


@pytest.mark.cluster
def test_an_image_whose_process_dies_once_is_kept(local_ray: Connection, tmp_path: Path) -> None:
    assert quarantined(stages_of({2: "die once"}, tmp_path))["done"] == [0, 1, 2, 3]


def test_an_error_comes_back_as_itself(local_ray: Connection, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^image 2: no such thing\."):
        quarantined(stages_of({2: "raise"}, tmp_path))


@pytest.mark.cluster
def test_images_that_kill_only_together_stop_with_the_units_name(local_ray: Connection, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"unit \{'unit': 7\} ends its process even without the 0 images"):
        quarantined(stages_of({-1: "die together"}, tmp_path))


@pytest.mark.cluster
def test_an_actor_that_cannot_be_made_ready_makes_no_image_a_killer(local_ray: Connection, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="while it started"):
        quarantined(stages_of({}, tmp_path, die))


@pytest.mark.cluster
def test_poison_waits_until_the_pool_is_free(local_ray: Connection, tmp_path: Path) -> None:
    stages = stages_of({1: "die"}, tmp_path)
    whole = Pool(min_actors=3, max_actors=3)  # with its reading task it takes all four CPUs
    units = [{"unit": 0}, {"unit": 1, LEFT_OUT: {1: "known"}}, {"unit": 2, LEFT_OUT: {1: "known"}}]
    receipts = list(fan_out(units, stages, whole, on_poison=partial(quarantined, stages)))
    assert [receipt["unit"] for receipt in receipts][-1] == 0
    assert receipts[-1]["done"] == [0, 2, 3]
