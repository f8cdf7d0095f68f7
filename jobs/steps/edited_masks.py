"""Copies of masks that somebody edited inside the run: a repair writes the computed masks in their places.

The copies are in `<run>/edited/<step>/<hash>/<id>.png`, outside the steps, and a copy is never replaced by another one.
They have the data set's own class values, as `import_masks.py` expects.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from cluster.words import plural
from jobs.run.directory import Run
from storage.label_folder import decode_label_png, encode_label_png, is_readable_png, source_values
from storage.label_values import ignore_value
from storage.location import Location
from storage.manifest import Manifest
from storage.verify import Damage

FOLDER = "edited"  # in the run


def keep_edited(run: Run, name: str, damages: Sequence[Damage]) -> list[str]:
    """Copies the label images among damaged objects that can still be read, because somebody may have drawn them.

    Args:
        name: the step.
        damages: its damaged objects.

    Returns:
        Sentences that say where the copies are and how to import them.
    """
    found, sentences = defaultdict[str, dict[str, bytes]](dict), list[str]()
    for place in (damage.place for damage in damages if damage.place.name.endswith(".png")):
        data = place.read_bytes() if place.exists() else b""
        if is_readable_png(data):
            found[place.parent.name][place.name] = _for_import(data, run.manifest())
    for files in found.values():
        folder = _write(run.location / FOLDER / name, files)
        them, were = ("it", "It was") if len(files) == 1 else ("them", "They were")
        sentences.append(
            f"{plural(len(files), 'damaged mask')} can be read, so somebody may have edited {them}. {were} copied to "
            f"{folder}. To bring {them} in: '{run.command('import_masks', '--masks', folder.uri)}'."
        )
    return sentences


def _for_import(data: bytes, manifest: Manifest) -> bytes:
    """A label image with the data set's own class values; the same bytes if they have them, or if it has no labels."""
    if manifest.has_counted_values:
        return data
    try:
        values = source_values(decode_label_png(data), manifest.class_values, ignore_value(manifest.num_classes))
        return encode_label_png(values)
    except (ValueError, IndexError):  # colours, or no label of the run: the import says so
        return data


def _write(folder: Location, files: dict[str, bytes]) -> Location:
    digest = hashlib.sha256()
    for file_name, data in sorted(files.items()):
        digest.update(f"{file_name} {hashlib.sha256(data).hexdigest()}\n".encode())
    place = folder / digest.hexdigest()[:12]
    for file_name, data in files.items():
        (place / file_name).write_bytes(data)
    return place
