"""Adds the features of a frozen backbone to the segmentation network's batches, so that a step trains only the head.

Each image and its mirror image run through the backbone once per worker (`jobs.training.kept_features`). Images are
still decoded in each epoch, because the CRF of the training reads their pixels.
"""

import time
from collections.abc import Mapping

import torch
from torch import Tensor

from cluster.training_context import TrainingContext
from ficklenet.backbones import Backbone
from ficklenet.frozen_features import frozen_features, is_frozen
from ficklenet.segmentation_training import SegmentationBatch
from ficklenet.segmenter import SegmentationHead, Segmenter
from jobs.run.config_keys import SegmenterConfig
from jobs.training.kept_features import FirstPasses, KeptFeatures
from jobs.training.segmentation_data import LoadedBatch


def trains_only_the_head(segmenter: Segmenter) -> bool:
    """Whether features can be kept: the whole backbone is frozen, and the head reads nothing but its last features."""
    return is_frozen(segmenter.backbone) and isinstance(segmenter.head, SegmentationHead)


def features_shape(segmenter: Segmenter) -> tuple[int, int, int]:
    """(K, H, W) of the backbone's output for the square input."""
    side = segmenter.spec.input_geometry.grid_size(segmenter.spec.input_size)
    return segmenter.backbone.out_channels, side, side


def have_the_same_weights(first: Backbone, second: Backbone) -> bool:
    """Whether two backbones are equal bit by bit."""
    others = second.state_dict()
    return first.state_dict().keys() == others.keys() and all(
        torch.equal(values.cpu(), others[name].cpu()) for name, values in first.state_dict().items()
    )


class FrozenBackbone:
    """Computes and keeps features.

    Args:
        name: the step.
        segmenter: on the worker's device.
        num_images: the number of training images.
        precision: the backbone's precision.
    """

    def __init__(
        self,
        context: TrainingContext,
        name: str,
        segmenter: Segmenter,
        num_images: int,
        config: SegmenterConfig,
        precision: torch.dtype,
    ) -> None:
        self.backbone, self.precision, self.micro_batch_size = segmenter.backbone, precision, config.micro_batch_size
        self.kept = KeptFeatures(
            features_shape(segmenter),
            2 * num_images,
            most_bytes=1e9 * config.kept_features_gb,
            num_sharing=context.local_world_size,
            key="segmenter.kept_features_gb",
        )
        self.passes = FirstPasses("" if context.rank else name, self.kept.num_places)

    def with_features(self, loaded: LoadedBatch) -> SegmentationBatch:
        """The batch with its features, on the batch's device."""
        started = time.monotonic()
        batch, unread = loaded.batch, loaded.skipped  # blank pixels, and perhaps readable in the next epoch
        new = [number for number, view in enumerate(loaded.views) if view[0] in unread or self.kept.reserve(view)]
        computed: Mapping[int, Tensor] = {}
        if new:
            self.backbone.eval()  # the training sets the training mode of the whole network after each validation
            features_BKHW = frozen_features(
                self.backbone, batch.images[new], self.precision, micro_batch_size=self.micro_batch_size
            )
            computed = dict(zip(new, features_BKHW, strict=True))
            for number, features_KHW in computed.items():
                if loaded.views[number][0] not in unread:
                    self.kept.put(loaded.views[number], features_KHW.numpy())
            if num_kept := sum(self.kept.has_place(loaded.views[number]) for number in new):
                self.passes.add(num_kept, (time.monotonic() - started) * num_kept / len(new))
        features = [
            computed[number] if number in computed else torch.tensor(self.kept.get(view))
            for number, view in enumerate(loaded.views)
        ]
        return batch._replace(features=torch.stack(features).float().to(batch.images.device))
