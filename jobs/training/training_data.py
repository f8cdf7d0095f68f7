"""Training and validation images, addressed by position: decoded where they are needed, never streamed."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ficklenet.batches import keyed_generator
from ficklenet.masks import mask_key
from ficklenet.transforms import resize_square, training_crop
from jobs.run.config_keys import Config
from jobs.training.image_list import ImageList, ListedImage, image_list
from storage.errors import BadImage, StorageError
from storage.images import read_image
from storage.manifest import Manifest

MOST_LOADERS = 16  # processes that decode for one GPU, at most
PREFETCH = 4  # batches that each of them keeps ready


class Example(NamedTuple):
    """One image: uint8 (3, S, S), its multi-hot target (C,), its mask key, and why it could not be read, if so."""

    pixels: np.ndarray
    target: np.ndarray
    key: int
    image_id: str
    problem: str = ""


class ImageBatch(NamedTuple):
    """Images uint8 (B, 3, S, S), targets (B, C), 64-bit mask keys, weights (B,): 0 for those that are `skipped`."""

    images: Tensor
    targets: Tensor
    keys: list[int]
    weights: Tensor
    skipped: dict[str, str]  # why, by image id


def validation_images(manifest: Manifest, config: Config) -> Sequence[ListedImage]:
    """The labelled, usable images that the classifier is validated on; none where no split is named."""
    splits = config.data.val_splits
    return image_list(manifest, splits) if splits else []


class ListedImages(Dataset):
    """Images of a list; one that cannot be read is all zeros with weight 0."""

    def __init__(self, images: Sequence[ListedImage], num_classes: int, config: Config) -> None:
        self.images = images.read() if isinstance(images, ImageList) else images
        self.num_classes, self.config = num_classes, config

    def __len__(self) -> int:
        return len(self.images)

    def example(self, position: int, generator: np.random.Generator | None) -> Example:
        """One image: randomly cropped by the generator, or whole without one."""
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
    """Augmented images by (epoch, position): the same crop in every worker and after every resume."""

    def __getitem__(self, address: tuple[int, int]) -> Example:
        epoch, position = address
        image_id = self.images[position].image_id
        return self.example(position, keyed_generator(self.config.seed, "augmentation", epoch, image_id))


class ValidationImages(ListedImages):
    """Whole images by position."""

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
    """The dataset's batches at these addresses, in order, decoded ahead by processes of their own where asked.

    Args:
        num_processes: 0 to decode in this process, when a batch is wanted.
        device: where the batches will go; those for a GPU lie in page-locked memory.

    Raises:
        StorageError: the store failed; as itself, also out of another process.
    """
    loader = DataLoader(
        dataset,
        batch_sampler=addresses,  # type: ignore[arg-type]  # any iterable will do
        num_workers=num_processes,
        prefetch_factor=PREFETCH if num_processes else None,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
    )
    try:
        yield from loader
    except StorageError as error:
        raise StorageError(str(error).rpartition("StorageError: ")[2].strip()) from error  # torch adds a traceback


def loader_processes(asked: int | None, device: torch.device, workers_on_node: int) -> int:
    """Decoding processes of one training worker: as asked, else its share of the node's CPUs where it has a GPU.

    Without a GPU training is so much slower than decoding that a process of its own would gain nothing.
    """
    if asked is not None:
        return asked
    num_cpus = os.cpu_count() or 1
    return min(MOST_LOADERS, max(1, num_cpus // workers_on_node)) if device.type == "cuda" else 0
