"""The classifier's training with a frozen backbone: each image runs through the backbone only once.

Images are whole, not cropped, and mirrored in half of the epochs, chosen by (seed, epoch, image id). So an image has
two views: itself and its mirror image. When a view is first needed, it is decoded and passed through the backbone, and
its features are kept (`jobs.training.kept_features`). After that, a step computes only the head. Each worker keeps the
features of the views that it needs, which in the end are most of them.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cluster.training_context import TrainingContext
from ficklenet.batches import addressed_batches, keyed_generator
from ficklenet.classifier import FickleNet
from ficklenet.frozen_features import FeatureBatch, frozen_features, head_step
from ficklenet.masks import mask_key
from jobs.run.config_keys import Config
from jobs.training.image_list import ListedImage
from jobs.training.kept_features import FirstPasses, KeptFeatures
from jobs.training.plan import Plan
from jobs.training.training_data import (
    Example,
    ImageBatch,
    ListedImages,
    collate,
    load_batches,
    loader_processes,
)

View = tuple[int, bool]  # the position of an image in the list, and whether it is mirrored


@dataclass(frozen=True)
class LoadedFeatures:
    """A batch of features on the worker's device, and the reasons why some images could not be read (weight 0)."""

    batch: FeatureBatch
    skipped: dict[str, str]


class WholeImages(ListedImages):
    """Whole images, addressed by view."""

    def __getitem__(self, view: View) -> Example:
        position, is_mirrored = view
        example = self.example(position, None)
        return example._replace(pixels=example.pixels[..., ::-1].copy()) if is_mirrored else example


class FrozenTraining:
    """One worker's share of the training: its batches, a step, the scores of the validation images.

    Args:
        classifier: on the worker's device, with a frozen backbone.
        images: the training images.
        validation: the validation images.
        num_classes: the number of classes in the manifest.
        precision: the backbone's precision; the head trains in float32.
    """

    def __init__(
        self,
        context: TrainingContext,
        classifier: FickleNet,
        images: Sequence[ListedImage],
        validation: Sequence[ListedImage],
        num_classes: int,
        config: Config,
        precision: torch.dtype,
    ) -> None:
        self.context, self.classifier, self.config, self.precision = context, classifier, config, precision
        classifier.eval()  # no dropout and no batch statistics in the backbone; the head has no such layers
        self.num_training = len(images)
        self.dataset = WholeImages([*images, *validation], num_classes, config)
        self.head = context.wrap(classifier.head)
        self.shape = (classifier.backbone.out_channels, *classifier.spec.grid)
        self.kept = KeptFeatures(
            self.shape,
            2 * len(images) + len(validation),
            most_bytes=1e9 * config.classifier.kept_features_gb,
            num_sharing=context.local_world_size,
        )
        self.passes = FirstPasses("" if context.rank else "classifier", self.kept.num_places)
        self.unreadable: dict[View, str] = {}

    def batches_of(self, steps: range, plan: Plan) -> Iterator[LoadedFeatures]:
        """This worker's share of each of these global steps, in order."""
        context, seed = self.context, self.config.seed
        shares = addressed_batches(steps, plan.num_images, plan.batch_size, seed, context.rank, context.world_size)
        return self.load([self._view(*address) for address in share] for share in shares)

    def step(self, optimizer: torch.optim.Optimizer, loaded: LoadedFeatures, epoch: int, total_weight: float) -> Tensor:
        """Trains the head for one step and returns the loss."""
        return head_step(
            self.head,
            optimizer,
            loaded.batch,
            epoch,
            drop_rate=self.classifier.spec.drop_rate,
            total_weight=total_weight,
            micro_batch_size=self.config.classifier.micro_batch_size,
        )

    @torch.no_grad()
    def validation_scores(self) -> tuple[Tensor, Tensor]:
        """Expected logits (n, C) and targets (n, C) of this worker's share of the readable validation images."""
        mine = range(self.num_training + self.context.rank, len(self.dataset), self.context.world_size)
        size, drop_rate = self.config.classifier.batch_size, self.classifier.spec.drop_rate
        shares = ([(position, False) for position in mine[start : start + size]] for start in range(0, len(mine), size))
        logits, targets = [torch.empty(0, self.dataset.num_classes)], [torch.empty(0, self.dataset.num_classes)]
        for loaded in self.load(shares):
            scores = self.classifier.head.expected_logits(loaded.batch.features_BKHW.float(), drop_rate)
            is_readable = loaded.batch.weights_B > 0  # type: ignore[operator]  # here they are always given
            logits.append(scores[is_readable].cpu())
            targets.append(loaded.batch.targets_BC[is_readable].cpu())
        return torch.cat(logits), torch.cat(targets)

    def load(self, shares: Iterable[list[View]]) -> Iterator[LoadedFeatures]:
        """The features of each share. Only views without kept features are decoded."""
        context, asked = self.context, self.config.classifier.loader_workers
        waiting: deque[tuple[list[View], list[View]]] = deque()

        def views_to_decode() -> Iterator[list[View]]:
            for share in shares:
                new = [view for view in share if self.kept.reserve(view)]
                waiting.append((share, new))
                yield new

        decoded = load_batches(
            self.dataset,
            views_to_decode(),
            _collate_any,
            num_processes=loader_processes(asked, context.device, context.local_world_size),
            device=context.device,
        )
        started = time.monotonic()
        for images in decoded:
            share, new = waiting.popleft()
            batch = self._batch(share, self._compute(new, images))
            if num_kept := sum(map(self.kept.has_place, new)):
                self.passes.add(num_kept, (time.monotonic() - started) * num_kept / len(new))
            yield batch
            started = time.monotonic()

    def _compute(self, views: Sequence[View], images: ImageBatch | None) -> dict[View, np.ndarray]:
        """Computes the features of decoded images, and keeps them if there is room."""
        found: dict[View, np.ndarray] = {}
        if images is None:
            return found
        backbone, size = self.classifier.backbone, self.config.classifier.micro_batch_size
        features = frozen_features(backbone, images.images, self.precision, micro_batch_size=size).numpy()
        for view, computed in zip(views, features, strict=True):
            found[view] = computed
            if reason := images.skipped.get(self.dataset.images[view[0]].image_id):
                self.unreadable[view] = reason
            self.kept.put(view, computed)
        return found

    def _batch(self, share: Sequence[View], new: dict[View, np.ndarray]) -> LoadedFeatures:
        device, entries = self.context.device, [self.dataset.images[position] for position, _ in share]
        features = np.empty((len(share), *self.shape), np.float16)
        targets = torch.zeros(len(share), self.dataset.num_classes)
        for number, (view, entry) in enumerate(zip(share, entries, strict=True)):
            features[number] = new[view] if view in new else self.kept.get(view)
            targets[number, list(entry.labels)] = 1
        weights = torch.tensor([0.0 if view in self.unreadable else 1.0 for view in share])
        batch = FeatureBatch(
            torch.from_numpy(features).to(device),
            targets.to(device),
            [mask_key(self.config.seed, entry.image_id) for entry in entries],
            weights.to(device),
        )
        views = zip(share, entries, strict=True)
        skipped = {entry.image_id: self.unreadable[view] for view, entry in views if view in self.unreadable}
        return LoadedFeatures(batch, skipped)

    def _view(self, epoch: int, position: int) -> View:
        image_id = self.dataset.images[position].image_id
        return position, bool(keyed_generator(self.config.seed, "mirror", epoch, image_id).random() < 0.5)


def _collate_any(examples: Sequence[Example]) -> ImageBatch | None:
    """A batch of examples; None if there is nothing to decode."""
    return collate(examples) if examples else None
