"""Missing units that later steps were made from: they were finished once, so their absence is damage.

Units that are only not computed yet are not among them: those of a step that was stopped, before any step read it, and
those of images that were added since.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.run.directory import Run
from jobs.run.fingerprints import step_id, upstream_ids
from jobs.run.steps import STEPS
from storage.steps import Receipt, num_added
from storage.units import Unit


@dataclass(frozen=True)
class LostUnits:
    """The missing units of a step that later steps were made from.

    Attributes:
        units: the units.
        readers: the names, for people, of the steps that were made from the step.
    """

    units: Sequence[Unit] = ()
    readers: Sequence[str] = ()


def lost_units(run: Run, name: str, units: Sequence[Unit], receipts: Mapping[int, Receipt]) -> LostUnits:
    """The missing units of a step that later steps were made from.

    Args:
        units: all units of the step.
        receipts: those of its finished units, by index.
    """
    parts, readers, num_rows = run.manifest().parts, list[str](), 0
    for row in STEPS:
        try:
            fingerprint = run.step(row.name).fingerprint() if name in row.upstream else None
        except ValueError:  # a damaged record, which is reported as such
            continue
        if fingerprint and upstream_ids(fingerprint).get(name) == step_id(run, name):
            readers.append(row.title)
            num_rows = max(num_rows, parts[min(num_added(fingerprint), len(parts) - 1)][1])  # that the reader covers

    def is_lost(unit: Unit) -> bool:
        receipt = receipts.get(unit.index)
        wanted = min(unit.stop, num_rows)
        return unit.start < wanted and (receipt is None or receipt.start != unit.start or receipt.stop < wanted)

    return LostUnits([unit for unit in units if is_lost(unit)], readers)
