"""Features of a frozen backbone, which are computed once, and the training of the classifier's head on them.

A frozen backbone gives the same features in every epoch. So they are computed once per image and once for its mirror
image, and kept. A step of the classifier computes only the stochastic head: one product with this epoch's masks and one
linear layer. On one CPU core this takes 5 to 10 ms per image; VGG-16 would take 0.8 s.

There are no random crops here: the features are those of the whole image. No loop over workers, no files.

Shape legend: B images, K channels, H W feature grid, C classes, D offsets, V = H * W positions.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ficklenet.arguments import require_images, require_one_per_image, require_tensor
from ficklenet.backbones import Backbone
from ficklenet.classifier_losses import multilabel_loss
from ficklenet.classifier_training import learning_rate_at, step_in_micro_batches
from ficklenet.head import StochasticHead
from ficklenet.training_masks import training_masks
from ficklenet.transforms import normalize


@dataclass(frozen=True)
class FeatureBatch:
    """The kept features and labels of some images.

    Attributes:
        features_BKHW: the output of the frozen backbone, of any float type (float16 halves the space), on the head's
            device.
        targets_BC: 1 if the image has the class, else 0.
        keys: one ``ficklenet.masks.mask_key`` per image; a mirror image has the key of its image.
        weights_B: each image's weight; 0 leaves an unreadable image out. None: 1 for each.
    """

    features_BKHW: Tensor
    targets_BC: Tensor
    keys: Sequence[int]
    weights_B: Tensor | None = None


def is_frozen(backbone: Backbone) -> bool:
    """Whether no weight of the backbone is trained."""
    return not any(weight.requires_grad for stage in backbone.stage_weights() for weight in stage)


@torch.inference_mode()
def frozen_features(
    backbone: Backbone, images_BCHW: Tensor, precision: torch.dtype, *, micro_batch_size: int = 0
) -> Tensor:
    """The features of some images, as they are kept.

    Args:
        backbone: in evaluation mode.
        images_BCHW: uint8 RGB.
        precision: the backbone's precision.
        micro_batch_size: images in one pass; 0: all. On a CPU it is always 1: this is as fast, and an image has the
            same bits in every batch.

    Returns:
        float16 (B, K, H, W) on the CPU; larger values become float16's largest.

    Raises:
        ValueError: the images are not uint8.
    """
    require_images(images_BCHW, "frozen_features", name="images_BCHW")
    device = next(backbone.parameters()).device
    size = 1 if device.type == "cpu" else micro_batch_size or len(images_BCHW)
    limit = torch.finfo(torch.float16).max
    found = []
    for part_BCHW in images_BCHW.split(size):
        inputs_BCHW = normalize(part_BCHW.to(device, non_blocking=True))
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            features_BKHW = backbone(inputs_BCHW.contiguous(memory_format=torch.channels_last))
        found.append(features_BKHW.float().clamp(-limit, limit).half().cpu())
    return torch.cat(found).contiguous()


def head_loss(head: nn.Module, batch: FeatureBatch, epoch: int, *, drop_rate: float) -> Tensor:
    """The loss of one batch with this epoch's masks, which are the same as in ``ficklenet.classifier_training``."""
    _require_batch(batch, "head_loss")
    return _loss(head, batch, slice(None), epoch, drop_rate, _weights(batch), None)


def head_step(
    head: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: FeatureBatch,
    epoch: int,
    *,
    drop_rate: float,
    total_weight: float | None = None,
    micro_batch_size: int = 0,
) -> Tensor:
    """One step of the optimiser on one batch of kept features.

    Args:
        head: a ``StochasticHead``, or one wrapped for distributed training; the optimiser has its weights.
        epoch: the number of the epoch, from 0; it is the sample number in the training stream of masks.
        drop_rate: p.
        total_weight, micro_batch_size: as in ``ficklenet.classifier_training.step_in_micro_batches``.

    Returns:
        The scalar loss of the batch, detached.
    """
    _require_batch(batch, "head_step")
    weights_B = _weights(batch)

    def loss_of(chosen: slice, total: float) -> Tensor:
        return _loss(head, batch, chosen, epoch, drop_rate, weights_B, total)

    return step_in_micro_batches(
        head, optimizer, loss_of, weights_B, total_weight=total_weight, micro_batch_size=micro_batch_size
    )


def train_head(
    head: StochasticHead,
    batches_of_epoch: Callable[[int], Iterable[FeatureBatch]],
    *,
    num_epochs: int,
    drop_rate: float,
    learning_rate: float,
    halve_every: int = 10,
) -> list[float]:
    """Trains the head in place with Adam.

    Args:
        batches_of_epoch: returns the batches of an epoch (from 0) in the order of training.
        learning_rate: the rate of the first epoch; it is halved after every ``halve_every`` epochs (FickleNet, section
            4.1).

    Returns:
        The mean loss over the batches of each epoch.

    Raises:
        ValueError: an epoch has no batch.
    """
    optimizer = torch.optim.Adam(head.parameters(), lr=learning_rate)
    losses = []
    for epoch in range(num_epochs):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(epoch, learning_rate, halve_every)
        steps = [
            float(head_step(head, optimizer, batch, epoch, drop_rate=drop_rate)) for batch in batches_of_epoch(epoch)
        ]
        if not steps:
            raise ValueError(f"train_head: epoch {epoch} has no batch; give at least one image.")
        losses.append(sum(steps) / len(steps))
    return losses


def _loss(
    head: nn.Module,
    batch: FeatureBatch,
    chosen: slice,
    epoch: int,
    drop_rate: float,
    weights_B: Tensor,
    total_weight: float | None,
) -> Tensor:
    bare = cast(StochasticHead, getattr(head, "module", head))  # without the wrapper of distributed training
    features_BKHW = batch.features_BKHW[chosen].to(bare.weight.dtype)
    masks_BDV = training_masks(
        batch.keys[chosen],
        epoch,
        kernel_size=bare.kernel_size,
        grid=(features_BKHW.shape[2], features_BKHW.shape[3]),
        drop_rate=drop_rate,
        device=features_BKHW.device,
    )
    logits_BC = head(features_BKHW, masks_BDV)
    return multilabel_loss(logits_BC, batch.targets_BC[chosen], weights_B[chosen], total_weight)


def _require_batch(batch: FeatureBatch, asked_by: str) -> None:
    require_tensor(batch.features_BKHW, "floats", ("B", "K", "H", "W"), asked_by, "features_BKHW")
    num_images = len(batch.features_BKHW)
    require_one_per_image(num_images, asked_by, targets=batch.targets_BC, keys=batch.keys, weights=_weights(batch))


def _weights(batch: FeatureBatch) -> Tensor:
    if batch.weights_B is not None:
        return batch.weights_B
    return torch.ones(len(batch.keys), device=batch.features_BKHW.device)
