"""The quarantine: a unit whose process keeps dying is tried image by image, then run without the crashing images.

The trial runs in a process of its own, with the resources of one compute actor, after all other units. When that
process dies, only its start has to be repeated. A process can also die because its node does, so every image is tried
twice.
"""

import pickle
import traceback
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError

from cluster.errors import ClusterError
from cluster.fanout import MAX_BEGINS, Payload, Pool, Stages
from cluster.words import plural

LEFT_OUT = "left_out"
"""The key of a unit that says which of its images, by their number in it, stages must skip, and for what reason."""

REASON = f"it ended the process at work on it {MAX_BEGINS} times: a decoder's fault, or too little memory for it"

Compute = Callable[[Payload], Payload]
Trial = Callable[[Any, Payload], object]
"""Does to a unit, without the images it leaves out, all that may end a process; stores nothing."""


def run_quarantined(unit: Payload, num_images: int, stages: Stages, trial: Trial, pool: Pool) -> Payload:
    """Finds the images that crash their process, then runs the unit without them.

    Args:
        unit: as `fan_out` took it.
        num_images: in the unit.
        stages: which skip the images that a unit names under `LEFT_OUT`.
        trial: what is done to each image alone.
        pool: one of its actors' resources are taken.

    Returns:
        The unit's receipt.

    Raises:
        ClusterError: The process still dies, at the unit or while the compute actor is made ready.
        Exception: Whatever a stage raised, as itself.
    """
    process, everyone = _TrialProcess(stages, trial, pool), dict.fromkeys(range(num_images), REASON)
    try:
        crashing = {}
        for number in everyone:
            others = {other: reason for other, reason in everyone.items() if other != number}
            if not process.call("try_out", unit | {LEFT_OUT: others}):
                crashing[number] = REASON
        outcome = process.call("run", unit | {LEFT_OUT: crashing})
    finally:
        process.close()
    if not outcome:
        raise ClusterError(
            f"cluster: unit {unit} ends its process even without the {plural(len(crashing), 'image')} found to do "
            "so alone. Look for lack of memory: take fewer actors on a node, or smaller units."
        )
    return outcome[0]


class _TrialProcess:
    """One worker process at a time; a new one replaces one that died."""

    def __init__(self, stages: Stages, trial: Trial, pool: Pool) -> None:
        reserved: dict[str, Any] = {"num_cpus": pool.cpus_per_actor, "num_gpus": pool.gpus_per_actor}
        self._new_actor = lambda: ray.remote(**reserved, max_restarts=0)(_TrialActor).remote(stages, trial)
        self._actor: Any = None

    def call(self, method: str, unit: Payload) -> list[Payload]:
        """[what the method returns]; [] where its process died every time."""
        for _ in range(MAX_BEGINS):
            if self._actor is None:
                self._start()
            try:
                return [_outcome(getattr(self._actor, method).remote(unit))]
            except RayError:
                self._actor = None
        return []

    def close(self) -> None:
        if self._actor is not None:
            ray.kill(self._actor)

    def _start(self) -> None:
        for _ in range(MAX_BEGINS):
            actor: Any = self._new_actor()
            try:
                _outcome(actor.make_ready.remote())
            except RayError:
                continue
            self._actor = actor
            return
        raise ClusterError(
            f"cluster: a compute actor's process ended {MAX_BEGINS} times while it was made ready. "
            "Look for lack of memory on its node."
        )


def _outcome(reference: Any) -> Payload:
    """What a method of the actor returned, or raises what it raised; a RayError where its process died."""
    result = pickle.loads(ray.get(reference))
    if isinstance(result, Exception):
        raise result
    return result


class _TrialActor:
    """The actor; errors travel as data, so that they arrive as themselves."""

    def __init__(self, stages: Stages, trial: Trial) -> None:
        self._stages, self._trial = stages, trial
        self._compute: Compute | None = None

    def make_ready(self) -> bytes:
        def make() -> None:
            self._compute = self._stages.make_compute()

        return _packed(make)

    def try_out(self, unit: Payload) -> bytes:
        def attempt() -> Payload:
            assert self._compute is not None
            self._trial(self._compute, unit)
            return {}

        return _packed(attempt)

    def run(self, unit: Payload) -> bytes:
        def attempt() -> Payload:
            assert self._compute is not None
            return self._stages.run(self._compute, unit)

        return _packed(attempt)


def _packed(function: Callable[[], object]) -> bytes:
    try:
        result = function()
    except Exception as error:  # noqa: BLE001  # carried on, not swallowed
        error.add_note(f"In quarantine, in a worker:\n{traceback.format_exc()}")
        result = error
    return pickle.dumps(result, protocol=pickle.HIGHEST_PROTOCOL)
