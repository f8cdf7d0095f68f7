"""Finds imported masks with a class that their image's label does not have, such as a mask of another image."""

from cluster.words import plural
from jobs.exports.bring_back import Corrections, classes_in
from jobs.run.directory import Run


def other_classes(run: Run, corrections: Corrections) -> str:
    """A sentence about masks with a class that is not a label of their image; "" if there are none.

    The masks are used all the same, because a correction may find an object that the label does not have.
    """
    manifest = run.manifest()
    found = []
    for row, mask in corrections.masks.items():
        entry = manifest.rows(row, row + 1)[0]
        if entry.labels and (others := classes_in(mask.data, manifest) - set(entry.labels)):
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
