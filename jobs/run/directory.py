"""The run: one folder or s3:// prefix with everything one experiment reads and writes (`run.json` is its header)."""

import json
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.environment import is_submitted_job
from jobs.run.config import resolve_config
from jobs.run.config_keys import Config
from jobs.run.steps import BY_NAME, STEPS
from jobs.run.versions import package_versions, source_hash
from storage.image_identity import images_ids
from storage.label_folder import LabelFolder
from storage.location import Location
from storage.manifest import Manifest
from storage.map_store import MapStore
from storage.receipts import Receipt
from storage.records import read_json
from storage.seed_store import SeedStore
from storage.steps import Step
from storage.unit_arrays import Mode
from storage.units import Unit

MAPS, SEEDS = "maps.zarr", "seeds.zarr"  # in the folders of their steps' results
_HEADER_REMEDY = "Put it back from a copy; or delete it, and give all settings again with --config or --set."


@dataclass(frozen=True)
class Run:
    """A run's place and its configuration, as this launch sees them; it pickles, so workers get it as it is."""

    location: Location
    config: Config
    settings: tuple[str, ...] = ()  # the launch's --config and --set arguments
    starts: Mapping[str, str] = field(default_factory=dict)  # of steps that this launch reads, see `reading`

    @property
    def uri(self) -> str:
        return self.location.uri

    def command(self, script: str, *flags: str) -> str:
        """This launch's command line for a script, for people to run: its settings are repeated."""
        return shlex.join(["python", f"jobs/{script}.py", "--run", self.uri, *self.settings, *flags])

    def step_command(self, name: str, *flags: str) -> str:
        """The command that runs a step of the table."""
        return self.command(BY_NAME[name].script, *flags)

    def manifest(self) -> Manifest:
        """The frozen list of images.

        Raises:
            ValueError: there is none yet; the sentence names the command that makes it.
        """
        place = self.location / "manifest.parquet"
        if not place.exists():
            raise ValueError(
                f"{self.uri} holds no manifest. Is the path right? To make one, run 'python jobs/prepare_dataset.py "
                f"--run {self.uri}' with a source, such as --folders, --csv, --voc or --coco."
            )
        return Manifest.open(place)

    def step(self, name: str) -> Step:
        """A step's folder."""
        return Step(self.location / name)

    def reading(self, *names: str) -> "Run":
        """This run for a launch that reads these steps: as they are now, even if another launch restarts them.

        Raises:
            ValueError: a step was made for other images than the manifest has.
        """
        images = images_ids(self.manifest())
        for name in names:
            self.step(name).require_images(*images)
        return replace(self, starts={**self.starts, **{name: self.step(name).start_id() for name in names}})

    def data(self, name: str, start_id: str | None = None) -> Location:
        """The folder of a step's results.

        Args:
            start_id: of the start that a worker writes to; by default the one that `reading` found, or the current one.

        Raises:
            ValueError: the step was made for other images than the manifest has.
        """
        known = self.starts.get(name) if start_id is None else start_id
        return self.step(name).data(self.reading(name).starts[name] if known is None else known)

    def maps(self, mode: Mode = "r", start_id: str | None = None) -> MapStore:
        """The stored maps; "r+" to write those of a start."""
        return MapStore.open(self.data("maps", start_id) / MAPS, mode)

    def seeds(self, mode: Mode = "r", start_id: str | None = None) -> SeedStore:
        """The stored seeds; "r+" to write those of a start."""
        return SeedStore.open(self.data("seeds", start_id) / SEEDS, mode)

    def labels(self, step: str, kind: str = "labels", start_id: str | None = None) -> LabelFolder:
        """A step's label images, a PNG each.

        Args:
            step: "pseudo_labels" or "predictions".
            kind: "labels", or "unrefined": predictions before the CRF.
            start_id: as in `data`.
        """
        return LabelFolder(self.data(step, start_id) / kind, self.manifest().num_classes)

    def receipt(self, name: str, unit: Unit) -> Receipt | None:
        """The receipt of a unit of a step that is read, with the checksums of all it stored."""
        return self.step(name).receipt(unit, self.starts.get(name))


def open_run(
    path: str,
    config_file: str | None = None,
    assignments: Sequence[str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Run:
    """Opens a run and resolves its configuration: the recorded one, then the file, then the assignments.

    Args:
        path: folder or s3:// prefix. A relative path is refused inside a Ray job, whose folder is thrown away.
        config_file: TOML file or None.
        assignments: "section.key=value" texts.
        defaults: nested settings of a new run, before the file.
    """
    location = parse_output(path, "--run")
    header = location / "run.json"
    recorded = recorded_config(header) if header.exists() else dict(defaults or {})
    settings = ["--config", config_file] if config_file else []
    for assignment in assignments or ():
        settings += ["--set", assignment]
    return Run(location, resolve_config(recorded, config_file, assignments or []), tuple(settings))


def parse_output(path: str, flag: str) -> Location:
    """A folder or s3:// prefix for outputs.

    Raises:
        ValueError: a relative path inside a submitted job, whose working folder is deleted afterwards.
    """
    if "://" in path or os.path.isabs(path):
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
        raise ValueError(f"{header}: damaged, holds no configuration. {_HEADER_REMEDY}")
    return config


def record_run(run: Run, name: str = "") -> None:
    """Writes `run.json`; called once a step has accepted the configuration.

    Args:
        name: the step that is launched. The section of any other step that was started stays as recorded, because
            that step would refuse the new values; the ignored settings are printed.
    """
    header = run.location / "run.json"
    recorded = recorded_config(header) if header.exists() else {}
    config = run.config.model_dump(mode="json")
    for row in STEPS:
        section = row.section
        is_owner = section == row.name and section in recorded  # the retraining uses the segmenter's section
        if not is_owner or row.name == name or not (run.location / row.name / "step.json").exists():
            continue
        for key, value in recorded[section].items():
            if config[section][key] != value:
                print(
                    f"{section}.{key}: stays {value}; {config[section][key]} is ignored, because the step {row.name} "
                    f"was started with {value}. To change it: 'python jobs/{row.script}.py --restart {row.name}'."
                )
        config[section] = recorded[section]
    content = {
        "config": config,
        "python": platform.python_version(),
        "packages": package_versions(),
        "source": source_hash(),
    }
    header.write_bytes(json.dumps(content, indent=1).encode())
