"""Refuses a run that lies where its own files and the images could be taken for each other."""

from collections.abc import Iterable

from jobs.run.steps import STEPS
from storage.location import Location
from storage.manifest import resolve_address
from storage.sources import SourceImage
from storage.tree import is_inside, real_address

LISTED = ("folders", "labelme", "hugging_face")
"""The sources of which every file in the folder and below is read; the others name their files."""


def require_outside(run: Location, source: str, folder: Location) -> None:
    """Refuses a run in a folder of which every file is read: later, the run's own pictures would be images too.

    Args:
        source: the name of the source, as in `jobs.preparation.read_source.SOURCE_FLAGS`.

    Raises:
        ValueError: the run is the source's folder, or is inside it.
    """
    if source not in LISTED or not is_inside(run, folder):
        return
    flag, other = f"--{source.replace('_', '-')}", f"{folder.parent}/{folder.name}-run"
    place = "the folder" if real_address(run) == real_address(folder) else "inside the folder"
    raise ValueError(
        f"--run {run}: is {place} of {flag}, of which every file is read, so the run's own files would be read too. "
        f"Give a run outside {folder}, such as --run {other}."
    )


def require_no_image_in_steps(run: Location, images: Iterable[SourceImage]) -> None:
    """Refuses images in the folders that the run's steps write: `--restart` deletes what is in them.

    Raises:
        ValueError: an image lies in such a folder.
    """
    steps = {f"{real_address(run)}/{row.name}": row.name for row in STEPS}
    real: dict[str, str] = {}  # a folder has many images
    for image in images:
        if image.problem:
            continue
        above = Location(resolve_address(image.uri, run, {})).parent.uri
        if above not in real:
            real[above] = real_address(Location(above))
        found = next((step for place, step in steps.items() if f"{real[above]}/".startswith(f"{place}/")), None)
        if found:
            raise ValueError(
                f"--run {run}: the image {image.uri} is in its folder {found}/, in which the step {found} writes and "
                f"deletes files. Give a run outside the images' folder, such as --run {run}-run."
            )
