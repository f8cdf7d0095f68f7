"""Finished unit steps that later steps and jobs read. They are complete and made with this launch's settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.run.directory import Run
from jobs.run.fingerprints import UPSTREAM, outdated_in_words, step_id, step_settings, upstream_ids
from jobs.run.origin import only_masks
from jobs.run.selection import units_of_step
from jobs.run.steps import BY_NAME
from jobs.steps.tally import Tally
from storage.errors import NotYet
from storage.image_identity import images_ids
from storage.steps import Receipt, Skipped, differences, require_complete
from storage.units import Unit


@dataclass(frozen=True)
class FinishedStep:
    """A complete unit step.

    Attributes:
        fingerprint: everything that it was made with.
        units: all its units.
        receipts: their receipts, by index.
    """

    name: str
    fingerprint: Mapping[str, Any]
    units: Sequence[Unit]
    receipts: Mapping[int, Receipt]

    @property
    def skipped(self) -> dict[int, tuple[Skipped, ...]]:
        """The skipped images, by unit."""
        return {index: receipt.skipped for index, receipt in self.receipts.items() if receipt.skipped}


def require_finished(run: Run, name: str, asked_by: str, *, as_recorded: bool = False) -> FinishedStep:
    """A finished unit step of a run; its receipts are read once.

    Args:
        asked_by: the name of the job that needs the step, for the message.
        as_recorded: accept it even if this launch has other settings.

    Raises:
        NotYet: the step is incomplete.
        ValueError: the step was made with settings that differ from this launch, or from results that have changed
            since, or too many of its images were skipped.
    """
    row, step, manifest = BY_NAME[name], run.step(name), run.manifest()
    step.require_images(*images_ids(manifest))
    command = run.step_command(name)
    fingerprint = step.fingerprint() or {}
    if not fingerprint and name != "predictions" and (sentence := only_masks(run)):
        raise NotYet(f"{asked_by}: {sentence}")
    if fingerprint and not as_recorded:
        settings = {"unit_size": run.config.unit_size, **step_settings(row, run.config)}
        made_from = upstream_ids(fingerprint)
        wanted = settings | {UPSTREAM: {other: step_id(run, other) for other in made_from}}
        recorded = {key: fingerprint.get(key, {}) for key in wanted}
        if recorded != wanted:
            raise ValueError(
                f"{asked_by}: {step.location} was made with other settings ({differences(recorded, wanted)}). "
                f"Give the same settings, use another run, or compute it again with '{command} --restart {name}'."
            )
        if outdated := outdated_in_words(run, name):  # through a step that it read
            redo = run.command("run_pipeline", "--redo-outdated")
            raise ValueError(f"{asked_by}: {outdated} '{redo}' redoes all outdated steps.")
    units, receipts = units_of_step(row, manifest, run.config, fingerprint if as_recorded else None), step.receipts()
    require_complete(step, units, manifest, asked_by, command, receipts)
    tally = Tally(sum(unit.num_images for unit in units))
    for unit in units:
        tally.add(receipts[unit.index], unit.num_images)
    tally.check(row.title, run.config.images.max_skipped_fraction, command)
    return FinishedStep(name, fingerprint, units, receipts)
