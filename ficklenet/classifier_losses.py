"""The classifier's loss, how images' losses become one, and what the loss of a classifier that learnt nothing is."""

import math
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional


def multilabel_loss(
    logits_BC: Tensor, targets_BC: Tensor, weights_B: Tensor, total_weight: float | None = None
) -> Tensor:
    """Sigmoid cross-entropy: its mean over classes, averaged over images with weights.

    Args:
        logits_BC: float logits.
        targets_BC: 1 where the image has the class, else 0.
        weights_B, total_weight: as in ``average_over_images``.

    Returns:
        Scalar; 0 when every weight is 0.
    """
    loss_B = functional.binary_cross_entropy_with_logits(
        logits_BC, targets_BC.to(logits_BC.dtype), reduction="none"
    ).mean(1)
    return average_over_images(loss_B, weights_B, total_weight)


def average_over_images(loss_B: Tensor, weights_B: Tensor, total_weight: float | None = None) -> Tensor:
    """The weighted mean of the images' losses; 0 when every weight is 0.

    Args:
        loss_B: a loss per image.
        weights_B: each image's weight; 0 leaves an unreadable image out.
        total_weight: what to divide by; the sum of these weights unless given. A worker of several gives its
            share of the global batch's weight (global sum / number of workers), so that averaged gradients
            equal one worker's.
    """
    weights_B = weights_B.to(loss_B.dtype)
    total = weights_B.sum() if total_weight is None else weights_B.new_tensor(total_weight)
    return (loss_B * weights_B).sum() / total.where(total > 0, 1.0)


def best_constant_loss(shares_C: Sequence[float]) -> float:
    """The least ``multilabel_loss`` of a classifier that gives every image the same logits.

    A training whose mean loss over an epoch is not below it has learnt nothing from the images.

    Args:
        shares_C: each class's share of the training images, in [0, 1].

    Returns:
        The mean over classes of the entropy of their share, in nats.

    Raises:
        ValueError: no class, or a share outside [0, 1].
    """
    if not shares_C or not all(0 <= share <= 1 for share in shares_C):
        raise ValueError(f"class shares: {list(shares_C)} given; give one from 0 to 1 for each class.")
    return sum(_entropy(share) for share in shares_C) / len(shares_C)


def _entropy(share: float) -> float:
    return -sum(part * math.log(part) for part in (share, 1 - share) if part > 0)
