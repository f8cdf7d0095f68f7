"""Runs that have only masks of new images: their `origin.json` names the run with the network that predicted them."""

import json

from jobs.run.directory import Run

ORIGIN = "origin.json"


def write_origin(run: Run, origin: Run, network: str, sha256: str, images: str) -> None:
    """Records where the masks of a run come from.

    Args:
        origin: the run that has the network.
        network: the name of its training; sha256: the hash of its file.
        images: the address of the new images.
    """
    content = {"run": origin.uri, "network": network, "sha256": sha256, "images": images}
    (run.location / ORIGIN).write_bytes(json.dumps(content, indent=1).encode())


def origin_of(run: Run) -> str:
    """The address of the run that a run's network comes from; "" for a run that was prepared and trained itself."""
    try:
        return str(json.loads((run.location / ORIGIN).read_bytes()).get("run", ""))
    except FileNotFoundError:
        return ""


def only_masks(run: Run) -> str:
    """A sentence if a run has only masks of new images, so that its other steps cannot be run; else ""."""
    if not (origin := origin_of(run)):
        return ""
    return f"{run.uri} has only masks of new images. For everything else use the run that made them, {origin}."


def require_all_steps(run: Run, asked_by: str) -> None:
    """Refuses a run that has only masks of new images.

    Raises:
        ValueError: see above.
    """
    if sentence := only_masks(run):
        raise ValueError(f"{asked_by}: {sentence}")
