"""What the fan-out does to a unit: read, compute, write."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Payload = dict[str, Any]
"""What a unit is at some stage: a flat dict of anything that pickles (arrays, numbers, strings, bytes, lists)."""

Compute = Callable[[Payload], Payload]


@dataclass(frozen=True)
class Stages:
    """What happens to a unit, in order: read, compute, write. All run in worker processes and must pickle.

    Each may run more than once for the same unit, also in two processes at the same time, and must then do the same. An
    error in one stops the fan-out and reaches the caller unchanged.

    Attributes:
        make_compute: Called once in every actor; what it returns turns an input payload into an output payload.
        read: A unit to its input payload, in a task; None where the actor reads the unit itself.
        write: An output payload to the unit's receipt, in a task; None where the actor returns the receipt itself.
    """

    make_compute: Callable[[], Compute]
    read: Compute | None = None
    write: Compute | None = None

    def run(self, compute: Compute, unit: Payload) -> Payload:
        """All stages of one unit in this process; its receipt."""
        payload = compute(self.read(unit) if self.read else unit)
        return self.write(payload) if self.write else payload
