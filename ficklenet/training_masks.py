"""The masks of a training step: one sample per image and epoch, of the training stream of ``ficklenet.masks``."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ficklenet.gpu_kernels import kernels_for
from ficklenet.masks import TRAINING_STREAM, dropout_masks


def training_masks(
    keys: Sequence[int],
    epoch: int,
    *,
    kernel_size: int,
    grid: tuple[int, int],
    drop_rate: float,
    device: torch.device,
) -> Tensor:
    """The masks of one epoch, drawn by one GPU kernel where Triton can run, else by plain torch: the same bits.

    Args:
        keys: one ``ficklenet.masks.mask_key`` per image.
        epoch: the number of the epoch, which is the sample number. So an image's masks depend only on the run's seed,
            its id and the epoch, not on its batch or worker.
        kernel_size, grid, drop_rate: as in ``ficklenet.masks.dropout_masks``.
        device: the device to draw on.

    Returns:
        bool or uint8 (B, D, V), 0 or 1. On a GPU, rows of zeros may follow the D offsets.
    """
    kernels = kernels_for("triton_masks", device)
    settings: dict[str, Any] = {"kernel_size": kernel_size, "grid": grid, "drop_rate": drop_rate, "device": device}
    if kernels is not None:
        return kernels.training_masks(keys, epoch, **settings)
    return dropout_masks(keys, [epoch], **settings, stream=TRAINING_STREAM)[:, 0]
