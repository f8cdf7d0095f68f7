"""Refinements that look at the image again: walks along affinities, CRFs and the classifier of cells.

Each takes evidence and gives evidence or labels; `voc6_seeds.py` chooses its settings on the tune part.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from voc6_data import CLASS_NAMES, GRID, IGNORE, Image, features
from voc6_measure import Evidence, Labels, Setting, by_theta, seeds_above

from ficklenet.baselines import divided_by_maximum
from ficklenet.cell_classifier import (
    CellSpec,
    LabelledCells,
    cell_features,
    cell_probabilities,
    choose_cells,
    learn_cells,
)
from ficklenet.crf import CrfParameters, refine
from ficklenet.propagation import Likeness, transitions, walk

EvidenceOf = Callable[[Image], Evidence]

STAGES = ("conv4", "conv5")
CELLS_PER_IMAGE = 200  # half of them background


class Affinities:
    """The walk's matrices of images, computed once for all heads."""

    def __init__(self, kept: Path, likeness: Likeness) -> None:
        self.kept, self.likeness = kept, likeness
        self._made: dict[int, csr_matrix] = {}

    def of(self, image: Image) -> csr_matrix:
        if image.index not in self._made:
            stages = [np.asarray(features(self.kept, "321", stage)[image.index]) for stage in STAGES]
            self._made[image.index] = transitions(stages, image.colours, self.likeness)
        return self._made[image.index]


def walks(evidence_of: EvidenceOf, affinities: Affinities, nums_of_steps: Sequence[int]) -> list[Setting]:
    """The evidence after so many steps along affinities of features and colours."""

    def after(num_steps: int) -> EvidenceOf:
        def walked(image: Image) -> Evidence:
            evidence = evidence_of(image)
            both = np.concatenate([evidence.values_SHW, evidence.rank_SHW])
            spread = walk(affinities.of(image), both, num_steps)
            values, rank = np.split(spread, 2)
            return Evidence(divided_by_maximum(values), rank)

        return walked

    return [by_theta(f"{n} steps", after(n)) for n in nums_of_steps]


def dense_crf(evidence_of: EvidenceOf, parameters: CrfParameters, thetas: Sequence[float]) -> Setting:
    """The CRF over theta as the background's evidence and the maps, at map resolution."""

    def labels_of(image: Image, wanted: Sequence[float]) -> Labels:
        evidence = evidence_of(image)
        return np.stack([_refined(image, _scores(evidence, theta), parameters) for theta in wanted])

    name = f"w {parameters.bilateral_weight:g} colour {parameters.bilateral_colour:g}"
    return Setting(name, labels_of, thetas)


def confident_labels(
    evidence_of: EvidenceOf, parameters: CrfParameters, thetas: Sequence[float], ratio: float, gt_prob: float = 0.7
) -> Setting:
    """IRN's labels: a CRF over seeds above a high theta, another over a low one; where they differ nothing is known.

    Args:
        thetas: high ones; the low theta is the high one times ``ratio``.
    """

    def labels_of(image: Image, wanted: Sequence[float]) -> Labels:
        evidence = evidence_of(image)
        found = []
        for theta in wanted:
            high, low = (
                _refined(image, _soft(seeds_above(evidence, image.labels, t), image, gt_prob), parameters)
                for t in (theta, theta * ratio)
            )
            labels = np.where(high > 0, high, IGNORE)
            found.append(np.where((high == 0) & (low == 0), 0, labels).astype(np.uint8))
        return np.stack(found)

    return Setting(f"ratio {ratio:g}", labels_of, thetas)


def learned_cells(
    evidence_of: EvidenceOf, theta: float, images: Sequence[Image], kept: Path, seed: int, num_epochs: int = 8
) -> dict[int, NDArray[np.float32]]:
    """Probabilities (1 + S, H, W) by image of a classifier of cells that learned these images' seeds."""
    generator = np.random.default_rng(seed)
    chosen_features, chosen_labels, present = [], [], []
    for image in images:
        labels = seeds_above(evidence_of(image), image.labels, theta)
        cells = choose_cells(labels, IGNORE, CELLS_PER_IMAGE, generator)
        chosen_features.append(features_of_cells(kept, image).flatten(1)[:, cells].T.half())
        chosen_labels.append(labels.ravel()[cells])
        has_label = np.zeros(len(CLASS_NAMES) + 1, bool)
        has_label[[0, *(image.labels + 1)]] = True
        present.append(np.repeat(has_label[None], len(cells), axis=0))
    cells_of_all = LabelledCells(
        torch.cat(chosen_features),
        torch.from_numpy(np.concatenate(chosen_labels)).long(),
        torch.from_numpy(np.concatenate(present)),
    )
    spec = CellSpec(cells_of_all.features_NK.shape[1], len(CLASS_NAMES) + 1)
    network = learn_cells(spec, cells_of_all, num_rounds=1, num_epochs=num_epochs, learning_rate=1e-3, seed=seed)
    return {image.index: cell_probabilities(network, features_of_cells(kept, image), image.labels) for image in images}


def features_of_cells(kept: Path, image: Image) -> torch.Tensor:
    """Features of all cells, stages side by side: float32 (channels, rows, columns)."""
    return cell_features(
        [torch.from_numpy(np.asarray(features(kept, "321", stage)[image.index], np.float32)) for stage in STAGES]
    )


def _scores(evidence: Evidence, theta: float) -> NDArray[np.float32]:
    """Background's and classes' evidence; of classes that overlap the one of higher rank counts more."""
    share = evidence.rank_SHW / np.maximum(evidence.rank_SHW.max(axis=0), 1e-6)
    return np.concatenate([np.full((1, *GRID), theta, np.float32), evidence.values_SHW * share])


def _soft(labels: Labels, image: Image, probability: float) -> NDArray[np.float32]:
    """Labels as probabilities: so much for the label, the rest shared by the other labels of the image."""
    is_label = np.stack([labels == label for label in (0, *(image.labels + 1))])
    return np.where(is_label, probability, (1 - probability) / (len(is_label) - 1)).astype(np.float32)


def _refined(image: Image, scores_LHW: NDArray[np.float32], parameters: CrfParameters) -> Labels:
    refined = refine(scores_LHW / scores_LHW.sum(axis=0), image.colours, parameters)
    return np.array([0, *(image.labels + 1)], np.uint8)[refined.argmax(axis=0)]
