"""The rows of the table of `voc6_seeds.py`: each kind of evidence, with the settings that tuning may choose.

``HeadMaps`` gives a row one image's maps by one head; a row is a list of settings.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from voc6_data import GRID, Image
from voc6_maps import ImageMaps
from voc6_measure import Evidence, Setting, by_theta

from ficklenet.baselines import all_ones, blurred, centred_gaussian, dilated, divided_by_maximum
from ficklenet.folding import Normalization
from ficklenet.transforms import resize_maps

EvidenceOf = Callable[[Image], Evidence]

GAUSSIAN_WIDTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0)
BLURS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
DILATIONS = (1, 2, 3, 4, 5, 6, 7, 8)


@dataclass(frozen=True)
class HeadMaps:
    """All maps of one head: view ("321", "321m", ...) -> the image's index -> maps."""

    views: dict[str, dict[int, ImageMaps]] = field(default_factory=dict)

    def deterministic(self, image: Image, view: str = "321") -> Evidence:
        return Evidence.of(divided_by_maximum(self.views[view][image.index].raw_CHW[image.labels].astype(np.float32)))

    def samples(self, image: Image, fold: str = "200", view: str = "321") -> Evidence:
        maps = self.views[view][image.index]
        return Evidence(maps.maximum[fold].astype(np.float32), maps.mean[fold].astype(np.float32))

    def mean(self, image: Image, fold: str = "200") -> Evidence:
        """The samples' mean alone, divided by its maximum."""
        return Evidence.of(divided_by_maximum(self.views["321"][image.index].mean[fold].astype(np.float32)))

    def votes(self, image: Image, theta: float) -> Evidence:
        return Evidence.of(self.views["321"][image.index].votes[theta])

    def fused(self, image: Image, views: tuple[str, ...]) -> Evidence:
        """The mean of the samples' maps over views (maps of mirror images are the right way round already)."""
        found = [self.samples(image, view=view) for view in views]
        values_SHW = _mean_on_the_grid([evidence.values_SHW for evidence in found])
        return Evidence(divided_by_maximum(values_SHW), _mean_on_the_grid([each.rank_SHW for each in found]))


def classifier_free_rows() -> dict[str, list[Setting]]:
    def of_ones(image: Image) -> Evidence:
        return Evidence.of(all_ones(len(image.labels), GRID))

    def of_gaussian(width: float) -> EvidenceOf:
        return lambda image: Evidence.of(centred_gaussian(len(image.labels), GRID, width))

    return {
        "all ones": [by_theta("", of_ones, (0.5,))],
        "centred Gaussian": [by_theta(f"width {width}", of_gaussian(width)) for width in GAUSSIAN_WIDTHS],
    }


def widened(evidence_of: EvidenceOf) -> dict[str, list[Setting]]:
    """A map blurred and dilated, each as well as tuning can."""

    def through(change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> EvidenceOf:
        def changed(image: Image) -> Evidence:
            evidence = evidence_of(image)
            return Evidence(change(evidence.values_SHW), change(evidence.rank_SHW))

        return changed

    return {
        "blurred": [by_theta(f"sigma {s}", through(lambda maps, s=s: blurred(maps, s))) for s in BLURS],
        "dilated": [by_theta(f"radius {r}", through(lambda maps, r=r: dilated(maps, r))) for r in DILATIONS],
    }


def percentile(evidence_of: EvidenceOf, percent: float) -> EvidenceOf:
    """Divided by a percentile instead of the maximum."""
    normalization = Normalization("percentile", percent)

    def changed(image: Image) -> Evidence:
        return Evidence.of(normalization.apply(torch.from_numpy(evidence_of(image).values_SHW)).numpy())

    return changed


def times_gaussian(evidence_of: EvidenceOf, width: float) -> EvidenceOf:
    """Times a centred Gaussian: what a classifier-free map knows, added to what the classifier knows."""

    def changed(image: Image) -> Evidence:
        evidence = evidence_of(image)
        prior = centred_gaussian(len(image.labels), GRID, width)
        return Evidence(divided_by_maximum(evidence.values_SHW * prior), evidence.rank_SHW * prior)

    return changed


def mixed(evidence_of: EvidenceOf, learned: dict[int, NDArray[np.float32]], share: float) -> EvidenceOf:
    """The geometric mean of evidence and of the classes' learned probabilities, the evidence with this share."""

    def of_both(image: Image) -> Evidence:
        evidence, probabilities = evidence_of(image), learned[image.index][1:] ** (1 - share)
        return Evidence(evidence.values_SHW**share * probabilities, evidence.rank_SHW**share * probabilities)

    return of_both


def _mean_on_the_grid(views: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The views' mean; each has the whole image, so that its corners lie on the grid's corners."""
    return np.mean([resize_maps(torch.from_numpy(np.ascontiguousarray(maps)), GRID).numpy() for maps in views], axis=0)
