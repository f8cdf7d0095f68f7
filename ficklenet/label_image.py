"""Makes a label image from scores: resizes them, refines them with the dense CRF, takes the best label, enlarges it."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from ficklenet.arguments import require_array, require_image
from ficklenet.crf import AT_IMAGE_SIZE, refine
from ficklenet.seeds import resize_labels
from ficklenet.transforms import resize_maps

# L labels, H W pixels of the image or of the working size

LEAST_CHANCE = 0.01
"""A label whose probability is lower at every pixel takes no part in the CRF, whose time grows with the labels.

Measured with a network of 7 labels on 21 photographs: 4.1 of them take part, and 3 of a million pixels change.
"""


def label_image(
    scores_at: Callable[[tuple[int, int]], NDArray[np.floating]],
    image_HWC: NDArray[np.uint8],
    *,
    use_crf: bool,
    max_side: int | None = None,
) -> NDArray[np.integer]:
    """The index of the highest score at every pixel, (H, W); of equal scores the lowest index.

    Args:
        scores_at: returns the scores of all labels, (L, H, W), at a size (height, width). For the CRF they must be
            probabilities, which are in [0, 1] and sum to 1 over the labels.
        image_HWC: uint8 RGB; it gives the size, and the edges for the CRF.
        use_crf: refine with the CRF first.
        max_side: an image with a longer side is labelled at this size, and its labels are enlarged.

    Raises:
        ValueError: the image is not uint8 (H, W, 3), the scores have another size than asked, or the CRF is wanted, but
            pydensecrf is not installed.
    """
    require_image(image_HWC, "label_image")
    size = image_HWC.shape[0], image_HWC.shape[1]
    shrink = min(1.0, (max_side or max(size)) / max(size))
    working_size = round(size[0] * shrink) or 1, round(size[1] * shrink) or 1
    scores_LHW = scores_at(working_size)
    require_array(scores_LHW, "floats", ("L", *working_size), "label_image", "the result of scores_at")
    if use_crf:
        labels_HW = _refined_labels(scores_LHW, _resized_image(image_HWC, working_size))
    else:
        labels_HW = scores_LHW.argmax(0)
    return resize_labels(labels_HW, size)


def _refined_labels(probabilities_LHW: NDArray[np.floating], image_HWC: NDArray[np.uint8]) -> NDArray[np.integer]:
    """The most probable label of every pixel after the CRF."""
    least = min(LEAST_CHANCE, 1 / len(probabilities_LHW))  # no label is left out where it is the most probable one
    labels_K = np.flatnonzero(probabilities_LHW.max(axis=(1, 2)) >= least)
    likely_KHW = probabilities_LHW[labels_K]
    likely_KHW = likely_KHW / likely_KHW.sum(0)
    return labels_K[refine(likely_KHW, image_HWC, AT_IMAGE_SIZE).argmax(0)]


def _resized_image(image_HWC: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    if image_HWC.shape[:2] == size:
        return image_HWC
    planes_CHW = resize_maps(torch.from_numpy(image_HWC.astype(np.float32)).permute(2, 0, 1), size)
    return planes_CHW.round().to(torch.uint8).permute(1, 2, 0).numpy()
