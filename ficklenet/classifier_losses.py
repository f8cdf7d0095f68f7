"""The classifier's loss, and the average of losses over images."""

from torch import Tensor
from torch.nn import functional

from ficklenet.arguments import require_tensor


def multilabel_loss(
    logits_BC: Tensor, targets_BC: Tensor, weights_B: Tensor, total_weight: float | None = None
) -> Tensor:
    """Sigmoid cross-entropy: the mean over classes, then a weighted average over images.

    Args:
        logits_BC: float logits.
        targets_BC: 1 if the image has the class, else 0.
        weights_B, total_weight: as in ``average_over_images``.

    Returns:
        A scalar; 0 if all weights are 0.

    Raises:
        ValueError: the targets do not have the shape of the logits, or, on the CPU, other values than 0 and 1; or there
            is not one weight per image.
    """
    require_tensor(logits_BC, "floats", ("B", "C"), "multilabel_loss", "logits_BC")
    require_tensor(targets_BC, "numbers", tuple(logits_BC.shape), "multilabel_loss", "targets_BC", ", 0 or 1")
    if targets_BC.device.type == "cpu" and not ((targets_BC == 0) | (targets_BC == 1)).all():  # never waits for a GPU
        raise ValueError(
            f"multilabel_loss: targets_BC: given {targets_BC.unique().tolist()[:5]}, allowed: 0 and 1, the absent and "
            "the present classes."
        )
    loss_B = functional.binary_cross_entropy_with_logits(
        logits_BC, targets_BC.to(logits_BC.dtype), reduction="none"
    ).mean(1)
    return average_over_images(loss_B, weights_B, total_weight)


def average_over_images(loss_B: Tensor, weights_B: Tensor, total_weight: float | None = None) -> Tensor:
    """The weighted mean of the images' losses; 0 if all weights are 0.

    Args:
        loss_B: one loss per image.
        weights_B: each image's weight; 0 leaves an unreadable image out.
        total_weight: the divisor; by default the sum of these weights. With several workers, each gives the weight of
            the global batch divided by the number of workers. Then the average of their gradients equals the gradient
            of a single worker.

    Raises:
        ValueError: there is not one weight per image.
    """
    require_tensor(loss_B, "floats", ("B",), "average_over_images", "loss_B")
    require_tensor(weights_B, "numbers", (len(loss_B),), "average_over_images", "weights_B")
    weights_B = weights_B.to(loss_B.dtype)
    summed = (loss_B * weights_B).sum()
    if total_weight is not None:  # a number, which does not wait for the device
        return summed / (total_weight if total_weight > 0 else 1.0)
    total = weights_B.sum()
    return summed / total.where(total > 0, 1.0)
