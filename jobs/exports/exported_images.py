"""The pictures of an export: where they have the names that its files use, and copies under these names."""

import os
import shlex
from collections.abc import Collection

from cluster.words import plural
from jobs.exports.exporter import ExportStages
from jobs.exports.format_table import FORMATS
from storage.errors import BadImage
from storage.image_bytes import whole_file
from storage.images import read_many
from storage.location import Location

FOLDER = "images"  # in the export


def copy_images(stages: ExportStages, skipped: Collection[str]) -> str:
    """Copies the exported images to `FOLDER`, over what is there, and says how many.

    Args:
        skipped: ids of images without labels.

    Raises:
        ValueError: a folder there is a link, so a copy would be written to another place.
    """
    config = stages.run.config.images
    rows = (row for row in stages.run.manifest().iter_rows() if not row.problem and row.image_id not in skipped)
    names = {row.uri: stages.names.file_name(row) for row in rows if stages.includes(row.split)}

    def copy(uri: str) -> None:
        place = stages.out / FOLDER / names[uri]
        _require_inside(place, stages.out)
        place.write_bytes(whole_file(uri, config.max_bytes))

    results = read_many(list(names), copy, config.read_concurrency)
    bad = [
        f"{uri}: {result.reason}" for uri, result in zip(names, results, strict=True) if isinstance(result, BadImage)
    ]
    lost = f"; {plural(len(bad), 'image')} cannot be read ({bad[0]})" if bad else ""
    return f"{plural(len(names) - len(bad), 'image')} copied to {stages.out / FOLDER}{lost}. {use_of(stages)}".rstrip()


def where_images_are(stages: ExportStages, command: str) -> str:
    """Says in which folder the images have their names in the export, or how to get such a folder.

    Args:
        command: copies the images to `FOLDER`.
    """
    folder, place = stages.names.folder, stages.out / FOLDER
    copies = f"'{command}' copies the images to {place}"
    if FORMATS[stages.format].images == "folder":
        found = f"the images have these names in {folder}" if folder else "no folder has all images under these names"
        return f"{found}. {copies}, only those of this export."
    is_new = not os.path.lexists(place.uri)
    if folder and not is_new and os.path.realpath(place.uri) == os.path.realpath(folder):
        return f"{place} is a link to the images. {use_of(stages)}".rstrip()
    is_inside = f"{stages.out}/".startswith(f"{folder}/")  # a link there would lead to itself, without an end
    can_link = folder.startswith("/") and stages.out.is_local and is_new and not is_inside
    link = f"'{shlex.join(['ln', '-s', folder, place.uri])}' links the images' folder, or " if can_link else ""
    return f"the images belong in {place}: {link}{copies}. {use_of(stages)}".rstrip()


def use_of(stages: ExportStages) -> str:
    """How the program reads `FOLDER`, if it has to be told."""
    if stages.format != "label-studio":
        return ""
    if not stages.out.is_local:
        return "Label Studio serves local folders: export to a local --out."
    return (
        "Then start Label Studio with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
        f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={stages.out}, and add {stages.out / FOLDER} to the project as a "
        "source storage of the type 'Local files', before you import the tasks."
    )


def _require_inside(place: Location, out: Location) -> None:
    """Refuses to write through a link, for example into the folder of the original images."""
    if not place.is_local:
        return
    real, expected = os.path.realpath(place.parent.uri), place.parent.uri.replace(out.uri, os.path.realpath(out.uri), 1)
    if real != expected:
        raise ValueError(
            f"--with-images: {place.parent} is or contains a link to {real}, so the copies would be written there. "
            f"Delete the link first: 'rm {shlex.quote((out / FOLDER).uri)}'."
        )
