"""Records which masks a run has exported, so that an import knows the masks that nobody corrected.

A task of a labelling tool may be exported again long after, when the run has other masks. So the records stay, also if
the masks are predicted again, and they do not depend on the folder of the export.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np

from jobs.run.corrected_masks import EXPORTED
from jobs.run.directory import Run
from storage.label_values import ignore_value
from storage.location import Location


def mask_digest(labels: np.ndarray, num_classes: int) -> str:
    """A hash of the labels (H, W); unknown pixels count as background, because most tools have none."""
    known = known_labels(labels, num_classes).astype("<u2")
    return hashlib.blake2b(repr(known.shape).encode() + known.tobytes(), digest_size=16).hexdigest()


def known_labels(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """The labels with background in place of unknown pixels."""
    return np.where(labels == ignore_value(num_classes), 0, labels)


def record_exported(
    run: Run, labels: str, out: Location, unit_name: str, start_id: str, digests: Mapping[str, str]
) -> None:
    """Keeps the digests of a unit's exported masks, by image id; nothing if the run cannot be written to.

    Args:
        labels: the step that made the masks.
    """
    export = hashlib.blake2b(f"{out.uri} {start_id}".encode(), digest_size=8).hexdigest()
    with suppress(OSError):
        (run.location / EXPORTED / f"{labels}-{export}-{unit_name}.json").write_bytes(json.dumps(digests).encode())


def exported_digests(run: Run) -> dict[str, set[str]]:
    """The digests of all masks that the run has exported, by image id."""
    found, folder = defaultdict[str, set[str]](set), run.location / EXPORTED
    with ThreadPoolExecutor(run.config.images.read_concurrency) as pool:
        for data in pool.map(lambda name: (folder / name).read_bytes(), folder.list_names()):
            with suppress(ValueError, AttributeError):  # a damaged file says nothing
                for image_id, digest in json.loads(data).items():
                    found[image_id].add(digest)
    return found
