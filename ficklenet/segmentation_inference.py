"""Predicts label logits on the grid, and enlarges them to probabilities at any size.

The logits (not the probabilities) of several input sizes and of the mirrored image are summed, as in the tests of
DSRG's released code (Huang et al., CVPR 2018). They are summed on the finest of their grids. The sum, enlarged to the
image, gives the probabilities that the CRF refines (Chen et al., ICLR 2015).

Shape legend: B images, L labels (background and classes), h w grid, H W pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ficklenet.arguments import require_array, require_images, require_one_per_image
from ficklenet.backbones import STRIDE_8
from ficklenet.geometry import GridGeometry
from ficklenet.segmenter import Segmenter
from ficklenet.transforms import normalize


def input_sizes(input_size: int, scales: Sequence[float], geometry: GridGeometry = STRIDE_8) -> tuple[int, ...]:
    """The input sizes for some scales of the training size, rounded to sizes that fit the cells: 8 g + 1 at stride 8.

    Raises:
        ValueError: there is no scale, or a scale leaves no cell.
    """
    if not scales or min(scales) * input_size <= geometry.stride:
        raise ValueError(f"scales: {list(scales)} given; give one or more, such as 0.75, 1, 1.25.")
    return tuple(geometry.nearest_input_size(scale * input_size) for scale in scales)


@torch.inference_mode()
def predict_grid(
    model: Segmenter, inputs: Sequence[Tensor], *, mirror: bool = False, precision: torch.dtype = torch.float32
) -> Tensor:
    """Label logits float32 (B, L, h, w), summed over the inputs, on the grid of the largest input.

    Args:
        model: in evaluation mode.
        inputs: the same whole images at each input size, uint8 RGB (B, 3, size, size), on the model's device.
        mirror: sum over the image and its mirror image.
        precision: the precision of the network.

    Raises:
        ValueError: there is no input, or the inputs are not uint8, square, and of the same images.
    """
    if not len(inputs):
        raise ValueError("predict_grid: given no input, allowed: the images at one or more input sizes.")
    for images_BCHW in inputs:
        require_images(images_BCHW, "predict_grid", name="inputs")
        require_images(images_BCHW, "predict_grid", images_BCHW.shape[3], "inputs")
        require_one_per_image(len(inputs[0]), "predict_grid", images=images_BCHW)
    geometry = model.spec.geometry
    side = max(geometry.grid_size(images_BCHW.shape[-1]) for images_BCHW in inputs)
    views = [(images_BCHW, False) for images_BCHW in inputs]
    if mirror:
        views += [(images_BCHW.flip(-1), True) for images_BCHW in inputs]
    total_BLhw = torch.zeros((), device=inputs[0].device)
    for images_BCHW, is_mirrored in views:
        with torch.autocast(images_BCHW.device.type, precision, enabled=precision != torch.float32):
            logits_BLhw = model(normalize(images_BCHW).contiguous(memory_format=torch.channels_last))
        summand_BLhw = geometry.resize_maps(logits_BLhw.float(), (side, side))
        total_BLhw = total_BLhw + (summand_BLhw.flip(-1) if is_mirrored else summand_BLhw)
    return total_BLhw


def enlarged_probabilities(
    logits_Lhw: NDArray[np.floating], size: tuple[int, int], geometry: GridGeometry = STRIDE_8
) -> NDArray[np.float32]:
    """One image's label probabilities at another size, float32 (L, H, W): the softmax of its enlarged logits.

    Args:
        logits_Lhw: the logits of one image on the grid, from ``predict_grid``.
        geometry: the geometry of the network that predicted them.

    Raises:
        ValueError: the logits are not floats (L, h, w).
    """
    require_array(logits_Lhw, "floats", ("L", "h", "w"), "enlarged_probabilities", "logits_Lhw")
    return geometry.resize_maps(torch.from_numpy(logits_Lhw.astype(np.float32)), size).softmax(0).numpy()
