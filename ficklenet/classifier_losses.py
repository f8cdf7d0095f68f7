"""The classifier's loss, and how images' losses become one."""

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
