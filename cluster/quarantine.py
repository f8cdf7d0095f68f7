"""The quarantine: a unit that keeps ending its processes is tried image by image, and run without the culprits.

It happens in a worker process of its own, with what a compute actor reserves, after all other units; the death of
that process costs no more than its start. A process may also end for its node's sake, so every image has two chances.
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
"""What may end a process, done by an actor's compute to a unit but for the images it leaves out; keeps nothing."""


def run_quarantined(unit: Payload, num_images: int, stages: Stages, trial: Trial, pool: Pool) -> Payload:
    """Finds the images that end their process, then runs the unit without them.

    Args:
        unit: as `fan_out` took it.
        num_images: in the unit.
        stages: which skip the images that a unit names under `LEFT_OUT`.
        trial: what is done to each image alone.
        pool: one of its actors' resources are taken.

    Returns:
        The unit's receipt.

    Raises:
        ClusterError: The unit, or the making of a compute actor, ends its process even so.
        Exception: Whatever a stage raised, as itself.
    """
    cell, everyone = _Cell(stages, trial, pool), dict.fromkeys(range(num_images), REASON)
    try:
        culprits = {}
        for number in everyone:
            others = {other: reason for other, reason in everyone.items() if other != number}
            if not cell.call("try_out", unit | {LEFT_OUT: others}):
                culprits[number] = REASON
        outcome = cell.call("run", unit | {LEFT_OUT: culprits})
    finally:
        cell.close()
    if not outcome:
        raise ClusterError(
            f"cluster: unit {unit} ends its process even without the {plural(len(culprits), 'image')} found to do "
            "so alone. Look for lack of memory: take fewer actors on a node, or smaller units."
        )
    return outcome[0]


class _Cell:
    """One worker process at a time, and a new one where the last has died."""

    def __init__(self, stages: Stages, trial: Trial, pool: Pool) -> None:
        reserved: dict[str, Any] = {"num_cpus": pool.cpus_per_actor, "num_gpus": pool.gpus_per_actor}
        self._new_inmate = lambda: ray.remote(**reserved, max_restarts=0)(_Inmate).remote(stages, trial)
        self._inmate: Any = None

    def call(self, method: str, unit: Payload) -> list[Payload]:
        """[what the method returns]; [] where its process died every time."""
        for _ in range(MAX_BEGINS):
            if self._inmate is None:
                self._start()
            try:
                return [_outcome(getattr(self._inmate, method).remote(unit))]
            except RayError:
                self._inmate = None
        return []

    def close(self) -> None:
        if self._inmate is not None:
            ray.kill(self._inmate)

    def _start(self) -> None:
        for _ in range(MAX_BEGINS):
            inmate: Any = self._new_inmate()
            try:
                _outcome(inmate.make_ready.remote())
            except RayError:
                continue
            self._inmate = inmate
            return
        raise ClusterError(
            f"cluster: a compute actor's process ended {MAX_BEGINS} times while it was made ready. "
            "Look for lack of memory on its node."
        )


def _outcome(reference: Any) -> Payload:
    """What a method of the inmate returned, or raises what it raised; a RayError where its process died."""
    result = pickle.loads(ray.get(reference))
    if isinstance(result, Exception):
        raise result
    return result


class _Inmate:
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
            return self._stages.write(self._compute(self._stages.read(unit)))

        return _packed(attempt)


def _packed(function: Callable[[], object]) -> bytes:
    try:
        result = function()
    except Exception as error:  # noqa: BLE001  # carried on, not swallowed
        error.add_note(f"In quarantine, in a worker:\n{traceback.format_exc()}")
        result = error
    return pickle.dumps(result, protocol=pickle.HIGHEST_PROTOCOL)
