"""Training and validation images, addressed by position. The process that needs an image decodes it."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ficklenet.batches import keyed_generator
from ficklenet.masks import mask_key
from ficklenet.resampling import resize_square, training_crop
from jobs.run.config_keys import Config
from jobs.training.image_list import ImageList, ListedImage, image_list
from storage.errors import BadImage, StorageError
from storage.images import read_image
from storage.manifest import Manifest

MOST_LOADERS = 16  # the most processes that decode for one GPU
PREFETCH = 4  # batches that each of these processes keeps ready


class Example(NamedTuple):
    """One image: uint8 (3, S, S), multi-hot target (C,), mask key, and the reason if it could not be read."""

    pixels: np.ndarray
    target: np.ndarray
    key: int
    image_id: str
    problem: str = ""


class ImageBatch(NamedTuple):
    """Images uint8 (B, 3, S, S), targets (B, C), 64-bit mask keys, and weights (B,): 0 for `skipped` images."""

    images: Tensor
    targets: Tensor
    keys: list[int]
    weights: Tensor
    skipped: dict[str, str]  # the reason, by image id


def validation_images(manifest: Manifest, config: Config) -> Sequence[ListedImage]:
    """The labelled, usable images for the classifier's validation; none if there are no validation splits."""
    splits = config.data.val_splits
    return image_list(manifest, splits) if splits else []


class ListedImages(Dataset):
    """The images of a list. An image that cannot be read is all zeros, with weight 0."""

    def __init__(self, images: Sequence[ListedImage], num_classes: int, config: Config) -> None:
        self.images = images.read() if isinstance(images, ImageList) else images
        self.num_classes, self.config = num_classes, config

    def __len__(self) -> int:
        return len(self.images)

    def example(self, position: int, generator: np.random.Generator | None) -> Example:
        """One image: a random crop if a generator is given, else the whole image."""
        entry, size = self.images[position], self.config.images.input_size
        target = np.zeros(self.num_classes, np.float32)
        target[list(entry.labels)] = 1
        key = mask_key(self.config.seed, entry.image_id)
        try:
            # A crop comes from an image that is scaled to at most 12 / 7 of the input
            target_side = size if generator is None else -(-12 * size // 7)
            image = read_image(entry.uri, **self.config.images.limits, target_side=target_side)
        except BadImage as error:
            return Example(np.zeros((3, size, size), np.uint8), target, key, entry.image_id, error.reason)
        pixels = resize_square(image, size) if generator is None else training_crop(image, size, generator)
        return Example(pixels, target, key, entry.image_id)


class TrainingImages(ListedImages):
    """Augmented images, addressed by (epoch, position). Every worker and every resumed training crops them alike."""

    def __getitem__(self, address: tuple[int, int]) -> Example:
        epoch, position = address
        image_id = self.images[position].image_id
        return self.example(position, keyed_generator(self.config.seed, "augmentation", epoch, image_id))


class ValidationImages(ListedImages):
    """Whole images, addressed by position."""

    def __getitem__(self, position: int) -> Example:
        return self.example(position, None)


def collate(examples: Sequence[Example]) -> ImageBatch:
    """A batch of examples."""
    return ImageBatch(
        images=torch.from_numpy(np.stack([example.pixels for example in examples])),
        targets=torch.from_numpy(np.stack([example.target for example in examples])),
        keys=[example.key for example in examples],
        weights=torch.tensor([0.0 if example.problem else 1.0 for example in examples]),
        skipped={example.image_id: example.problem for example in examples if example.problem},
    )


def load_batches(
    dataset: Dataset,
    addresses: Iterable[list[Any]],
    collate: Callable[[list[Any]], Any],
    *,
    num_processes: int,
    device: torch.device,
) -> Iterator[Any]:
    """The dataset's batches at these addresses, in order.

    Args:
        num_processes: the number of processes that decode ahead; 0: this process decodes a batch when it is needed.
        device: where the batches will go; batches for a GPU are in page-locked memory.

    Raises:
        StorageError: the store failed, in this or in another process.
    """
    loader = DataLoader(
        dataset,
        batch_sampler=addresses,  # type: ignore[arg-type]  # any iterable works
        num_workers=num_processes,
        prefetch_factor=PREFETCH if num_processes else None,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
    )
    try:
        yield from loader
    except StorageError as error:
        kind = type(error)
        raise kind(str(error).rpartition(f"{kind.__name__}: ")[2].strip()) from error  # torch adds a traceback


def loader_processes(asked: int | None, device: torch.device, workers_on_node: int) -> int:
    """The number of decoding processes of one training worker.

    If none is asked for, a worker with a GPU gets its share of the node's CPUs. Without a GPU it gets none, because
    training is then so much slower than decoding that more processes would gain nothing.
    """
    if asked is not None:
        return asked
    num_cpus = os.cpu_count() or 1
    return min(MOST_LOADERS, max(1, num_cpus // workers_on_node)) if device.type == "cuda" else 0
