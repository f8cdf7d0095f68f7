"""The baseline without sampling: the deterministic map of an image, made with the run's classifier."""

import numpy as np
import torch

from ficklenet.localizer import Normalization, deterministic_maps
from ficklenet.resampling import resize_square
from ficklenet.transforms import normalize
from jobs.run.directory import Run
from jobs.steps.networks import load_classifier


class DeterministicMapper:
    """A loaded classifier that maps one image at a time, with the settings of the run's stored maps."""

    def __init__(self, run: Run, device: str = "cpu") -> None:
        self.model, self.settings, self.device = load_classifier(run).to(device), run.config.maps, device

    @torch.inference_mode()
    def __call__(self, image: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Maps float32 (S, h, w) in [0, 1].

        Args:
            image: uint8 (H, W, 3).
            classes: (S,) class numbers.
        """
        pixels = torch.from_numpy(resize_square(image, self.model.spec.input_size))[None]
        drop_rate = self.model.spec.drop_rate if self.settings.drop_rate is None else self.settings.drop_rate
        maps = deterministic_maps(
            self.model.backbone(normalize(pixels.to(self.device))),
            self.model.head,
            torch.from_numpy(classes.astype(np.int64))[None].to(self.device),
            drop_rate=drop_rate,
            normalization=Normalization(self.settings.normalization, self.settings.percentile),
        )
        return maps[0].cpu().numpy()
