"""Colour and geometry on tensors: normalises network inputs, and resizes maps to images.

Corners are always aligned. Cell i of the stride-8 grid is at input pixel 8 i, and the first and the last pixel of an
image are at the first and the last pixel of the input (``ficklenet.resampling`` resizes images in this way too).
Half-pixel resizing would shift borders by half a cell.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ficklenet.arguments import require_images, require_tensor
from ficklenet.resampling import MEAN

STD = (0.229, 0.224, 0.225)


def normalize(images_BCHW: Tensor) -> Tensor:
    """uint8 RGB images (B, 3, H, W) -> float32, ImageNet mean 0 and deviation 1.

    Raises:
        ValueError: the images are something else, such as floats.
    """
    require_images(images_BCHW, "normalize")
    mean = torch.tensor(MEAN, device=images_BCHW.device).view(3, 1, 1)
    std = torch.tensor(STD, device=images_BCHW.device).view(3, 1, 1)
    return (images_BCHW / 255 - mean) / std


def resize_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Float maps (..., h, w) resized bilinearly to (..., *size), corners aligned.

    Raises:
        ValueError: the maps are something else, such as labels, between which bilinear values are other classes.
    """
    require_tensor(maps, "floats", None, "resize_maps", "maps", ", for labels use resize_labels")
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    return functional.interpolate(flat, size, mode="bilinear", align_corners=True).view(*maps.shape[:-2], *size)
