"""Training the classifier's head alone, on features of a frozen backbone that were computed once.

A frozen backbone gives the same features in every epoch, so they are computed once per image (and once for its mirror
image) and kept. What remains of a step is the stochastic head: one product with this epoch's masks and one linear
layer. On one CPU core that takes 5 to 10 ms an image where VGG-16 takes 0.8 s.

There is no random crop here: an image's features are those of the whole image. No loop over workers, no files.

Shape legend: B images, K channels, H W feature grid, C classes, D offsets, V = H * W positions.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ficklenet.classifier_losses import multilabel_loss
from ficklenet.classifier_training import learning_rate_at, step_in_micro_batches
from ficklenet.head import StochasticHead
from ficklenet.masks import TRAINING_STREAM, dropout_masks


@dataclass(frozen=True)
class FeatureBatch:
    """Some images' kept features and labels.

    Attributes:
        features_BKHW: the frozen backbone's output, of any float type (float16 halves the space), on the head's device.
        targets_BC: 1 where the image has the class, else 0.
        keys: one ``ficklenet.masks.mask_key`` per image; a mirror image has its image's key.
        weights_B: each image's weight; 0 leaves an unreadable image out. None: 1 for each.
    """

    features_BKHW: Tensor
    targets_BC: Tensor
    keys: Sequence[int]
    weights_B: Tensor | None = None


def head_loss(head: StochasticHead, batch: FeatureBatch, epoch: int, *, drop_rate: float) -> Tensor:
    """The loss of one batch under this epoch's masks: the same masks as ``ficklenet.classifier_training`` draws."""
    return _loss(head, batch, slice(None), epoch, drop_rate, _weights(batch), None)


def head_step(
    head: StochasticHead,
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
        head: a ``StochasticHead``; the optimiser holds its weights.
        epoch: from 0; it counts as the sample of the training stream of masks.
        drop_rate: p.
        total_weight, micro_batch_size: as in ``ficklenet.classifier_training.step_in_micro_batches``.

    Returns:
        Scalar loss of the batch, detached.
    """
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
    """Trains the head by Adam, in place.

    Args:
        batches_of_epoch: the batches of an epoch, counted from 0, in the order of training.
        learning_rate: of the first epoch, halved after every ``halve_every`` epochs (FickleNet, section 4.1).

    Returns:
        Each epoch's mean loss over its batches.

    Raises:
        ValueError: an epoch without a batch.
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
    head: StochasticHead,
    batch: FeatureBatch,
    chosen: slice,
    epoch: int,
    drop_rate: float,
    weights_B: Tensor,
    total_weight: float | None,
) -> Tensor:
    features_BKHW = batch.features_BKHW[chosen].to(head.weight.dtype)
    masks_B1DV = dropout_masks(
        batch.keys[chosen],
        [epoch],
        kernel_size=head.kernel_size,
        grid=(features_BKHW.shape[2], features_BKHW.shape[3]),
        drop_rate=drop_rate,
        stream=TRAINING_STREAM,
        device=features_BKHW.device,
    )
    logits_BC = head(features_BKHW, masks_B1DV[:, 0])
    return multilabel_loss(logits_BC, batch.targets_BC[chosen], weights_B[chosen], total_weight)


def _weights(batch: FeatureBatch) -> Tensor:
    if batch.weights_B is not None:
        return batch.weights_B
    return torch.ones(len(batch.keys), device=batch.features_BKHW.device)
