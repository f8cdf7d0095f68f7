"""Verification: compares a unit step's stored objects with the checksums in its receipts, and repairs damage.

Units are checked with the same fan-out that computes them. Nothing is recorded, so an interrupted verification starts
again from the beginning. An interrupted repair continues, because it marks the units to repair. Missing units that
later steps were made from are damage too.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from cluster.connect import Connection
from cluster.fanout import Payload, Stages
from cluster.words import plural
from jobs.run.directory import Run
from jobs.run.fingerprints import upstream_ids
from jobs.run.selection import units_of_step
from jobs.run.steps import BY_NAME
from jobs.run.training_record import require_sound_networks
from jobs.steps.compute import run_stages
from jobs.steps.edited_masks import keep_edited
from jobs.steps.lost_units import LostUnits, lost_units
from jobs.steps.progress import Progress
from storage.image_identity import images_ids
from storage.steps import Step
from storage.units import Unit
from storage.verify import Damage, damaged_receipts, repair, verify_headers, verify_unit

NAMED = 10  # number of damaged objects to print
BYTES_PER_SECOND, OBJECTS_PER_SECOND = 2e8, 200.0  # of one process: what takes less time than Ray's start needs no Ray


@dataclass(frozen=True)
class Verification:
    """The result for one step.

    Attributes:
        name: the step.
        num_units: the number of checked units.
        unchecked: the number of finished units whose receipts have no checksums, because they are older.
        units: the damaged units.
        headers: the damaged descriptions of arrays.
        damages: all damaged objects of these units, and their damaged receipts.
        lost: the units that are missing, although later steps were made from them.
        num_to_do: the number of units that are only not computed yet.
        num_all: the number of all units of the step.
    """

    name: str
    num_units: int = 0
    unchecked: int = 0
    units: Sequence[Unit] = ()
    headers: Sequence[Damage] = ()
    damages: Sequence[Damage] = ()
    lost: LostUnits = field(default_factory=LostUnits)
    num_to_do: int = 0
    num_all: int = 0

    @property
    def is_sound(self) -> bool:
        """Whether nothing is damaged or lost."""
        return not self.units and not self.headers and not self.lost.units

    @property
    def extent(self) -> str:
        """What is damaged or lost, such as '2 units and 1 array description'."""
        kinds = {"unit": self.units, "array description": self.headers, "missing unit": self.lost.units}
        return " and ".join(plural(len(found), what) for what, found in kinds.items() if found)


def verify_step(run: Run, connection: Connection, name: str, sample: int | None = None) -> Verification | None:
    """Checks the finished units of a step; None if it was never started.

    Args:
        sample: the number of units to check, chosen at random; None for all.

    Raises:
        ValueError: the step was made for other images than those in the manifest, or its record is damaged.
    """
    step, manifest = run.step(name), run.manifest()
    fingerprint = step.fingerprint()
    if fingerprint is None:
        return None
    step.require_images(*images_ids(manifest))
    start_id, receipts = step.start_id(), step.receipts()
    all_units = units_of_step(BY_NAME[name], manifest, run.config, fingerprint)
    missing = {unit.index for unit in step.missing_units(all_units, receipts)}
    units = [unit for unit in all_units if unit.index not in missing]
    if sample is not None and sample < len(units):
        units = sorted(random.SystemRandom().sample(units, sample))

    rows = [{"unit": unit, "start_id": start_id} for unit in units]
    stages = Stages(partial(UnitVerifier, step))
    damages = {index: [damage] for index, damage in damaged_receipts(step.data(start_id), receipts).items()}
    images = {unit.index: unit.num_images for unit in units}
    unchecked, progress = 0, Progress(f"verify {name}", sum(images.values()))
    num_objects, num_bytes = step.location.usage()
    seconds = (num_bytes / BYTES_PER_SECOND + num_objects / OBJECTS_PER_SECOND) * len(units) / max(1, len(all_units))
    for result in run_stages(rows, stages, run.config.cluster, connection, "cpu", seconds=seconds):
        unchecked += result["is_unchecked"]
        if result["damages"]:
            damages[result["index"]] = result["damages"]
        progress.advance(images[result["index"]])
    progress.close()
    lost = lost_units(run, name, all_units, receipts)
    lost = replace(lost, units=[unit for unit in lost.units if unit.index not in damages])
    return Verification(
        name,
        len(units),
        unchecked,
        tuple(unit for unit in all_units if unit.index in damages),
        tuple(verify_headers(step.data(start_id))),
        tuple(damage for _, some in sorted(damages.items()) for damage in some),
        lost,
        len(missing - {*damages} - {unit.index for unit in lost.units}),
        len(all_units),
    )


@dataclass(frozen=True)
class UnitVerifier:
    """An actor that checks whole units."""

    step: Step

    def __call__(self, row: Payload) -> Payload:
        unit, start_id = row["unit"], row["start_id"]
        receipt = self.step.receipt(unit, start_id)
        if receipt is None:  # it was deleted or damaged in the meantime, so the unit is missing
            return {"index": unit.index, "is_unchecked": False, "damages": []}
        damages = verify_unit(self.step.data(start_id), receipt)
        return {"index": unit.index, "is_unchecked": not receipt.objects, "damages": damages}


def verify_run(
    run: Run,
    connection: Connection,
    names: Sequence[str],
    *,
    sample: int | None,
    recompute: Callable[[str], None] | None,
) -> tuple[bool, list[str]]:
    """Checks steps in order, prints the result and repairs damage if asked.

    Args:
        names: unit steps, upstream steps first.
        sample: as in `verify_step`.
        recompute: computes the missing units of a step; None to repair nothing.

    Returns:
        Whether no unit is damaged or lost at the end, and a sentence for each step that could not be checked, because
        its record is missing or damaged, or could not be repaired, such as one that needs a damaged network.
    """
    is_sound, num_started, problems = True, 0, list[str]()
    for name in names:
        try:
            run.step(name).require_record(run.step_command(name, "--restart", name))
            found = verify_step(run, connection, name, sample)
        except ValueError as error:
            problems.append(str(error))
            continue
        if found is None:
            continue
        num_started += 1
        print("\n".join(lines_of(found)), flush=True)
        if not found.is_sound and recompute is not None:
            try:
                _repair(run, found, recompute)
            except ValueError as error:
                problems.append(str(error))
                print(f"verify: {name}: not repaired; the reason is below.", flush=True)
                is_sound = False
            else:
                print(f"verify: {name}: repaired {found.extent}.", flush=True)
        is_sound = is_sound and (found.is_sound or recompute is not None)
    if not num_started and not problems:
        print(f"verify: nothing was checked: no results of {', '.join(names)} in {run.uri} yet.")
    return is_sound, problems


def _repair(run: Run, found: Verification, recompute: Callable[[str], None]) -> None:
    """Computes the damaged and the lost units of a step again.

    Raises:
        ValueError: a driver works on the step, or the step refuses the launch. If a network that it reads is damaged,
            nothing is changed.
    """
    step = run.step(found.name)
    require_sound_networks(run, list(upstream_ids(step.fingerprint())))
    for sentence in keep_edited(run, found.name, found.damages):
        print(f"verify: {found.name}: {sentence}", flush=True)
    repair(step, found.units, found.headers)
    recompute(found.name)


def lines_of(found: Verification) -> list[str]:
    """The result of a step, as lines for people."""
    damages = [str(damage) for damage in (*found.headers, *found.damages)]
    state = _state_of(found, len(damages))
    lines = [f"verify: {found.name}: {plural(found.num_units, 'finished unit')} checked, {state}."]
    if found.unchecked:
        lines.append(
            f"verify: {found.name}: {plural(found.unchecked, 'unit')} not checked, because an earlier version stored "
            "no checksums."
        )
    lines += [f"  {text}" for text in damages[:NAMED]]
    lines += [f"  and {len(damages) - NAMED:,} more"] if len(damages) > NAMED else []
    if any(damage.place.name.endswith(".png") for damage in found.damages):
        lines.append(f"verify: {found.name}: masks that somebody edited here are copied to <run>/edited by --repair.")
    return lines


def _state_of(found: Verification, num_damages: int) -> str:
    """What is wrong with a step, and how many of its units are not there."""
    total = plural(found.num_all, "unit")
    parts = ["sound"] if found.is_sound else []
    if num_damages:
        damaged = replace(found, lost=LostUnits()).extent
        parts.append(f"{plural(num_damages, 'object')} damaged in {damaged}")
    if number := len(found.lost.units):
        verb, them = ("is", "it") if number == 1 else ("are", "them")
        parts.append(f"{number:,} of {total} {verb} missing, although later steps read {them}")
        parts[-1] += f" ({', '.join(found.lost.readers)})"
    if number := found.num_to_do:
        parts.append(f"{number:,} of {total} {'is' if number == 1 else 'are'} not computed yet")
    return "; ".join(parts)
