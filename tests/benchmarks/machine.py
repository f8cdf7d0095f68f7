"""The first line of every benchmark: date, hardware and versions."""

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path


def describe(*packages: str) -> str:
    """Date (UTC), processor, CPUs, load, Python and the named packages' versions."""
    today = datetime.datetime.now(datetime.UTC).date()
    versions = [f"Python {platform.python_version()}", *(f"{name} {version_of(name)}" for name in packages)]
    return f"{today}; {processor_name()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; {', '.join(versions)}"


def processor_name() -> str:
    """The processor as /proc/cpuinfo names it, else as Python does."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
