"""The segmentation network's losses: the balanced seed loss, the boundary loss, and the full loss on masks.

They are those of DSRG (Huang et al., CVPR 2018, sections 3.2 and 3.4), as used in FickleNet (Lee et al., CVPR 2019,
section 3.4). Every function returns a loss per image, and ``ficklenet.classifier_losses.average_over_images`` averages
them. No gradient flows into seeds, masks and the result of the CRF.

Label maps: 0 background, class number + 1; every other value (255 in the stores) is unknown.

Shape legend: B images, L labels (background and classes), H W feature grid.
"""

import torch
from torch import Tensor

from ficklenet.arguments import require_tensor

LEAST_PROBABILITY = 1e-4  # added to every probability; then they are divided by their new sum
RATIO_LIMITS = (0.05, 20.0)  # refined divided by predicted probability


def label_probabilities(logits_BLHW: Tensor) -> Tensor:
    """The softmax over the labels, always above 0: float32 or float64 (B, L, H, W), which sums to 1."""
    require_tensor(logits_BLHW, "floats", ("B", "L", "H", "W"), "label_probabilities", "logits_BLHW")
    exact = logits_BLHW if logits_BLHW.dtype == torch.float64 else logits_BLHW.float()
    probabilities = exact.softmax(1) + LEAST_PROBABILITY
    return probabilities / probabilities.sum(1, keepdim=True)


def seed_loss(probabilities_BLHW: Tensor, seeds_BHW: Tensor) -> Tensor:
    """The balanced seed loss (B,): the mean cross-entropy at background seeds plus the mean at foreground seeds (Huang
    et al., equation 1). A mean over no seeds is 0.

    Args:
        probabilities_BLHW: the result of ``label_probabilities``.
        seeds_BHW: integer label maps.
    """
    _require_labels(probabilities_BLHW, seeds_BHW, "seed_loss", "seeds_BHW")
    surprise_BHW = _surprise(probabilities_BLHW, seeds_BHW)
    is_background_BHW = seeds_BHW == 0
    is_foreground_BHW = is_known(seeds_BHW, probabilities_BLHW.shape[1]) & ~is_background_BHW
    return _mean_where(is_background_BHW, surprise_BHW) + _mean_where(is_foreground_BHW, surprise_BHW)


def boundary_loss(probabilities_BLHW: Tensor, refined_BLHW: Tensor) -> Tensor:
    """The boundary (constrain-to-boundary) loss (B,): the mean over pixels of the divergence between refined and
    predicted probabilities (Kolesnikov and Lampert, ECCV 2016, equation 5), with a clipped ratio.

    Where the ratio is at a limit, the prediction gets no gradient.

    Args:
        probabilities_BLHW: the result of ``label_probabilities``.
        refined_BLHW: the same probabilities after the CRF; no gradient flows into them.
    """
    require_tensor(probabilities_BLHW, "floats", ("B", "L", "H", "W"), "boundary_loss", "probabilities_BLHW")
    require_tensor(refined_BLHW, "floats", tuple(probabilities_BLHW.shape), "boundary_loss", "refined_BLHW")
    refined_BLHW = refined_BLHW.detach().to(probabilities_BLHW.dtype)
    ratio_BLHW = (refined_BLHW / probabilities_BLHW).clamp(*RATIO_LIMITS)
    return (refined_BLHW * ratio_BLHW.log()).sum(1).mean((1, 2))


def full_loss(probabilities_BLHW: Tensor, truth_BHW: Tensor) -> Tensor:
    """The cross-entropy (B,) with true label maps: the mean over the known pixels; 0 for an image without any.

    Args:
        probabilities_BLHW: the result of ``label_probabilities``.
        truth_BHW: integer label maps at map resolution; all pixels of an image without a mask are unknown.
    """
    _require_labels(probabilities_BLHW, truth_BHW, "full_loss", "truth_BHW")
    known_BHW = is_known(truth_BHW, probabilities_BLHW.shape[1])
    return _mean_where(known_BHW, _surprise(probabilities_BLHW, truth_BHW))


def is_known(labels: Tensor, num_labels: int) -> Tensor:
    """Where the value of a label map is one of the labels."""
    return (labels >= 0) & (labels < num_labels)


def _require_labels(probabilities_BLHW: Tensor, labels_BHW: Tensor, asked_by: str, name: str) -> None:
    """Refuses labels that are no integers on the grid of the probabilities."""
    require_tensor(probabilities_BLHW, "floats", ("B", "L", "H", "W"), asked_by, "probabilities_BLHW")
    batch, _, *grid = probabilities_BLHW.shape
    require_tensor(labels_BHW, "integers", (batch, *grid), asked_by, name)


def _surprise(probabilities_BLHW: Tensor, labels_BHW: Tensor) -> Tensor:
    """-log of the probability of each pixel's label (B, H, W); for unknown pixels that of the background."""
    named_BHW = labels_BHW.where(is_known(labels_BHW, probabilities_BLHW.shape[1]), 0)
    return -probabilities_BLHW.gather(1, named_BHW.long()[:, None])[:, 0].log()


def _mean_where(chosen_BHW: Tensor, values_BHW: Tensor) -> Tensor:
    """The mean over each image's chosen pixels; 0 if there are none."""
    return values_BHW.where(chosen_BHW, 0).sum((1, 2)) / chosen_BHW.sum((1, 2)).clamp(min=1)
