"""A classifier of cells that is trained on seeds: all images of a set together correct the seeds of each image.

From the map of one image nobody can know that grass is background. From all images together it can be learnt. The seeds
of each image label its cells. A small network is trained on these labels, with the features of several stages. Then
every image is labelled again, with its own classes and the background. Wrong seeds contradict each other, so the right
ones prevail. This takes seconds, while a segmentation network takes hours, and it reads no masks.

Shape legend: N cells, K channels, L labels (background and classes), H W grid, S slots (an image's classes).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ficklenet.arguments import require_array, require_classes, require_tensor
from ficklenet.model_file import pack_model, unpack_model

CHUNK = 4096  # cells in a step
FILE_FORMAT = "ficklenet-cells-1"


@dataclass(frozen=True)
class CellSpec:
    """Everything about a network of cells except its weights.

    Attributes:
        in_channels: K, the channels of ``cell_features``.
        num_labels: L.
        hidden: the units of its hidden layer.
    """

    in_channels: int
    num_labels: int
    hidden: int = 64


@dataclass(frozen=True)
class LabelledCells:
    """Labelled cells of many images.

    Attributes:
        features_NK: the results of ``cell_features``, float16 or float32.
        labels_N: int64, 0 background.
        present_NL: bool, whether the cell's image has the label. The softmax runs only over these labels, because the
            labels of the image already exclude the others.
    """

    features_NK: Tensor
    labels_N: Tensor
    present_NL: Tensor

    def __post_init__(self) -> None:
        require_tensor(self.features_NK, "floats", ("N", "K"), "LabelledCells", "features_NK")
        num_cells = len(self.features_NK)
        require_tensor(self.labels_N, "integers", (num_cells,), "LabelledCells", "labels_N")
        require_tensor(self.present_NL, "booleans", (num_cells, "L"), "LabelledCells", "present_NL")


def cell_features(stages: Sequence[Tensor]) -> Tensor:
    """The features of all cells of an image, float32 (K, H, W): several stages, each scaled to mean square 1.

    Args:
        stages: each (K', H, W), all on the same grid.
    """
    for stage in stages:
        require_tensor(stage, "floats", ("K", "H", "W"), "cell_features", "stages")
    parts = [stage.float() for stage in stages]
    return torch.cat([part / part.square().mean().sqrt().clamp_min(1e-12) for part in parts])


def choose_cells(
    labels_HW: NDArray[np.integer], ignore_value: int, num_cells: int, generator: np.random.Generator
) -> NDArray[np.intp]:
    """The positions of at most ``num_cells`` labelled cells, row-major: half background, half classes if possible."""
    require_array(labels_HW, "integers", ("H", "W"), "choose_cells", "labels_HW")
    flat = labels_HW.ravel()
    background, classes = flat == 0, (flat > 0) & (flat != ignore_value)
    return np.concatenate(
        [generator.permutation(np.flatnonzero(part))[: num_cells // 2] for part in (background, classes)]
    )


def cell_network(spec: CellSpec) -> nn.Sequential:
    """A network with random weights: features of cells (N, K) -> logits (N, L)."""
    return nn.Sequential(
        nn.Linear(spec.in_channels, spec.hidden), nn.ReLU(), nn.Dropout(0.5), nn.Linear(spec.hidden, spec.num_labels)
    )


def learn_cells(
    spec: CellSpec, cells: LabelledCells, *, num_rounds: int, num_epochs: int, learning_rate: float, seed: int
) -> nn.Sequential:
    """A network trained on the cells' labels. Each round after the first uses the predictions of the previous one.

    Args:
        num_rounds: the number of rounds, from 1.
        seed: the seed of the first weights, dropout and the order of the cells. The caller's random state is kept.
    """
    labels_N = cells.labels_N
    with torch.random.fork_rng(devices=[]):
        for number in range(num_rounds):
            torch.manual_seed(seed + number)
            network = cell_network(spec)
            train_cells(
                network,
                LabelledCells(cells.features_NK, labels_N, cells.present_NL),
                num_epochs=num_epochs,
                learning_rate=learning_rate,
            )
            labels_N = best_labels(network, cells)
    return network


def train_cells(network: nn.Sequential, cells: LabelledCells, *, num_epochs: int, learning_rate: float) -> list[float]:
    """Trains in place with Adam, in an order drawn from torch's generator.

    Returns:
        The mean loss of each epoch.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, weight_decay=1e-4)
    losses = []
    network.train()
    for _ in range(num_epochs):
        total = 0.0
        for chosen in torch.randperm(len(cells.labels_N)).split(CHUNK):
            logits = _among_present(network, cells, chosen)
            loss = nn.functional.cross_entropy(logits, cells.labels_N[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(chosen)
        losses.append(total / len(cells.labels_N))
    network.eval()
    return losses


@torch.no_grad()
def best_labels(network: nn.Sequential, cells: LabelledCells) -> Tensor:
    """Each cell's most probable label among those of its image, int64 (N,)."""
    every = torch.arange(len(cells.labels_N))
    return torch.cat([_among_present(network, cells, chosen).argmax(1) for chosen in every.split(CHUNK)])


def _among_present(network: nn.Sequential, cells: LabelledCells, chosen: Tensor) -> Tensor:
    """The logits (n, L) of the chosen cells; minus infinity for labels that their image does not have."""
    return network(cells.features_NK[chosen].float()).masked_fill(~cells.present_NL[chosen], -torch.inf)


@torch.no_grad()
def cell_probabilities(
    network: nn.Sequential, features_KHW: Tensor, classes_S: Sequence[int] | NDArray[np.integer]
) -> NDArray[np.float32]:
    """The probabilities of the background and of an image's classes, (1 + S, H, W), which sum to 1 in each cell."""
    logits_VL = network(features_KHW.float().flatten(1).T)
    require_classes(classes_S, None, "cell_probabilities", logits_VL.shape[1] - 1)
    wanted = [0, *(int(number) + 1 for number in classes_S)]
    return logits_VL[:, wanted].softmax(1).T.reshape(len(wanted), *features_KHW.shape[1:]).numpy()


def pack_cells(network: nn.Sequential, spec: CellSpec) -> bytes:
    """The network as the bytes of a file: a torch archive of plain types and tensors (``weights_only``)."""
    return pack_model(FILE_FORMAT, spec, network)


def unpack_cells(data: bytes) -> nn.Sequential:
    """The network from such a file, in evaluation mode; it runs no code from the file.

    Raises:
        ValueError: the bytes are not such a file.
    """
    try:
        return unpack_model(data, FILE_FORMAT, lambda spec: cell_network(CellSpec(**spec)))
    except ValueError as error:
        raise ValueError(
            f"network of cells: the given {len(data)} bytes are not one ({error}). Run learn_cells.py again; "
            "it writes the file again."
        ) from error
