"""The stages of the fan-out: read, compute, write."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

Payload = dict[str, Any]
"""The data of a unit at some stage: a flat dict of picklable values (arrays, numbers, strings, bytes, lists)."""

Compute = Callable[[Payload], Payload]


@dataclass(frozen=True)
class Stages:
    """The functions for a unit, in order: read, compute, write. All run in worker processes and must be picklable.

    Each may run more than once for the same unit, also in two processes at the same time, and must do the same each
    time. A large array of a payload can be read-only, because the next stage reads it in shared memory. An error in one
    of them stops the fan-out and reaches the caller unchanged.

    Attributes:
        make_compute: Called once in every actor; it returns the function from an input payload to an output payload.
            If the function has an attribute `prepare`, it is another such function: an actor calls it with the input
            payload while another unit is computed, and the first function gets its result. Elsewhere it is not called,
            so the first function must also accept the input payload itself.
        read: From a unit to its input payload, in a task; None if the actor reads the unit itself.
        write: From an output payload to the unit's receipt, in a task; None if the actor returns the receipt itself.
    """

    make_compute: Callable[[], Compute]
    read: Compute | None = None
    write: Compute | None = None

    def run(self, compute: Compute, unit: Payload) -> Payload:
        """Runs all stages of one unit in this process and returns its receipt."""
        payload = compute(self.read(unit) if self.read else unit)
        return self.write(payload) if self.write else payload

    def in_actors(self) -> "Stages":
        """The same work with all stages in the actors.

        On one machine without GPUs, reading and writing tasks would be further processes on the CPUs of the actors, and
        each of them would first spend seconds on imports.
        """
        return Stages(partial(_WholeUnit, self)) if self.read or self.write else self


class _WholeUnit:
    """An actor's function that runs all stages of a unit."""

    def __init__(self, stages: Stages) -> None:
        self._stages, self._compute = stages, stages.make_compute()

    def __call__(self, unit: Payload) -> Payload:
        return self._stages.run(self._compute, unit)
