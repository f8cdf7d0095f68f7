"""The corrected masks of a run for an export, and their hash."""

import hashlib
import json
from collections.abc import Callable, Mapping

from cluster.words import plural
from jobs.run.corrected_masks import is_corrected
from jobs.run.directory import Run


def corrected_masks(run: Run, includes: Callable[[str], bool]) -> dict[str, str]:
    """The addresses of the corrected masks, by image id.

    Args:
        includes: whether the images of a split are wanted.
    """
    return {
        image_id: mask_uri
        for batch in run.manifest().iter_columns(["image_id", "split", "mask_uri"])
        for image_id, split, mask_uri in zip(*batch.values(), strict=True)
        if is_corrected(run, mask_uri) and includes(split)
    }


def in_words(run: Run, masks: Mapping[str, str]) -> str:
    """The number and a hash of corrected masks, for a fingerprint: the hash changes if an image gets another mask.

    The hash is of the paths in the run, so it stays if the run is moved. The name of a mask's folder is a hash of the
    masks in it, so other content has another path.
    """
    paths = {image_id: mask_uri.removeprefix(f"{run.uri}/") for image_id, mask_uri in masks.items()}
    digest = hashlib.sha256(json.dumps(paths, sort_keys=True).encode()).hexdigest()
    return f"{plural(len(masks), 'mask')} ({digest[:8]})"
