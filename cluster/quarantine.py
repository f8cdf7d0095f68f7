"""The quarantine: a unit whose process repeatedly dies is tried image by image, then run without the crashing images.

The trial runs after all other units, in a separate process with the resources of one compute actor. If this process
dies, only its start must be repeated. A process can also die because its node does, so every image is tried twice.
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
"""The key of a unit with the images that stages must skip: the reasons, by the images' number in the unit."""

REASON = f"it ended its process {MAX_BEGINS} times: an error in a decoder, or too little memory for it"


def run_quarantined(unit: Payload, num_images: int, stages: Stages, trial: Trial, pool: Pool) -> Payload:
    """Finds the images that crash their process, then runs the unit without them.

    Args:
        unit: The unit, as it was given to `fan_out`.
        num_images: The number of images in the unit.
        stages: The stages; they skip the images under the unit's key `LEFT_OUT`.
        trial: The function that tries one image.
        pool: The process gets the resources of one of its actors.

    Returns:
        The unit's receipt.

    Raises:
        ClusterError: The process still dies, in the unit or while the compute actor starts.
        Exception: An error of a stage, unchanged.
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
            f"cluster: unit {unit} ends its process even without the {plural(len(crashing), 'image')} that crashed it "
            "alone. Check whether memory ran out: use fewer actors on a node, or smaller units."
        )
    return receipts[0]


class _TrialProcess:
    """One worker process; if it dies, a new one replaces it."""

    def __init__(self, stages: Stages, trial: Trial, pool: Pool) -> None:
        self._new_actor = lambda: start_spare_process(stages, trial, **pool.resources_of_an_actor)
        self._actor: Any = None

    def call(self, method: str, unit: Payload) -> list[Payload]:
        """A list with the method's result; empty if its process died every time."""
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
            f"cluster: a compute actor's process ended {MAX_BEGINS} times while it started. "
            "Check whether memory ran out on its node."
        )
