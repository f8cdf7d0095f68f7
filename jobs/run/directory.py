"""The run: one folder or s3:// prefix with everything one experiment reads and writes (`run.json` is its header)."""

import os
import platform
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cluster.environment import is_submitted_job
from cluster.words import plural
from jobs.run.config import is_named, kept_settings, resolve_config
from jobs.run.config_keys import Config
from jobs.run.steps import BY_NAME, STEPS, StepRow
from jobs.run.versions import package_versions, source_hash
from storage.image_identity import images_ids
from storage.label_folder import LabelFolder
from storage.location import Location
from storage.manifest import Manifest
from storage.receipts import Receipt
from storage.records import read_json, seal
from storage.steps import Step
from storage.units import Unit

if TYPE_CHECKING:  # the stores import zarr, which takes half a second; status does not open them
    from storage.cell_store import CellStore
    from storage.map_store import MapStore
    from storage.seed_store import SeedStore
    from storage.unit_arrays import Mode

MAPS, CELLS, SEEDS = "maps.zarr", "cells.zarr", "seeds.zarr"  # in the folders of their steps' results
CELL_NETWORK, CELL_RECORD = "network.pt", "network.json"  # beside cells.zarr
DIFFERENCES_SHOWN = 3  # settings that are named if a file is refused
LOGS = "logs"  # a file for each launch
_HEADER_REMEDY = (
    "Put it back from a copy; or delete it, and give all settings again with --config or --set. If you edited it by "
    "hand, delete its entries 'sealed' and 'checksum'."
)
_OTHER_VERSION = "If another version of the program wrote this file, use that version, or correct the key in the file."
_LEVELS = 5  # of folders above a run's files, as above a shard of an array
_ALONE = "To use {} alone, prepare another run."


@dataclass(frozen=True)
class Run:
    """A run's place and its configuration in this launch. It can be pickled, so workers get a copy."""

    location: Location
    config: Config
    settings: tuple[str, ...] = ()  # the launch's --config and --set arguments
    starts: Mapping[str, str] = field(default_factory=dict)  # start ids of the steps that are read, see `reading`
    elsewhere: Mapping[str, Location] = field(default_factory=dict)  # folders of steps that are not in the run
    kept: tuple[
        str, ...
    ] = ()  # "section.key = value" from earlier launches, which this launch's --config does not name
    keeps_address: bool = False  # cluster.address is the recorded one: this launch does not name it

    @property
    def uri(self) -> str:
        return self.location.uri

    def command(self, script: str, *flags: str) -> str:
        """A command line that people can run: a script with this launch's settings."""
        return shlex.join(["python", f"jobs/{script}.py", "--run", self.uri, *self.settings, *flags])

    def step_command(self, name: str, *flags: str) -> str:
        """The command that runs a step of the table."""
        return self.command(BY_NAME[name].script, *flags)

    def change_command(self, name: str, *flags: str, launched: Collection[str] = ()) -> str:
        """The command that starts a step with other settings, after those of the optional steps that it needs first.

        Args:
            launched: steps that this launch runs, so their commands are left out.
        """
        is_refined = self.config.seeds.maps == "refined" and "refined" in BY_NAME[name].upstream
        needed = [row.name for row in STEPS if is_refined and row.name in ("cells", "refined")]
        first = [each for each in needed if each not in launched and self.step(each).fingerprint() is None]
        return " && ".join([*map(self.step_command, first), self.step_command(name, *flags)])

    def manifest(self) -> Manifest:
        """The frozen list of images.

        Raises:
            ValueError: there is none yet; the message names the command that makes it.
        """
        place = self.location / "manifest.parquet"
        if not place.exists():
            raise ValueError(_why_no_run(self.location))
        return Manifest.open(place)

    def step(self, name: str) -> Step:
        """A step's folder."""
        return Step(self.elsewhere.get(name, self.location / name))

    def reading(self, *names: str) -> "Run":
        """A copy of this run that keeps reading these steps as they are now, even if another launch restarts them.

        Raises:
            ValueError: a step was made for other images than those in the manifest.
        """
        images = images_ids(self.manifest())
        for name in names:
            self.step(name).require_images(*images)
        return replace(self, starts={**self.starts, **{name: self.step(name).start_id() for name in names}})

    def data(self, name: str, start_id: str | None = None) -> Location:
        """The folder of a step's results.

        Args:
            start_id: the start that a worker writes to; by default the one that `reading` found, or the current one.

        Raises:
            ValueError: the step was made for other images than those in the manifest.
        """
        known = self.starts.get(name) if start_id is None else start_id
        return self.step(name).data(self.reading(name).starts[name] if known is None else known)

    def maps(self, mode: "Mode" = "r", start_id: str | None = None, step: str = "maps") -> "MapStore":
        """The stored maps, or those of the step "refined"; with "r+", a worker can write the maps of a start."""
        from storage.map_store import MapStore

        return MapStore.open(self.data(step, start_id) / MAPS, mode)

    def cells(self, mode: "Mode" = "r", start_id: str | None = None) -> "CellStore":
        """The stored cells; with "r+", a worker can write the cells of a start."""
        from storage.cell_store import CellStore

        return CellStore.open(self.data("cells", start_id) / CELLS, mode)

    def seeds(self, mode: "Mode" = "r", start_id: str | None = None) -> "SeedStore":
        """The stored seeds; with "r+", a worker can write the seeds of a start."""
        from storage.seed_store import SeedStore

        return SeedStore.open(self.data("seeds", start_id) / SEEDS, mode)

    def labels(self, step: str, kind: str = "labels", start_id: str | None = None) -> LabelFolder:
        """A step's label images, one PNG per image.

        Args:
            step: "pseudo_labels" or "predictions".
            kind: "labels", or "unrefined": predictions before the CRF.
            start_id: as in `data`.
        """
        return LabelFolder(self.data(step, start_id) / kind, self.manifest().num_classes)

    def receipt(self, name: str, unit: Unit) -> Receipt | None:
        """The receipt of a unit of a step that this launch reads, with the checksums of all its stored objects."""
        return self.step(name).receipt(unit, self.starts.get(name))


