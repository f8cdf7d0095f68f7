"""The quarantine: a unit whose process keeps dying is tried image by image, then run without the crashing images.

The trial runs in a process of its own, with the resources of one compute actor, after all other units. When that
process dies, only its start has to be repeated. A process can also die because its node does, so every image is tried
twice.
"""

from typing import Any

import ray
from ray.exceptions import RayError

from cluster.errors import ClusterError
from cluster.fanout import Pool
from cluster.ledger import MAX_BEGINS
from cluster.spare_process import Trial, outcome, start_spare_process
from cluster.stages import Compute, Payload, Stages
from cluster.words import plural

__all__ = ["LEFT_OUT", "REASON", "Compute", "Trial", "run_quarantined"]

LEFT_OUT = "left_out"
"""The key of a unit that says which of its images, by their number in it, stages must skip, and for what reason."""

REASON = f"it ended the process at work on it {MAX_BEGINS} times: a decoder's fault, or too little memory for it"


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
        receipts = process.call("run", unit | {LEFT_OUT: crashing})
    finally:
        process.close()
    if not receipts:
        raise ClusterError(
            f"cluster: unit {unit} ends its process even without the {plural(len(crashing), 'image')} found to do "
            "so alone. Look for lack of memory: take fewer actors on a node, or smaller units."
        )
    return receipts[0]


class _TrialProcess:
    """One worker process at a time; a new one replaces one that died."""

    def __init__(self, stages: Stages, trial: Trial, pool: Pool) -> None:
        self._new_actor = lambda: start_spare_process(stages, trial, **pool.resources_of_an_actor)
        self._actor: Any = None

    def call(self, method: str, unit: Payload) -> list[Payload]:
        """[what the method returns]; [] where its process died every time."""
        for _ in range(MAX_BEGINS):
            if self._actor is None:
                self._start()
            try:
                return [outcome(getattr(self._actor, method).remote(unit))]
            except RayError:
                self._actor = None
        return []

    def close(self) -> None:
        if self._actor is not None:
            ray.kill(self._actor)

    def _start(self) -> None:
        for _ in range(MAX_BEGINS):
            actor = self._new_actor()
            try:
                outcome(actor.make_ready.remote())
            except RayError:
                continue
            self._actor = actor
            return
        raise ClusterError(
            f"cluster: a compute actor's process ended {MAX_BEGINS} times while it was made ready. "
            "Look for lack of memory on its node."
        )
