"""The features of cells: the outputs of the last stages of the classifier's backbone, on one grid."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ficklenet.backbones import build_backbone
from ficklenet.classifier import ClassifierSpec
from ficklenet.segmenter import SegmenterSpec
from jobs.maps.backbone_passes import BackbonePasses, batches
from jobs.run.directory import Run
from jobs.steps.networks import load_classifier


class CellStages:
    """The run's classifier in an actor, to get the outputs of its backbone's stages instead of its logits."""

    def __init__(self, run: Run, device: str) -> None:
        if device == "cpu":
            torch.set_num_threads(1)  # the pool has an actor per CPU
        classifier = load_classifier(run).to(device).to(memory_format=torch.channels_last)
        self.spec: ClassifierSpec = classifier.spec
        self.backbone = classifier.backbone
        self.passes = BackbonePasses.of(run.config.maps, device)

    @torch.inference_mode()
    def of(self, images: np.ndarray, wanted: np.ndarray) -> Iterator[tuple[int, list[Tensor]]]:
        """The number of each wanted image and its stages, each float32 (K', h, w) on the classifier's grid.

        Args:
            images: uint8 (n, 3, side, side).
            wanted: bool (n,).
        """
        numbers = np.flatnonzero(wanted)
        for batch in batches(len(numbers), self.passes.batch_size):
            stages = self.passes.run(self.backbone.last_stages, images[numbers[batch]])
            for place, number in enumerate(numbers[batch]):
                yield (
                    int(number),
                    [
                        self.spec.geometry.resize_maps(stage[place].float().cpu().contiguous(), self.spec.grid)
                        for stage in stages
                    ],
                )


def num_channels(spec: ClassifierSpec | SegmenterSpec) -> int:
    """K of ``ficklenet.cell_classifier.cell_features``, the channels of all stages together, without a real pass."""
    with torch.device("meta"), torch.inference_mode(), torch.random.fork_rng(devices=[]):
        backbone = build_backbone(spec.backbone, spec.output_stride)
        stages = backbone.last_stages(torch.empty(1, 3, spec.input_size, spec.input_size))
    return sum(stage.shape[1] for stage in stages)
