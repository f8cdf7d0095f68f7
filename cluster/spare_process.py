"""A worker process beside the pool that runs whole units: for the quarantine, and for units that are late.

Errors travel as data, so that they arrive as themselves; a RayError means that the process died.
"""

import pickle
import traceback
from collections.abc import Callable
from typing import Any

import ray

from cluster.stages import Compute, Payload, Stages

Trial = Callable[[Any, Payload], object]
"""Does to a unit, without the images it leaves out, all that may end a process; stores nothing."""


def start_spare_process(stages: Stages, trial: Trial | None = None, **options: Any) -> Any:
    """The actor of a new process.

    Args:
        options: of `ray.remote`, such as its resources.
    """
    return ray.remote(**options, max_restarts=0)(_SpareActor).remote(stages, trial)


def outcome(reference: Any) -> Payload:
    """What a method of the actor returned; raises what it raised, and a RayError where its process died."""
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
    except Exception as error:  # noqa: BLE001  # carried on, not swallowed
        error.add_note(f"In a spare process:\n{traceback.format_exc()}")
        result = error
    return pickle.dumps(result, protocol=pickle.HIGHEST_PROTOCOL)
