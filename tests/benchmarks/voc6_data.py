"""VOC6 for the benchmarks of seeds: labels, masks and colours at map resolution, and the kept features.

A set in devkit layout whose images have labels among cat, cow, dog, horse, sheep and person. Masks of training images
are read to measure and to choose thresholds (on the tune part), never to train.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ficklenet.resampling import resize_square
from ficklenet.seeds import resize_labels
from jobs.run.selection import is_tuning_image
from storage.images import read_image, read_mask

CLASS_NAMES = ("cat", "cow", "dog", "horse", "sheep", "person")
CLASS_VALUES = (8, 10, 12, 13, 17, 15)  # in VOC's masks; the label files count from 0
GRID = (41, 41)
IGNORE = 255

Part = Literal["tune", "report", "val"]


@dataclass(frozen=True)
class Image:
    """One image at map resolution.

    Attributes:
        index: its place in the cache of features.
        labels: its class numbers, ascending.
        truth: uint8 (41, 41), 0 background, class + 1, 255 ignored.
        colours: uint8 RGB (41, 41, 3).
    """

    index: int
    image_id: str
    part: Part
    labels: NDArray[np.int64]
    truth: NDArray[np.uint8]
    colours: NDArray[np.uint8]

    @property
    def has_several_classes(self) -> bool:
        return len(self.labels) > 1

    @property
    def targets(self) -> Tensor:
        """float32 (classes): 1 where the image has the class."""
        return torch.zeros(len(CLASS_NAMES)).index_fill(0, torch.as_tensor(self.labels), 1.0)


def load_images(data: Path, cache: Path, size: str = "321") -> list[Image]:
    """The images whose features of that size are in the cache, in its order."""
    ids = json.loads((cache / "ids.json").read_text())
    val = set((data / "ImageSets" / "Segmentation" / "val.txt").read_text().split())
    table = np.load(data / "cls_labels.npy", allow_pickle=True).item()
    images = []
    for index in np.flatnonzero(np.load(cache / size / "done.npy", mmap_mode="r")):
        image_id = ids[index]
        has_class = table[image_id][np.array(CLASS_VALUES) - 1] > 0
        images.append(
            Image(
                index=int(index),
                image_id=image_id,
                part="val" if image_id in val else "tune" if is_tuning_image(image_id) else "report",
                labels=np.flatnonzero(has_class),
                truth=truth_at(data, image_id, GRID),
                colours=resize_square(read_image(photo(data, image_id)), GRID[0]).transpose(1, 2, 0),
            )
        )
    return images


def truth_at(data: Path, image_id: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    return resize_labels(read_mask(_path(data, "SegmentationClassAug", image_id, "png"), CLASS_VALUES), size)


def photo(data: Path, image_id: str) -> str:
    return _path(data, "JPEGImages", image_id, "jpg")


def features(cache: Path, size: str, stage: str = "conv5") -> np.memmap:
    """float16 (images, channels, rows, columns), by the index in the cache."""
    return np.load(cache / size / f"{stage}.npy", mmap_mode="r")


def _path(data: Path, folder: str, image_id: str, suffix: str) -> str:
    return str(data / folder / f"{image_id}.{suffix}")
