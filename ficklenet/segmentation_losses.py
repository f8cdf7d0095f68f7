"""The segmentation network's losses: balanced seeds, boundaries and, where there are masks, full supervision.

DSRG (Huang et al., CVPR 2018, sections 3.2 and 3.4) as FickleNet trains with it (Lee et al., CVPR 2019, section 3.4).
Every function gives a loss per image; ``ficklenet.classifier_losses.average_over_images`` averages them. Seeds, masks
and the CRF's refinement are data: no gradient flows into them.

Label maps: 0 background, class number + 1; every other value (255 in the stores) is unknown.

Shape legend: B images, L labels (background and classes), H W feature grid.
"""

import torch
from torch import Tensor

LEAST_PROBABILITY = 1e-4  # added to every probability before they are divided by their new sum
RATIO_LIMITS = (0.05, 20.0)  # of refined to predicted probability


def label_probabilities(logits_BLHW: Tensor) -> Tensor:
    """Softmax over the labels, kept away from 0: float32 or float64 (B, L, H, W), summing to 1."""
    exact = logits_BLHW if logits_BLHW.dtype == torch.float64 else logits_BLHW.float()
    probabilities = exact.softmax(1) + LEAST_PROBABILITY
    return probabilities / probabilities.sum(1, keepdim=True)


def seed_loss(probabilities_BLHW: Tensor, seeds_BHW: Tensor) -> Tensor:
    """Balanced seed loss (B,): cross-entropy at the background's seeds, divided by their number, plus the same at the
    foreground's (Huang et al., equation 1); a part without seeds is 0.

    Args:
        probabilities_BLHW: of ``label_probabilities``.
        seeds_BHW: integer label maps.
    """
    surprise_BHW = _surprise(probabilities_BLHW, seeds_BHW)
    is_background_BHW = seeds_BHW == 0
    is_foreground_BHW = is_known(seeds_BHW, probabilities_BLHW.shape[1]) & ~is_background_BHW
    return _mean_where(is_background_BHW, surprise_BHW) + _mean_where(is_foreground_BHW, surprise_BHW)


def boundary_loss(probabilities_BLHW: Tensor, refined_BLHW: Tensor) -> Tensor:
    """Boundary (constrain-to-boundary) loss (B,): the mean over pixels of the divergence of the predicted from the
    refined probabilities (Kolesnikov and Lampert, ECCV 2016, equation 5), their ratio clipped.

    Where the ratio meets a limit, the prediction gets no gradient.

    Args:
        probabilities_BLHW: of ``label_probabilities``.
        refined_BLHW: the same after the CRF; taken as data.
    """
    refined_BLHW = refined_BLHW.detach().to(probabilities_BLHW.dtype)
    ratio_BLHW = (refined_BLHW / probabilities_BLHW).clamp(*RATIO_LIMITS)
    return (refined_BLHW * ratio_BLHW.log()).sum(1).mean((1, 2))


def full_loss(probabilities_BLHW: Tensor, truth_BHW: Tensor) -> Tensor:
    """Cross-entropy (B,) with true label maps: the mean over the known pixels, 0 for an image that has none.

    Args:
        probabilities_BLHW: of ``label_probabilities``.
        truth_BHW: integer label maps at map resolution; an image without a mask is all unknown.
    """
    known_BHW = is_known(truth_BHW, probabilities_BLHW.shape[1])
    return _mean_where(known_BHW, _surprise(probabilities_BLHW, truth_BHW))


def is_known(labels: Tensor, num_labels: int) -> Tensor:
    """Where a label map names one of the labels."""
    return (labels >= 0) & (labels < num_labels)


def _surprise(probabilities_BLHW: Tensor, labels_BHW: Tensor) -> Tensor:
    """-log of the named label's probability (B, H, W); at unknown pixels that of the background."""
    named_BHW = labels_BHW.where(is_known(labels_BHW, probabilities_BLHW.shape[1]), 0)
    return -probabilities_BLHW.gather(1, named_BHW.long()[:, None])[:, 0].log()


def _mean_where(chosen_BHW: Tensor, values_BHW: Tensor) -> Tensor:
    """The mean of each image's chosen pixels, 0 where none is."""
    return values_BHW.where(chosen_BHW, 0).sum((1, 2)) / chosen_BHW.sum((1, 2)).clamp(min=1)
