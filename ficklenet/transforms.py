"""Geometry and colour: from decoded images to network inputs, and from maps back to images.

One frame everywhere: corners are aligned. Cell i of the stride-8 grid lies at input pixel 8 i, and pixel 0
and the last pixel of an image lie on pixel 0 and the last pixel of the input. Half-pixel resizing would shift
borders by half a cell.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

MEAN = (0.485, 0.456, 0.406)  # ImageNet, RGB in [0, 1]
STD = (0.229, 0.224, 0.225)
MEAN_COLOUR = tuple(round(255 * value) for value in MEAN)  # padding that normalises to (nearly) zero

LARGEST_CROP_SCALE = 12 / 7  # of the image's longer side to the crop: 448 to 768 for 448 (Ahn and Kwak, CVPR 2018)


def normalize(images_BCHW: Tensor) -> Tensor:
    """uint8 RGB images (B, 3, H, W) -> float32, ImageNet mean 0 and deviation 1."""
    mean = torch.tensor(MEAN, device=images_BCHW.device).view(3, 1, 1)
    std = torch.tensor(STD, device=images_BCHW.device).view(3, 1, 1)
    return (images_BCHW / 255 - mean) / std


def resize_square(image_HWC: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The whole image, uint8 RGB (H, W, 3), as a square network input (3, size, size); the aspect ratio is
    not kept.

    Bilinear with aligned corners. Along a side that shrinks, the triangle is widened by the ratio, so that
    fine texture averages out instead of aliasing.
    """
    height, width = image_HWC.shape[:2]
    return _resample(image_HWC, _resize_weights(height, size), _resize_weights(width, size))


def training_crop(image_HWC: NDArray[np.uint8], size: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """A random square crop of a randomly scaled, possibly mirrored image: uint8 (3, size, size).

    The longer side is scaled to between ``size`` and 12/7 of it, aspect ratio kept, so that a crop fits along
    it; where the shorter side is less than ``size``, the image lies at a random place on the mean colour.
    Only the crop is resampled.
    """
    height, width = image_HWC.shape[:2]
    scale = generator.uniform(1.0, LARGEST_CROP_SCALE) * size / max(height, width)
    canvas = np.empty((3, size, size), np.uint8)
    canvas[:] = np.array(MEAN_COLOUR, np.uint8)[:, None, None]
    rows_from, rows_to = _random_window(max(1, round(height * scale)), size, generator)
    cols_from, cols_to = _random_window(max(1, round(width * scale)), size, generator)
    canvas[:, rows_to, cols_to] = _resample(
        image_HWC,
        _resize_weights(height, max(1, round(height * scale)))[rows_from],
        _resize_weights(width, max(1, round(width * scale)))[cols_from],
    )
    return canvas[:, :, ::-1].copy() if generator.random() < 0.5 else canvas


def resize_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Float maps (..., h, w) resized bilinearly to (..., *size), corners aligned."""
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    return functional.interpolate(flat, size, mode="bilinear", align_corners=True).view(*maps.shape[:-2], *size)


def _random_window(length: int, size: int, generator: np.random.Generator) -> tuple[slice, slice]:
    """Along one side: the slice of the scaled image that is taken, and where on the canvas it lands."""
    start = int(generator.integers(abs(length - size) + 1))
    if length >= size:
        return slice(start, start + size), slice(0, size)
    return slice(0, length), slice(start, start + length)


def _resample(
    image_HWC: NDArray[np.uint8], row_weights: NDArray[np.float32], col_weights: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """Separable resampling, uint8 (H, W, 3) -> uint8 (3, h, w): rows first, then each channel's columns."""
    height, width, channels = image_HWC.shape
    rows = row_weights @ image_HWC.reshape(height, width * channels).astype(np.float32)
    planes = rows.reshape(-1, width, channels).transpose(2, 0, 1) @ col_weights.T
    return (planes + 0.5).clip(0, 255).astype(np.uint8)


def _resize_weights(num_in: int, num_out: int) -> NDArray[np.float32]:
    """One side's resize as a matrix (num_out, num_in): a triangle around each output's place."""
    step = (num_in - 1) / (num_out - 1) if num_out > 1 else 0.0
    place = np.arange(num_out)[:, None] * step
    distance = np.abs(np.arange(num_in) - place)
    weights = np.clip(1 - distance / max(step, 1.0), 0, None)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
