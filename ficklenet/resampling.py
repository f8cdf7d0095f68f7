"""Resizes decoded images to network inputs, with aligned corners (``ficklenet.transforms`` says why).

The workers that read images need only this module. It does not import torch: an import of torch takes seconds of a core
in each process.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ficklenet.arguments import require_image, require_integer

MEAN = (0.485, 0.456, 0.406)  # ImageNet, RGB in [0, 1]
MEAN_COLOUR = tuple(round(255 * value) for value in MEAN)  # for padding: it becomes nearly zero after normalisation

LARGEST_CROP_SCALE = 12 / 7  # the image's longer side divided by the crop: up to 768 for 448 (Ahn and Kwak, CVPR 2018)


def resize_square(image_HWC: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The whole image, uint8 RGB (H, W, 3), as a square network input (3, size, size); the aspect ratio changes.

    It is resized bilinearly with aligned corners and rounded once at the end. Along a side that shrinks, the triangle
    is widened by the ratio, so that fine texture is averaged and does not alias.

    Raises:
        ValueError: the image is not uint8 (H, W, 3), or it is empty, or the size is not an integer from 1.
    """
    require_image(image_HWC, "resize_square")
    require_integer(size, 1, "resize_square", "size")
    return _resample(image_HWC, (size, size), slice(0, size), slice(0, size))


def training_crop(image_HWC: NDArray[np.uint8], size: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """A random square crop of a randomly scaled, possibly mirrored image: uint8 (3, size, size).

    The longer side is scaled to a length between ``size`` and 12/7 of it, with the same aspect ratio, so that a crop
    fits along it. If the shorter side is less than ``size``, the image is at a random place on the mean colour. Only
    the crop is resampled.

    Raises:
        ValueError: the image is not uint8 (H, W, 3), or it is empty, or the size is not an integer from 1.
    """
    require_image(image_HWC, "training_crop")
    require_integer(size, 1, "training_crop", "size")
    height, width = image_HWC.shape[:2]
    scale = generator.uniform(1.0, LARGEST_CROP_SCALE) * size / max(height, width)
    canvas = np.empty((3, size, size), np.uint8)
    canvas[:] = np.array(MEAN_COLOUR, np.uint8)[:, None, None]
    scaled = max(1, round(height * scale)), max(1, round(width * scale))
    rows_from, rows_to = _random_window(scaled[0], size, generator)
    cols_from, cols_to = _random_window(scaled[1], size, generator)
    canvas[:, rows_to, cols_to] = _resample(image_HWC, scaled, rows_from, cols_from)
    return canvas[:, :, ::-1].copy() if generator.random() < 0.5 else canvas


def _random_window(length: int, size: int, generator: np.random.Generator) -> tuple[slice, slice]:
    """Along one side: the slice of the scaled image, and its place in the crop."""
    start = int(generator.integers(abs(length - size) + 1))
    if length >= size:
        return slice(start, start + size), slice(0, size)
    return slice(0, length), slice(start, start + length)


def _resample(image_HWC: NDArray[np.uint8], scaled: tuple[int, int], rows: slice, cols: slice) -> NDArray[np.uint8]:
    """Some rows and columns of the image resized to ``scaled`` (height, width): uint8 (H, W, 3) -> (3, h, w)."""
    height, width, channels = image_HWC.shape
    by_row = _resample_first_axis(image_HWC.reshape(height, -1).astype(np.float32), scaled[0], rows)
    by_col = np.ascontiguousarray(by_row.reshape(-1, width, channels).transpose(1, 2, 0)).reshape(width, -1)
    values = _resample_first_axis(by_col, scaled[1], cols)  # (w, 3 * h)
    values += 0.5
    pixels = values.astype(np.uint8)  # rounded; averages of 0 to 255 remain in this range
    return np.ascontiguousarray(pixels.reshape(len(values), channels, -1).transpose(1, 2, 0))


def _resample_first_axis(values: NDArray[np.float32], num_out: int, wanted: slice) -> NDArray[np.float32]:
    """Some of the outputs if the first axis is resized to ``num_out``.

    Each output depends on few inputs, so a dense product would mostly multiply by zero. Without scipy, the same sums
    are computed in the same order in twice the time.
    """
    first, weights = _resize_weights(len(values), num_out, wanted.start, wanted.stop)
    matrix = _sparse(len(values), num_out, wanted.start, wanted.stop)
    if matrix is not None:
        return matrix @ values
    resampled = np.zeros((len(weights), values.shape[1]), np.float32)
    for tap in range(weights.shape[1]):
        resampled += weights[:, tap, None] * values[np.minimum(first + tap, len(values) - 1)]
    return resampled


@lru_cache(maxsize=256)  # most images of a data set have one of a few sizes
def _resize_weights(num_in: int, num_out: int, start: int, stop: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """For outputs ``start`` to ``stop``: the first input of each, and the weights of this and the following inputs
    (outputs, taps): a triangle around the output's position, cut off at the border."""
    step = (num_in - 1) / (num_out - 1) if num_out > 1 else 0.0
    radius = max(step, 1.0)
    place = np.arange(start, stop) * step
    first = np.maximum(0, np.ceil(place - radius)).astype(np.int32)
    inputs = first[:, None] + np.arange(int(2 * radius) + 1)
    weights = np.clip(1 - np.abs(inputs - place[:, None]) / radius, 0, None) * (inputs < num_in)
    return first, (weights / weights.sum(1, keepdims=True)).astype(np.float32)


@lru_cache(maxsize=256)
def _sparse(num_in: int, num_out: int, start: int, stop: int) -> Any:
    """The weights as a sparse matrix (outputs, inputs); None if scipy is not installed."""
    try:
        from scipy.sparse import csr_array
    except ImportError:
        return None
    first, weights = _resize_weights(num_in, num_out, start, stop)
    num_taps = weights.shape[1]
    inputs = np.minimum(first[:, None] + np.arange(num_taps, dtype=np.int32), num_in - 1)  # outside: weight 0
    row_ends = np.arange(0, weights.size + 1, num_taps, dtype=np.int32)
    return csr_array((weights.ravel(), inputs.ravel(), row_ends), shape=(len(weights), num_in))
