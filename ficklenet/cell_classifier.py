"""A classifier of cells that learns from seeds: what the images of a set have in common corrects each single one.

A map of one image cannot know that grass is background. All images together can. Cells are labelled by their images'
own seeds. A small network learns to tell the labels apart from the kept features of several stages. Then every image is
labelled again, among its own classes and the background. Wrong seeds disagree with each other, so the right ones win.
It takes seconds where a segmentation network takes hours, and it reads no mask.

Shape legend: N cells, K channels, L labels (background and classes), H W grid, S slots (an image's classes).
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

CHUNK = 4096  # cells in a step


def cell_network(in_channels: int, num_labels: int, hidden: int = 128) -> nn.Sequential:
    """Features of a cell (N, K) -> logits (N, L)."""
    return nn.Sequential(nn.Linear(in_channels, hidden), nn.ReLU(), nn.Dropout(0.5), nn.Linear(hidden, num_labels))


def train_cells(
    network: nn.Sequential,
    features_NK: Tensor,
    labels_N: Tensor,
    present_NL: Tensor,
    *,
    num_epochs: int,
    learning_rate: float,
    generator: torch.Generator,
    weights_N: Tensor | None = None,
) -> list[float]:
    """Trains in place by Adam on labelled cells of many images.

    Args:
        features_NK: float16 or float32.
        labels_N: int64 labels, 0 background.
        present_NL: bool, whether the cell's image has the label; the softmax runs over these alone, as
            the image's labels already exclude the others.
        weights_N: each cell's weight, 1 unless given.

    Returns:
        Each epoch's mean loss.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, weight_decay=1e-4)
    losses = []
    network.train()
    for _ in range(num_epochs):
        total = 0.0
        for chosen in torch.randperm(len(labels_N), generator=generator).split(CHUNK):
            logits = network(features_NK[chosen].float()).masked_fill(~present_NL[chosen], -torch.inf)
            loss_N = nn.functional.cross_entropy(logits, labels_N[chosen], reduction="none")
            loss = loss_N.mean() if weights_N is None else (loss_N * weights_N[chosen]).sum() / weights_N[chosen].sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(chosen)
        losses.append(total / len(labels_N))
    network.eval()
    return losses


@torch.no_grad()
def cell_probabilities(
    network: nn.Sequential, features_KHW: Tensor, classes_S: Sequence[int] | NDArray[np.integer]
) -> NDArray[np.float32]:
    """Probabilities of the background and of an image's classes, (1 + S, H, W), that sum to 1 in each cell."""
    logits_VL = network(features_KHW.float().flatten(1).T)
    wanted = [0, *(int(number) + 1 for number in classes_S)]
    return logits_VL[:, wanted].softmax(1).T.reshape(len(wanted), *features_KHW.shape[1:]).numpy()
