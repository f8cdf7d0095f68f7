"""The versions of packages, and a hash of this project's source, which are recorded with a run's results."""

import hashlib
import importlib.metadata
from collections.abc import Mapping
from functools import cache
from pathlib import Path

PACKAGES = ("torch", "torchvision", "ray", "pyarrow", "numpy", "zarr", "s3fs", "numba", "pydensecrf2", "pillow")
COMPUTING = ("torch", "torchvision", "numpy", "zarr", "numba", "pydensecrf2", "pillow")
"""The packages that can change stored results; all others only move work and data."""

ROOT = Path(__file__).parents[2]


@cache
def package_versions() -> Mapping[str, str]:
    """The installed versions of the packages that results depend on."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


@cache
def computing_packages() -> str:
    """The versions of the packages that compute in this process, for receipts: "torch 2.14.1, numpy 2.4.6"."""
    return ", ".join(f"{name} {package_versions()[name]}" for name in COMPUTING)


@cache
def code_id() -> str:
    """A short id of the code in this process, for receipts: the beginning of `source_hash`."""
    return source_hash()[:12]


@cache
def source_hash() -> str:
    """sha256 of the project's Python files; inside a submitted job there is no version control to ask."""
    digest = hashlib.sha256()
    for package in ("cluster", "ficklenet", "jobs", "storage"):
        for file in sorted((ROOT / package).rglob("*.py")):
            digest.update(f"{file.relative_to(ROOT).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()
