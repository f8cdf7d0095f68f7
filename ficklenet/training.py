"""The classifier's training step: a batch in, a loss out. No loop, no workers, no checkpoints."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ficklenet.classifier import FickleNet
from ficklenet.losses import multilabel_loss
from ficklenet.masks import TRAINING_STREAM, dropout_masks
from ficklenet.transforms import normalize


def training_loss(
    model: nn.Module,
    images_BCHW: Tensor,
    targets_BC: Tensor,
    keys: Sequence[int],
    epoch: int,
    weights_B: Tensor | None = None,
    total_weight: float | None = None,
) -> Tensor:
    """The loss of one batch under this epoch's masks.

    Args:
        model: a ``FickleNet``, or one wrapped for distributed training.
        images_BCHW: uint8 RGB (B, 3, size, size), on the model's device.
        targets_BC: 1 where the image has the class, else 0.
        keys: one ``ficklenet.masks.mask_key`` per image; the epoch counts as the sample, so an image's masks
            depend on the run's seed, its id and the epoch alone, not on its batch or worker.
        epoch: from 0.
        weights_B: each image's weight, 1 unless given.
        total_weight: as in ``multilabel_loss``.

    Returns:
        Scalar loss with its graph.
    """
    spec = unwrapped(model).spec
    masks_B1DV = dropout_masks(
        keys,
        [epoch],
        kernel_size=spec.kernel_size,
        grid=spec.grid,
        drop_rate=spec.drop_rate,
        stream=TRAINING_STREAM,
        device=images_BCHW.device,
    )
    logits_BC = model(normalize(images_BCHW), masks_B1DV[:, 0])
    weights_B = logits_BC.new_ones(len(keys)) if weights_B is None else weights_B
    return multilabel_loss(logits_BC, targets_BC, weights_B, total_weight)


def make_optimizer(
    model: FickleNet, *, learning_rate: float, weight_decay: float = 0.0, backbone_factor: float = 1.0
) -> torch.optim.Adam:
    """Adam over the weights that train: the head at the learning rate, the backbone at a factor of it."""
    groups = [(model.head, 1.0), (model.backbone, backbone_factor)]
    optimizer = torch.optim.Adam(
        [
            {"params": [weight for weight in part.parameters() if weight.requires_grad], "factor": factor}
            for part, factor in groups
        ],
        lr=learning_rate,
        weight_decay=weight_decay,
    )
    set_learning_rate(optimizer, learning_rate)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Sets every group's rate to ``learning_rate`` times the group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["factor"]


def learning_rate_at(epoch: int, base: float, halve_every: int = 10) -> float:
    """The schedule: ``base``, halved after every ``halve_every`` epochs (FickleNet, section 4.1)."""
    return base * 0.5 ** (epoch // halve_every)


def unwrapped(model: nn.Module) -> FickleNet:
    """The classifier itself, without the wrapper of distributed training."""
    inner = getattr(model, "module", model)
    if not isinstance(inner, FickleNet):
        raise TypeError(f"training: a {type(inner).__name__} given; give a FickleNet, wrapped or not.")
    return inner
