"""The masks on which a segmentation network was trained. Figures on these images are no measurement of other images.

Whole splits count: a mask that was imported after the training into such a split counts as seen too.
"""

from jobs.run.directory import Run
from jobs.run.fingerprints import masks_read, upstream_ids


def splits_with_trained_masks(run: Run) -> tuple[str, ...]:
    """The splits on whose masks the network of the predictions was trained, sorted; empty without predictions.

    A retrained network learned from the first network's labels, so it has also seen the masks of the first network.
    """
    networks = set(upstream_ids(run.step("predictions").fingerprint()))
    if "retrained" in networks:
        networks.add("segmenter")
    found = set[str]()
    for name in networks:
        settings = run.step(name).fingerprint()
        if settings is None:  # a copy of another run's network, which was trained on that run's images
            continue
        found |= masks_read(run, settings) or set()
    return tuple(sorted(found))
