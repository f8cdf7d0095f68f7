"""Finds imported masks with a class that their image's label does not have, such as a mask of another image."""

import numpy as np

from cluster.words import plural
from jobs.exports.bring_back import Corrections
from jobs.run.directory import Run
from storage.images import decode_mask


def other_classes(run: Run, corrections: Corrections) -> str:
    """A sentence about masks with a class that is not a label of their image; "" if there are none.

    The masks are used all the same, because a correction may find an object that the label does not have.
    """
    manifest = run.manifest()
    found = []
    for row, mask in corrections.masks.items():
        entry = manifest.rows(row, row + 1)[0]
        labels = np.unique(decode_mask(mask.data, manifest.class_values))
        classes = {int(label) - 1 for label in labels if 0 < label <= manifest.num_classes}
        if entry.labels and (others := classes - set(entry.labels)):
            found.append((entry, others))
    if not found:
        return ""
    entry, others = found[0]
    names = [", ".join(manifest.class_names[label] for label in sorted(some)) for some in (others, entry.labels)]
    return (
        f"{len(found):,} of {plural(len(corrections.masks), 'mask')} with a class that is not a label of the image "
        f"(first: {entry.image_id} has {names[0]}, its label is {names[1]}). If this is wrong, correct the masks and "
        "import them again."
    )