def open_run(
    path: str,
    config_file: str | None = None,
    assignments: Sequence[str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Run:
    """Opens a run and resolves its configuration: the recorded one, then the file, then the assignments.

    Args:
        path: folder or s3:// prefix. A relative path is refused inside a Ray job, because its folder is deleted.
        config_file: TOML file or None.
        assignments: "section.key=value" texts.
        defaults: nested settings for a new run; the file and the assignments may change them.
    """
    location = _parse_output(path, "--run")
    if location.is_local and os.path.isfile(location.uri):
        raise ValueError(_why_no_run(location))
    header = location / "run.json"
    recorded = recorded_config(header) if header.exists() else dict(defaults or {})
    settings = ["--config", config_file] if config_file else []
    for assignment in assignments or ():
        settings += ["--set", assignment]
    try:
        config = resolve_config(recorded, config_file, assignments or [])
    except ValueError as error:
        if header.exists() and str(error) == _fault(recorded):
            raise ValueError(f"{header}: {error} {_OTHER_VERSION}") from error
        if config_file and header.exists() and not _fault({}, config_file, assignments or []):
            raise ValueError(f"{error} Some settings are those of the run. {_ALONE.format(config_file)}") from error
        raise
    kept = kept_settings(recorded, config_file, assignments or []) if config_file and header.exists() else []
    keeps_address = header.exists() and not is_named("cluster.address", config_file, assignments or [])
    return Run(location, config, tuple(settings), kept=tuple(kept), keeps_address=keeps_address)


def _fault(recorded: dict[str, Any], config_file: str | None = None, assignments: Sequence[str] = ()) -> str:
    """Why a recorded configuration with these settings is refused; "" if it is accepted."""
    try:
        resolve_config(recorded, config_file, assignments)
    except ValueError as error:
        return str(error)
    return ""


def parse_output(path: str, flag: str) -> Location:
    """A folder or s3:// prefix for outputs.

    Raises:
        ValueError: a relative path inside a submitted job, whose working folder is deleted afterwards; or a place in
            the folder of a run's step, which the step may delete.
    """
    place = _parse_output(path, flag)
    if place.is_local and os.path.isfile(place.uri):
        raise ValueError(f"{flag} {place.uri}: this is a file. Give a folder.")
    root, *parts = place.uri.removeprefix("s3://").split("/")  # the bucket, or nothing before the first /
    above = Location(root if place.is_local else f"s3://{root}")
    for name in parts:
        if name in BY_NAME and (above / "manifest.parquet").exists():
            raise ValueError(
                f"{flag} {path}: is in the folder of the step {name} of the run {above}, and a restart of this step "
                "deletes all that is in it. Give a place outside the run."
            )
        above = above / name
    return place


def _why_no_run(location: Location) -> str:
    """Why a place is no run, and what to give instead: the run in which it lies, or a command that makes one."""
    above = location
    for _ in range(_LEVELS):
        above = above.parent
        if above.uri in ("", "s3:/"):
            break
        if (above / "manifest.parquet").exists():
            return f"{location.uri} is no run, but it lies in one. Give the path of this run, {above}."
    if location.is_local and os.path.isfile(location.uri):
        return f"{location.uri} is a file, and a run is a folder. Give the folder that prepare_dataset.py has made."
    what = "does not exist" if location.is_local and not os.path.isdir(location.uri) else "has no manifest"
    return (
        f"{location.uri} {what}. Is the path right? To make one, run 'python jobs/prepare_dataset.py --run "
        f"{location.uri}' with a source, such as --folders, --csv, --voc or --coco."
    )


def _parse_output(path: str, flag: str) -> Location:
    path = os.path.expanduser(path)  # a shell leaves the ~ of --run=~/voc, and a notebook has no shell
    if "://" in path or path.lower().startswith(("s3:", "s3//")) or os.path.isabs(path):
        return Location.parse(path)
    if is_submitted_job():
        raise ValueError(
            f"{flag} {path}: a submitted job runs in a temporary folder; give an absolute path or s3://..."
        )
    return Location.parse(os.path.abspath(path))


def recorded_config(header: Location) -> dict[str, Any]:
    """The configuration in a run's header.

    Raises:
        ValueError: the file is damaged.
    """
    config = read_json(header, "the run's configuration", _HEADER_REMEDY).get("config")
    if not isinstance(config, dict) or not all(isinstance(name, str) for name in config):
        raise ValueError(f"{header}: damaged, it contains no configuration. {_HEADER_REMEDY}")
    return config


def preparations(run: Run) -> list[str]:
    """The commands that made and changed the manifest, in order; empty for runs of earlier versions."""
    header = run.location / "run.json"
    return read_json(header, "the run's configuration", _HEADER_REMEDY).get("prepared", []) if header.exists() else []


def record_run(run: Run, name: str = "", *, prepared: str = "") -> None:
    """Writes `run.json`; called when a step has accepted the configuration.

    A launched step does not record `cluster.address`: where it works says nothing about other launches.

    Args:
        name: the launched step. Other steps that were started keep their recorded sections, because they would refuse
            the new values; `setting_notes` says so.
        prepared: a command that has made or changed the manifest.
    """
    commands = [command for command in preparations(run) if command != prepared]
    content = {
        "config": _config_to_record(run, [name] if name else []),
        "python": platform.python_version(),
        "packages": package_versions(),
        "source": source_hash(),
        "prepared": [*commands, *([prepared] if prepared else [])],
    }
    (run.location / "run.json").write_bytes(seal(content, indent=1))


def setting_notes(run: Run, launched: Collection[str] = ()) -> list[str]:
    """Sentences about given settings that are not recorded, and about recorded ones that were not given.

    Args:
        launched: the steps that this launch runs.
    """
    notes, config = list[str](), run.config.model_dump(mode="json")
    for row, section in _kept_sections(run, launched):
        changed = {key: value for key, value in section.items() if config[row.section][key] != value}
        results = getattr(run.config, row.section).result_settings()
        is_result = changed.keys() & {*results, "maps"}  # fingerprints have seeds.maps beside these
        restart = ("--restart", row.name) if is_result else ()
        command = run.change_command(row.name, *restart, launched=launched)
        for key, value in changed.items():
            after = " after this step" if key == "maps" and {"cells", "refined"} & {*launched} else ""
            notes.append(
                f"{row.section}.{key}: the run keeps {value}, because the step {row.name} was started with it. "
                f"To change it to {config[row.section][key]}{after}: '{command}'."
            )
    header = run.location / "run.json"
    if run.kept and header.exists() and _config_to_record(run, launched) != recorded_config(header):
        named = run.settings[1]  # after --config, which comes first
        notes.append(
            f"settings: the run keeps {plural(len(run.kept), 'setting')} from before that {named} does not name: "
            f"{', '.join(run.kept)}. {_ALONE.format(named)}"
        )
    return notes


def require_settings_of_started_steps(run: Run) -> None:
    """Refuses a file with other settings than started steps have, because the run would get a mixture of both.

    Raises:
        ValueError: the file has such settings. Single ones by --set are allowed: `setting_notes` says what is kept.
    """
    if "--config" not in run.settings:
        return
    single = {text.partition("=")[0].strip() for text in run.settings}
    changed = [
        f"{row.section}.{key}: {value}, not {section[key]}"
        for row, section in _kept_sections(run, ())
        for key, value in getattr(run.config, row.section).result_settings().items()
        if section.get(key, value) != value and f"{row.section}.{key}" not in single
    ]
    if changed:
        more = f" and {len(changed) - DIFFERENCES_SHOWN:,} more" if len(changed) > DIFFERENCES_SHOWN else ""
        raise ValueError(
            f"--config {run.settings[1]}: has other settings than steps of this run were started with "
            f"({', '.join(changed[:DIFFERENCES_SHOWN])}{more}). Nothing was changed. Give the same command another "
            "--run; or leave out --config, and the run keeps its settings."
        )


def _config_to_record(run: Run, launched: Collection[str]) -> dict[str, Any]:
    """The configuration that `record_run` writes when these steps are launched; none: for the preparation."""
    config = run.config.model_dump(mode="json")
    config |= {row.section: section for row, section in _kept_sections(run, launched)}
    header = run.location / "run.json"
    if launched and header.exists():
        address = recorded_config(header).get("cluster", {}).get("address", "")
        config["cluster"] = {**config["cluster"], "address": address}
    return config


def _kept_sections(run: Run, launched: Collection[str]) -> list[tuple[StepRow, dict[str, Any]]]:
    """The recorded sections of steps that were started and are not launched now."""
    header = run.location / "run.json"
    recorded = recorded_config(header) if header.exists() else {}
    return [
        (row, recorded[row.section])
        for row in STEPS
        if row.section == row.name  # the retraining uses the segmenter's section
        and row.section in recorded
        and row.name not in launched
        and (run.location / row.name / "step.json").exists()
    ]
