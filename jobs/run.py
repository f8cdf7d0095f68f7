"""The run: one folder or s3:// prefix with everything one experiment reads and writes (`run.json` is its header)."""

import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.config import Config, resolve_config
from storage.location import Location
from storage.manifest import Manifest

PACKAGES = ("torch", "torchvision", "ray", "pyarrow", "numpy", "zarr", "s3fs", "numba", "pydensecrf2")


@dataclass(frozen=True)
class Run:
    """A run's place and its configuration, as this launch sees them."""

    location: Location
    config: Config
    settings: tuple[str, ...] = ()  # the launch's --config and --set arguments

    def command(self, job: str) -> str:
        """This launch as a command line, for people to run again."""
        return shlex.join(["python", f"jobs/{job}.py", "--run", self.uri, *self.settings])

    @property
    def uri(self) -> str:
        return self.location.uri

    def manifest(self) -> Manifest:
        """The frozen list of images.

        Raises:
            ValueError: there is none yet; the sentence names the command that makes it.
        """
        place = self.location / "manifest.parquet"
        if not place.exists():
            raise ValueError(
                f"{self.uri} holds no manifest. Is the path right? 'python jobs/prepare_dataset.py --run {self.uri}' "
                "makes one, with --voc, --coco, --csv or --parquet."
            )
        return Manifest.open(place)


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
    is_relative = "://" not in path and not os.path.isabs(path)
    if is_relative and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        raise ValueError(f"--run {path}: a submitted job runs in a throwaway folder; give an absolute path or s3://...")
    location = Location.parse(path if not is_relative else os.path.abspath(path))
    header = location / "run.json"
    recorded = json.loads(header.read_bytes())["config"] if header.exists() else dict(defaults or {})
    settings = ["--config", config_file] if config_file else []
    for assignment in assignments or ():
        settings += ["--set", assignment]
    return Run(location, resolve_config(recorded, config_file, assignments or []), tuple(settings))


def record_run(run: Run, step: str = "") -> None:
    """Writes `run.json`; called once a step has accepted the configuration.

    Args:
        step: whose launch this is. The section of any other step that was started stays as recorded: this launch did
            not use it, and that step would refuse it; what was asked of it in vain is said.
    """
    header = run.location / "run.json"
    recorded = json.loads(header.read_bytes())["config"] if header.exists() else {}
    config = run.config.model_dump(mode="json")
    for section in recorded.keys() & config.keys() - {step}:
        if (run.location / section / "step.json").exists():
            for key, value in recorded[section].items():
                if config[section][key] != value:
                    print(
                        f"{section}.{key}: stays {value}, not {config[section][key]}, since the step {section} was "
                        f"started; its own job changes it, with --restart {section}."
                    )
            config[section] = recorded[section]
    content = {
        "config": config,
        "python": platform.python_version(),
        "packages": package_versions(),
        "source": source_hash(),
    }
    header.write_bytes(json.dumps(content, indent=1).encode())


def package_versions() -> dict[str, str]:
    """The installed versions of the packages that results depend on."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def source_hash() -> str:
    """sha256 over the project's Python files; a submitted job has no version control to ask."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for package in ("cluster", "ficklenet", "jobs", "storage"):
        for file in sorted((root / package).glob("*.py")):
            digest.update(f"{package}/{file.name}\0".encode() + file.read_bytes())
    return digest.hexdigest()
