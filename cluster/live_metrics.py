"""Counts and times of a running job, on the Prometheus endpoint of Ray's nodes; without Ray there are none.

Ray adds the prefix `ray_` to the names, and `_total` to counters. No result depends on these metrics.
"""

from functools import cache

import ray
from ray.util.metrics import Counter, Histogram

STAGE_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)  # bounds of the histogram


def count_images(step: str, done: int, skipped: int) -> None:
    """Counts the images of a finished unit."""
    _count("ficklenet_images", "images finished", done, step=step)
    _count("ficklenet_images_skipped", "images skipped, with a reason in their unit's receipt", skipped, step=step)


def count_retry(stage: str) -> None:
    """Counts a unit that is started again because its process was lost."""
    _count("ficklenet_unit_retries", "units started again after their process was lost", 1, stage=stage)


def count_late(stage: str) -> None:
    """Counts a unit that is late."""
    _count(
        "ficklenet_units_late",
        "units that took much longer than others, or whose process was stuck",
        1,
        stage=stage,
    )


def observe_stage(stage: str, seconds: float) -> None:
    """Records the time that a unit took in one stage."""
    if ray.is_initialized():
        _histogram("ficklenet_stage_seconds", "time of a unit in one stage").observe(seconds, {"stage": stage})


def _count(name: str, description: str, number: int, **tags: str) -> None:
    if number > 0 and ray.is_initialized():
        _counter(name, description, tuple(tags)).inc(number, tags)


@cache  # one per name and process
def _counter(name: str, description: str, tag_keys: tuple[str, ...]) -> Counter:
    return Counter(name, description, tag_keys)


@cache
def _histogram(name: str, description: str) -> Histogram:
    return Histogram(name, description, boundaries=list(STAGE_SECONDS), tag_keys=("stage",))
