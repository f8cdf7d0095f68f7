"""One image's maps and saliency, and the label maps that a run's settings make of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ficklenet.geometry import GridGeometry
from ficklenet.label_image import label_image
from ficklenet.seeds import aggregate, background_cue, dense_scores, densify
from jobs.run.config_keys import Config
from storage.errors import BadImage
from storage.images import read_many, read_saliency
from storage.manifest import ManifestRow
from storage.map_store import UnitMaps


@dataclass(frozen=True)
class Evidence:
    """One image's maps and saliency.

    Attributes:
        max, mean: float32 (S, h, w) in [0, 1]; no slots for a skipped or unlabelled image.
        classes: (S,) class numbers, ascending.
        saliency: float32 (H, W) in [0, 1] of any size; None if there is no saliency map.
        geometry: where the cells of the maps lie.
    """

    max: np.ndarray
    mean: np.ndarray
    classes: np.ndarray
    saliency: np.ndarray | None
    geometry: GridGeometry

    @classmethod
    def of(cls, maps: UnitMaps, number: int, geometry: GridGeometry, saliency: np.ndarray | None = None) -> "Evidence":
        """Image `number` of a unit."""
        is_real = maps.classes[number] >= 0
        max_, mean = (values[number][is_real].astype(np.float32) for values in (maps.max, maps.mean))
        return cls(max_, mean, maps.classes[number][is_real], saliency, geometry)

    @classmethod
    def none(cls, grid: tuple[int, int], geometry: GridGeometry) -> "Evidence":
        """The evidence of an image that could not be read; all its labels become the ignore value."""
        empty = np.zeros((0, *grid), np.float32)
        return cls(empty, empty, np.zeros(0, np.int16), None, geometry)

    def seeds(self, config: Config, ignore_value: int) -> np.ndarray:
        """Seeds (h, w)."""
        settings, grid = config.seeds, self.max.shape[1:]
        background = background_cue(
            self.max,
            self._saliency(grid, config),
            saliency_threshold=settings.saliency_threshold,
            evidence_threshold=settings.evidence_threshold,
        )
        return aggregate(
            self.max,
            self.mean,
            self.classes,
            background,
            theta=settings.theta,
            priority=settings.priority,
            ignore_value=ignore_value,
        )

    def densified(self, size: tuple[int, int], config: Config, ignore_value: int) -> np.ndarray:
        """Densified seeds (*size): the maps and the saliency are resized, not the labels."""
        if len(self.classes) == 0:
            return np.full(size, ignore_value)
        return densify(self._scores(size, config), self.classes)

    def pseudo_labels(self, image: np.ndarray, config: Config, ignore_value: int) -> np.ndarray:
        """Densified seeds (H, W) of an image uint8 (H, W, 3), refined by the CRF if it is configured."""
        if len(self.classes) == 0:
            return np.full(image.shape[:2], ignore_value)
        use_crf, max_side = config.pseudo_labels.refine, config.pseudo_labels.max_side

        def scores_at(size: tuple[int, int]) -> np.ndarray:
            scores = self._scores(size, config)
            return scores / np.maximum(scores.sum(axis=0), 1e-6) if use_crf else scores

        index = label_image(scores_at, image, use_crf=use_crf, max_side=max_side)
        return np.concatenate([[0], self.classes.astype(np.int64) + 1])[index]

    def _scores(self, size: tuple[int, int], config: Config) -> np.ndarray:
        exponent = config.pseudo_labels.background_exponent
        return dense_scores(
            resized(self.max, size, self.geometry), self._saliency(size, config), background_exponent=exponent
        )

    def _saliency(self, size: tuple[int, ...], config: Config) -> np.ndarray | None:
        if self.saliency is None or config.seeds.background_cue == "evidence":
            return None
        return resized(self.saliency, size, self.geometry)


def resized(maps: np.ndarray, size: tuple[int, ...], geometry: GridGeometry) -> np.ndarray:
    """Float maps (..., h, w) on a grid or at image size, resized bilinearly to another size."""
    if maps.shape[-2:] == tuple(size):
        return maps
    if maps.size == 0:
        return np.zeros((*maps.shape[:-2], *size), maps.dtype)
    return geometry.resize_maps(torch.from_numpy(maps), (size[0], size[1])).numpy()


def read_saliencies(
    entries: Sequence[ManifestRow],
    config: Config,
    geometry: GridGeometry,
    size: tuple[int, int] | None = None,
) -> list[np.ndarray | BadImage | None]:
    """The saliency map of each image; None if the background cue is low evidence.

    Args:
        geometry: the geometry of the maps that they are compared with.
        size: the size to which each saliency map is resized when it is read; None keeps its size.
    """

    def read(uri: str) -> np.ndarray:
        saliency = read_saliency(uri, **config.images.limits)
        return saliency if size is None else resized(saliency, size, geometry)

    wanted = [entry.saliency_uri if config.seeds.background_cue == "saliency" else None for entry in entries]
    found = iter(read_many([uri for uri in wanted if uri], read, config.images.read_concurrency))
    return [next(found) if uri else None for uri in wanted]
