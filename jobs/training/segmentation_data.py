"""The training data of the segmentation network: whole images, their seeds, and masks where these may be read.

Masks may be read for images of the strong splits, and for all images under full supervision. Weakly supervised training
does not even know where the masks are.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from ficklenet.batches import keyed_generator
from ficklenet.resampling import resize_square
from ficklenet.segmentation_training import SegmentationBatch
from ficklenet.segmenter import logits_geometry
from jobs.run.config_keys import Config
from jobs.run.directory import Run
from jobs.training.image_list import ImageList, ListedImage, image_list
from storage.errors import BadImage
from storage.images import read_image, read_mask
from storage.label_values import ignore_value
from storage.manifest import Manifest
from storage.seed_store import SeedStore

KEPT_BYTES = 16 << 20  # of seeds, per process: reading those of one image takes longer than decoding the image


class SegmentationExample(NamedTuple):
    """An image uint8 (3, S, S), seeds and truth int64 (h, w), present labels bool (L,), and why it is unusable.

    ``is_mirrored`` is about all three arrays of cells and pixels.
    """

    pixels: np.ndarray
    seeds: np.ndarray
    present: np.ndarray
    truth: np.ndarray
    image_id: str
    problem: str = ""
    is_mirrored: bool = False


class LoadedBatch(NamedTuple):
    """A batch, the reasons why some of its images could not be read (weight 0), and (image id, is mirrored) of each."""

    batch: SegmentationBatch
    skipped: dict[str, str]
    views: list[tuple[str, bool]]


def training_images(manifest: Manifest, config: Config) -> ImageList:
    """The usable, labelled or negative images of the training splits; under full supervision those with a mask."""
    settings = config.segmenter
    masks_of = None if settings.supervision == "masks" else settings.strong_splits
    return image_list(manifest, config.data.train_splits, config.data.val_splits, masks_of)


class SegmentationImages(Dataset):
    """Examples, addressed by (epoch, position). Every worker and every resumed training mirrors them in the same way.

    Args:
        uses_seeds: False in retraining, which uses another network's labels. Full supervision never has seeds.
    """

    def __init__(self, run: Run, images: Sequence[ListedImage], manifest: Manifest, *, uses_seeds: bool = True) -> None:
        self.run, self.config = run, run.config
        self.images = images.read() if isinstance(images, ImageList) else images
        self.num_classes, self.class_values = manifest.num_classes, manifest.class_values
        self.uses_seeds = uses_seeds and run.config.segmenter.supervision == "seeds"
        settings = run.config.segmenter
        self.geometry = logits_geometry(settings.backbone, settings.output_stride, settings.head)
        self._seeds: SeedStore | None = None  # opened in the process that reads
        self._kept: dict[int, np.ndarray] = {}  # seeds by manifest row

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, address: tuple[int, int]) -> SegmentationExample:
        epoch, position = address
        image_id = self.images[position].image_id
        is_mirrored = keyed_generator(self.config.seed, "mirror", epoch, image_id).random() < 0.5
        example = self.example(self.images[position])
        if not is_mirrored:
            return example
        pixels, seeds, truth = (values[..., ::-1].copy() for values in (example.pixels, example.seeds, example.truth))
        return example._replace(pixels=pixels, seeds=seeds, truth=truth, is_mirrored=True)

    def example(self, entry: ListedImage) -> SegmentationExample:
        """One image, not mirrored; all labels of an unusable image are unknown."""
        size, limits = self.config.images.input_size, self.config.images.limits
        grid = self.geometry.grid_size(size), self.geometry.grid_size(size)
        unknown = np.full(grid, ignore_value(self.num_classes), np.int64)
        present = np.zeros(self.num_classes + 1, bool)
        present[[0, *(label + 1 for label in entry.labels)]] = True
        seeds, truth = unknown, unknown
        try:
            image = read_image(entry.uri, **limits)
            pixels = resize_square(image, size)
            if entry.mask_uri is not None:
                mask = read_mask(entry.mask_uri, self.class_values, **limits)
                if mask.shape != image.shape[:2]:
                    raise BadImage("its mask has another size")
                truth = self.geometry.resize_labels(mask, grid).astype(np.int64)
        except BadImage as error:
            blank = np.zeros((3, size, size), np.uint8)
            return SegmentationExample(blank, unknown, present, unknown, entry.image_id, error.reason)
        if self.uses_seeds:
            seeds = self.geometry.resize_labels(self._read_seeds(entry.row), grid).astype(np.int64)
        return SegmentationExample(pixels, seeds, present, truth, entry.image_id)

    def _read_seeds(self, row: int) -> np.ndarray:
        if row in self._kept:
            return self._kept[row]
        if self._seeds is None:
            self._seeds = self.run.seeds()
        seeds = self._seeds.read(row)
        if (len(self._kept) + 1) * seeds.nbytes <= KEPT_BYTES:
            self._kept[row] = seeds
        return seeds


def collate(examples: Sequence[SegmentationExample]) -> LoadedBatch:
    """A batch of examples."""

    def stacked(name: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([getattr(example, name) for example in examples]))

    weights = torch.tensor([0.0 if example.problem else 1.0 for example in examples])
    return LoadedBatch(
        SegmentationBatch(stacked("pixels"), stacked("seeds"), stacked("present"), stacked("truth"), weights),
        {example.image_id: example.problem for example in examples if example.problem},
        [(example.image_id, example.is_mirrored) for example in examples],
    )
