"""Computes some finished units of a step again on this machine, and compares the results with the stored bytes.

Checksums show only that the bytes have not changed since they were written. This shows that this machine, with its
code and packages, would write the same bytes. The units are computed into a temporary folder; the step is only read.
"""

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cluster.connect import Connection
from cluster.words import plural
from jobs.run.directory import Run
from jobs.steps.compute import run_stages
from jobs.steps.launch import LaunchOptions, UnitPlan
from jobs.steps.makers import makers
from jobs.steps.progress import Progress
from jobs.steps.unit_driver import UnitStepJob
from storage.image_identity import images_id
from storage.location import Location
from storage.receipts import Receipt
from storage.steps import Step, differences

NAMED = 10  # so many units with other results are named


@dataclass(frozen=True)
class Recomputation:
    """The outcome of computing units of a step again.

    Attributes:
        name: the name of the step.
        num_units: the number of units that were computed again.
        differing: for each unit with other results, its number and what differs.
        makers: the code and packages that computed the stored units (see `jobs.steps.makers`); this process comes last.
    """

    name: str
    num_units: int
    differing: Sequence[str]
    makers: Sequence[str]

    @property
    def lines(self) -> list[str]:
        """For people."""
        count = plural(len(self.differing), "unit")
        state = f"{count} with results that differ" if self.differing else "the same bytes"
        lines = [f"verify: {self.name}: {plural(self.num_units, 'unit')} computed again, {state}."]
        lines += [f"  {text}" for text in self.differing[:NAMED]]
        if self.differing:
            stored, here = "; ".join(self.makers[:-1]) or "the same code and packages", self.makers[-1]
            lines.append(f"  The stored units were computed by {stored}; this process is {here}.")
        return lines


def recompute_step(
    run: Run, connection: Connection, name: str, sample: int, make_job: Callable[[Run, Connection], UnitStepJob]
) -> Recomputation:
    """Computes some finished units of a step again, in this process.

    Args:
        connection: "in-process".
        sample: the number of units, chosen at random.
        make_job: the function of that name in the step's module.

    Raises:
        NotYet: an earlier step is incomplete.
        ValueError: this launch has other settings, or another kind of device, than the step was computed with.
    """
    step = run.step(name)
    with tempfile.TemporaryDirectory(prefix="ficklenet-recompute-") as folder:
        scratch = Step(Location(folder) / name)
        job = make_job(replace(run, elsewhere={**run.elsewhere, name: scratch.location}), connection)
        fingerprint = {**job.fingerprint, "unit_size": run.config.unit_size}
        recorded = step.fingerprint() or {}
        if text := differences(recorded, fingerprint) if recorded != fingerprint else "":
            raise ValueError(
                f"verify: {name} cannot be computed again here, because its settings differ ({text}). Give "
                "the same settings, and run this on a machine of the same kind."
            )
        receipts = step.receipts(with_objects=True)
        finished = [unit for unit in job.units if unit.index in receipts]
        units = sorted(random.SystemRandom().sample(finished, min(sample, len(finished))))
        start_id = scratch.open(fingerprint, job.command, images=images_id(run.manifest()))
        if job.create:
            job.create(scratch.data(start_id))
        plan = UnitPlan(scratch, LaunchOptions(), start_id, units, {}, units, {})
        progress = Progress(f"recompute {name}", len(units), 0)
        for _ in run_stages(plan.rows(job.skipped), job.stages, run.config.cluster, connection, job.device, None):
            progress.advance(1)
        progress.close()
        computed = scratch.receipts(with_objects=True)
    texts = [_difference(receipts[unit.index], computed[unit.index]) for unit in units]
    stored = [receipts[unit.index] for unit, text in zip(units, texts, strict=True) if text]
    return Recomputation(name, len(units), [text for text in texts if text], list(makers(stored, with_own=True)))


def _difference(stored: Receipt, computed: Receipt) -> str:
    """What differs in a unit; '' if nothing differs."""
    if stored.skipped != computed.skipped:
        return (
            f"unit {stored.name.removesuffix('.json')}: {len(computed.skipped)} skipped images, the receipt has others"
        )
    others = sorted(path for path, found in computed.objects.items() if stored.objects.get(path, found) != found)
    return f"unit {stored.name.removesuffix('.json')}: other bytes in {', '.join(others)}" if others else ""
