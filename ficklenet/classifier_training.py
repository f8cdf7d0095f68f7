"""The classifier's training step: it takes a batch, changes the weights and returns a loss. No loop, no files."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from ficklenet.arguments import require_images, require_one_per_image, require_tensor
from ficklenet.classifier import FickleNet
from ficklenet.classifier_losses import multilabel_loss
from ficklenet.stages import stage_factors
from ficklenet.training_masks import training_masks
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
    """The loss of one batch with this epoch's masks.

    Args:
        model: a ``FickleNet``, or one wrapped for distributed training.
        images_BCHW: uint8 RGB (B, 3, size, size), on the model's device.
        targets_BC: 1 if the image has the class, else 0.
        keys: one ``ficklenet.masks.mask_key`` per image. The epoch is used as the sample number, so an image's masks
            depend only on the run's seed, its id and the epoch, not on its batch or worker.
        epoch: the number of the epoch, from 0.
        weights_B: each image's weight; by default 1.
        total_weight: as in ``multilabel_loss``.

    Returns:
        The scalar loss with its graph.

    Raises:
        ValueError: the images are not uint8 of the classifier's input size, or there is not one key, target and weight
            per image.
    """
    spec = unwrapped(model).spec
    require_images(images_BCHW, "training_loss", spec.input_size, "images_BCHW")
    require_one_per_image(len(images_BCHW), "training_loss", keys=keys)
    masks_BDV = training_masks(
        keys,
        epoch,
        kernel_size=spec.kernel_size,
        grid=spec.grid,
        drop_rate=spec.drop_rate,
        device=images_BCHW.device,
    )
    inputs_BCHW = normalize(images_BCHW).contiguous(memory_format=torch.channels_last)
    logits_BC = model(inputs_BCHW, masks_BDV)
    weights_B = logits_BC.new_ones(len(keys)) if weights_B is None else weights_B
    return multilabel_loss(logits_BC, targets_BC, weights_B, total_weight)


def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images_BCHW: Tensor,
    targets_BC: Tensor,
    keys: Sequence[int],
    epoch: int,
    weights_B: Tensor,
    *,
    total_weight: float | None = None,
    micro_batch_size: int = 0,
    precision: torch.dtype = torch.float32,
) -> Tensor:
    """One step of the optimiser on one batch.

    Args:
        model, images_BCHW, targets_BC, keys, epoch, weights_B: as in ``training_loss``; the tensors are on the model's
            device.
        total_weight, micro_batch_size: as in ``step_in_micro_batches``.
        precision: the precision of the network; the loss and the weights remain float32.

    Returns:
        The scalar loss of the batch, detached.

    Raises:
        ValueError: as in ``training_loss``.
    """
    require_images(images_BCHW, "training_step", unwrapped(model).spec.input_size, "images_BCHW")
    require_one_per_image(len(images_BCHW), "training_step", targets=targets_BC, keys=keys, weights=weights_B)

    def loss_of(chosen: slice, total: float) -> Tensor:
        with torch.autocast(images_BCHW.device.type, precision, enabled=precision != torch.float32):
            return training_loss(
                model, images_BCHW[chosen], targets_BC[chosen], keys[chosen], epoch, weights_B[chosen], total
            )

    return step_in_micro_batches(
        model, optimizer, loss_of, weights_B, total_weight=total_weight, micro_batch_size=micro_batch_size
    )


def step_in_micro_batches(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[slice, float], Tensor],
    weights_B: Tensor,
    *,
    total_weight: float | None = None,
    micro_batch_size: int = 0,
) -> Tensor:
    """One step of the optimiser on one batch, in micro-batches if the whole batch does not fit the device.

    The gradients of the micro-batches add up to the gradient of the batch, because the loss of each is divided by the
    weight of the whole batch.

    Args:
        loss_of: returns the loss of some of the batch's images, divided by the given weight.
        weights_B: each image's weight.
        total_weight: as in ``ficklenet.classifier_losses.average_over_images``.
        micro_batch_size: images in a micro-batch; 0 for the whole batch.

    Returns:
        The scalar loss of the batch, detached.
    """
    require_tensor(weights_B, "numbers", ("B",), "step_in_micro_batches", "weights_B")
    size = micro_batch_size or len(weights_B)
    total_weight = float(weights_B.sum()) if total_weight is None else total_weight
    loss = weights_B.new_zeros(())
    optimizer.zero_grad(set_to_none=True)
    for start in range(0, len(weights_B), size):
        # Workers average their gradients once, with the last micro-batch
        with nullcontext() if start + size >= len(weights_B) else getattr(model, "no_sync", nullcontext)():
            micro_batch_loss = loss_of(slice(start, start + size), total_weight)
            micro_batch_loss.backward()
        loss += micro_batch_loss.detach()
    optimizer.step()
    return loss


PRETRAINED_FACTOR = 0.01
"""The learning rate of a pretrained backbone, divided by that of the head. With Adam, VGG-16 learns nothing at 1e-3
(validation mAP 0.25, the loss remains at 0.51), little at 1e-4 (0.40 after 3 epochs) and well at 1e-5 (0.92)."""


def make_optimizer(
    model: FickleNet,
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    backbone_factor: float = PRETRAINED_FACTOR,
    layer_decay: float = 1.0,
) -> torch.optim.Adam:
    """Adam for the weights that are trained: the head at the learning rate, the backbone at this rate times a factor.

    Args:
        backbone_factor: the backbone's factor; 1 for a backbone with random weights.
        layer_decay: the learning rate of each backbone stage is that of the next stage times this.

    Raises:
        ValueError: the decay is not above 0 and at most 1.
    """
    groups = [(list(model.head.parameters()), 1.0)]
    stages = model.backbone.stage_weights()
    if layer_decay == 1.0:
        groups.append(([weight for stage in stages for weight in stage], backbone_factor))
    else:
        factors = stage_factors(len(stages), layer_decay)
        groups += [(stage, backbone_factor * factor) for stage, factor in zip(stages, factors, strict=True)]
    optimizer = torch.optim.Adam(
        [
            {"params": [weight for weight in weights if weight.requires_grad], "factor": factor}
            for weights, factor in groups
        ],
        lr=learning_rate,
        weight_decay=weight_decay,
    )
    set_learning_rate(optimizer, learning_rate)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Sets the learning rate of every group to ``learning_rate`` times the group's factor."""
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
