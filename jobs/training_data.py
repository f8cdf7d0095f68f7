"""Training and validation images, addressed by position: decoded where they are needed, never streamed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ficklenet.batches import keyed_generator
from ficklenet.masks import mask_key
from ficklenet.transforms import resize_square, training_crop
from jobs.config import Config
from storage.errors import BadImage
from storage.images import read_image
from storage.manifest import Manifest

Example = tuple[np.ndarray, np.ndarray, int, float]  # image uint8 (3, S, S), multi-hot (C,), mask key, weight


@dataclass(frozen=True)
class ListedImage:
    """What training needs of a manifest row."""

    image_id: str
    uri: str
    labels: tuple[int, ...]


def image_list(manifest: Manifest, splits: Sequence[str], without: Sequence[str] = ()) -> list[ListedImage]:
    """The labelled, usable images of some splits in manifest order.

    Args:
        splits: names; empty for all splits but those in `without`.
        without: splits left out where `splits` is empty.
    """
    columns = ("image_id", "uri", "labels", "split", "problem")
    return [
        ListedImage(image_id, uri, tuple(labels))
        for batch in manifest.iter_columns(columns)
        for image_id, uri, labels, split, problem in zip(*(batch[name] for name in columns), strict=True)
        if labels and not problem and (split in splits if splits else split not in without)
    ]


class ListedImages(Dataset):
    """Images of a list; one that cannot be read is all zeros with weight 0."""

    def __init__(self, images: Sequence[ListedImage], num_classes: int, config: Config) -> None:
        self.images, self.num_classes, self.config = images, num_classes, config

    def __len__(self) -> int:
        return len(self.images)

    def example(self, position: int, generator: np.random.Generator | None) -> Example:
        """One image: randomly cropped by the generator, or whole without one."""
        entry, size = self.images[position], self.config.images.input_size
        target = np.zeros(self.num_classes, np.float32)
        target[list(entry.labels)] = 1
        key = mask_key(self.config.seed, entry.image_id)
        try:
            image = read_image(entry.uri, self.config.images.max_pixels)
        except BadImage:
            return np.zeros((3, size, size), np.uint8), target, key, 0.0
        pixels = resize_square(image, size) if generator is None else training_crop(image, size, generator)
        return pixels, target, key, 1.0


class TrainingImages(ListedImages):
    """Augmented images by (epoch, position): the same crop in every worker and after every resume."""

    def __getitem__(self, address: tuple[int, int]) -> Example:
        epoch, position = address
        image_id = self.images[position].image_id
        return self.example(position, keyed_generator(self.config.seed, "augmentation", epoch, image_id))


class ValidationImages(ListedImages):
    """Whole images by position."""

    def __getitem__(self, position: int) -> Example:
        return self.example(position, None)


def collate(examples: Sequence[Example]) -> tuple[Tensor, Tensor, list[int], Tensor]:
    """Images uint8 (B, 3, S, S), targets (B, C), 64-bit mask keys, weights (B,)."""
    images, targets, keys, weights = zip(*examples, strict=True)
    return (
        torch.from_numpy(np.stack(images)),
        torch.from_numpy(np.stack(targets)),
        list(keys),
        torch.tensor(weights),
    )
