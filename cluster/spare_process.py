"""A worker process outside the pool that runs whole units: for the quarantine, and for units that are late.

Errors are sent as data, so that they arrive unchanged. A RayError means that the process died.
"""

import pickle
import traceback
from collections.abc import Callable
from typing import Any

import ray

from cluster.stages import Compute, Payload, Stages

Trial = Callable[[Any, Payload], object]
"""Does everything with a unit that may end a process, without the images to skip; it stores nothing."""


def start_spare_process(stages: Stages, trial: Trial | None = None, **options: Any) -> Any:
    """The actor of a new process.

    Args:
        options: options of `ray.remote`, such as resources.
    """
    return ray.remote(**options, max_restarts=0)(_SpareActor).remote(stages, trial)


def outcome(reference: Any) -> Payload:
    """The result of a method of the actor. It raises the method's error, or a RayError if the process died."""
    result = pickle.loads(ray.get(reference))
    if isinstance(result, Exception):
        raise result
    return result


class _SpareActor:
    def __init__(self, stages: Stages, trial: Trial | None) -> None:
        self._stages, self._trial = stages, trial
        self._compute: Compute | None = None

    def make_ready(self) -> bytes:
        def make() -> None:
            self._get_compute()

        return _packed(make)

    def try_out(self, unit: Payload) -> bytes:
        trial = self._trial
        assert trial is not None
        return _packed(lambda: trial(self._get_compute(), unit))

    def run(self, unit: Payload) -> bytes:
        return _packed(lambda: self._stages.run(self._get_compute(), unit))

    def _get_compute(self) -> Compute:
        if self._compute is None:
            self._compute = self._stages.make_compute()
        return self._compute


def _packed(function: Callable[[], object]) -> bytes:
    try:
        result = function()
    except Exception as error:  # noqa: BLE001  # passed on, not swallowed
        error.add_note(f"In a spare process:\n{traceback.format_exc()}")
        result = error
    return pickle.dumps(result, protocol=pickle.HIGHEST_PROTOCOL)
