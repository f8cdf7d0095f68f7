"""The finished maps of a run, and the labels made of them, as every later step reads them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cluster.fanout import Payload
from jobs.config import Config
from jobs.run import Run
from jobs.unit_steps import UnitPlan
from storage.location import Location
from storage.manifest import Manifest
from storage.map_store import MapStore
from storage.steps import Receipt, Step, differences, require_complete
from storage.units import Unit, plan_units

LABEL_JOBS = {"seeds": "aggregate_seeds", "pseudo_labels": "make_pseudo_labels"}  # what makes which step


@dataclass(frozen=True)
class FinishedMaps:
    """What is known of complete maps before anything is read of them.

    Attributes:
        fingerprint: of the step that made them.
        units: all units of the manifest.
        receipts: of the units, by index.
        grid: (h, w) of the maps.
    """

    fingerprint: Mapping[str, Any]
    units: Sequence[Unit]
    receipts: Mapping[int, Receipt]
    grid: tuple[int, int]


def maps_location(run: Run) -> Location:
    return run.location / "maps" / "maps.zarr"


def require_maps(run: Run, manifest: Manifest, asked_by: str) -> FinishedMaps:
    """The run's maps.

    Args:
        asked_by: the job, for the message.

    Raises:
        NotYet: they are incomplete.
        ValueError: they were made with other settings than this launch has.
    """
    step, units = Step(run.location / "maps"), plan_units(manifest.num_images, run.config.unit_size)
    command = run.command("generate_maps")
    fingerprint = step.fingerprint() or {}
    wanted = {"unit_size": run.config.unit_size, "maps": run.config.maps.model_dump(mode="json")}
    recorded = {
        "unit_size": fingerprint.get("unit_size"),
        "maps": wanted["maps"] | fingerprint.get("maps", {}),  # what merely ran them is not recorded
    }
    if fingerprint and recorded != wanted:
        raise ValueError(
            f"{asked_by}: the maps were made with other settings ({differences(recorded, wanted)}). Give the same, "
            f"use another run, or make the maps anew with '{command} --restart maps'."
        )
    require_complete(step, units, manifest, asked_by, command)
    return FinishedMaps(fingerprint, units, step.receipts(), MapStore.open(maps_location(run)).grid)


def label_settings(config: Config, step_name: str) -> dict[str, Any]:
    """The settings that change "seeds" or "pseudo_labels", for their fingerprints."""
    if step_name == "seeds":
        return config.seeds.model_dump(mode="json")
    return config.pseudo_labels.model_dump(mode="json") | {"background_cue": config.seeds.background_cue}


def require_labels(run: Run, manifest: Manifest, maps: FinishedMaps, step_name: str, asked_by: str) -> None:
    """Refuses label maps that are incomplete, or not made of these maps with this launch's settings.

    Args:
        step_name: "seeds" or "pseudo_labels"; the step and its section of the configuration.
        asked_by: the job, for the message.
    """
    step, command = Step(run.location / step_name), run.command(LABEL_JOBS[step_name])
    fingerprint = step.fingerprint() or {}
    recorded = {name: fingerprint.get(name, {}) for name in (step_name, "maps")}
    wanted = {step_name: label_settings(run.config, step_name), "maps": maps.fingerprint}
    if fingerprint and recorded != wanted:
        raise ValueError(
            f"{asked_by}: {step.location} was made with other settings ({differences(recorded, wanted)}). "
            f"Give the same, use another run, or make it anew with '{command} --restart {step_name}'."
        )
    require_complete(step, maps.units, manifest, asked_by, command)


def rows_of(plan: UnitPlan, made: Mapping[int, Receipt]) -> list[Payload]:
    """The missing units as the fan-out takes them, each with the images that an earlier step skipped.

    Args:
        made: the receipts of that step's units, by index.
    """
    return [{**row, "skipped": [asdict(skip) for skip in made[row["unit"]].skipped]} for row in plan.rows]
