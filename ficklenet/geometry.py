"""Where the cells of a feature grid lie on the network's input, and how maps are resized in that frame.

Two kinds of networks exist. Convolutions with odd, symmetrically padded kernels (VGG-16 here, ResNets, EfficientNets)
put cell i exactly at input pixel ``stride * i``; an input of ``stride * g + 1`` pixels gives g + 1 cells, and the first
and the last cell lie on the first and the last pixel. Networks that cut the image into patches (vision transformers,
ConvNeXt) put cell i at the centre of the pixels ``stride * i`` to ``stride * (i + 1) - 1``; an input of ``stride * g``
pixels gives g cells. So the corners of the grid are aligned with the image in the first frame and half-pixel resizing
is right in the second. (The image itself is always resized with aligned corners; against patches this is off by at
most half of the ratio of the two sizes, in pixels of the image, at its border.)
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ficklenet.seeds import resize_labels
from ficklenet.transforms import resize_maps

Frame = Literal["corners", "centres"]

WINDOW = 72  # pixels that the classifier's window spans by default: the paper's 9 cells of 8 pixels


@dataclass(frozen=True)
class GridGeometry:
    """The feature grid of a network.

    Attributes:
        stride: input pixels from one cell to the next.
        frame: "corners": cell i lies at pixel ``stride * i``; "centres": at the centre of the i-th patch.
    """

    stride: int
    frame: Frame = "corners"

    @property
    def is_patches(self) -> bool:
        return self.frame == "centres"

    @property
    def in_words(self) -> str:
        """'8 pixels, corners aligned' or '16 pixels, patches'."""
        return f"{self.stride} pixels, {'patches' if self.is_patches else 'corners aligned'}"

    def grid_size(self, input_size: int) -> int:
        """Cells along a side of the grid for an input of that many pixels."""
        return input_size // self.stride if self.is_patches else (input_size - 1) // self.stride + 1

    def nearest_input_size(self, pixels: float) -> int:
        """The nearest side that the cells fill exactly; at least two cells."""
        extra = 0 if self.is_patches else 1
        num_steps = max(round((pixels - extra) / self.stride), 2 - extra)
        return self.stride * num_steps + extra

    def refines(self, coarser: "GridGeometry") -> bool:
        """Whether labels of the other grid can be shown on this one: its cells are this grid's, or several of them."""
        return self.frame == coarser.frame and coarser.stride % self.stride == 0

    def require_input_size(self, input_size: int, key: str = "input_size") -> None:
        """Raises ValueError, beginning with the key, for a side that the cells do not fill exactly."""
        nearest = self.nearest_input_size(input_size)
        if nearest == input_size:
            return
        if self.is_patches:
            sizes = (
                f"the network sees patches of {self.stride} x {self.stride} pixels. Give a multiple of {self.stride}"
            )
        else:
            sizes = f"cells lie on every {self.stride}th pixel, first to last. Give {self.stride} g + 1"
        raise ValueError(f"{key}: {input_size} given; {sizes}, such as {nearest}.")

    def at_cells(self, images_BCHW: Tensor) -> Tensor:
        """The pixels (B, C, h, w) that the cells lie at, of network inputs (B, C, H, W)."""
        first = self.stride // 2 if self.is_patches else 0
        return images_BCHW[:, :, first :: self.stride, first :: self.stride]

    def resize_maps(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Float maps (..., h, w) on the grid, or on any other size of the image, resized bilinearly to (..., *size)."""
        if not self.is_patches:
            return resize_maps(maps, size)
        flat = maps.reshape(-1, 1, *maps.shape[-2:])
        return functional.interpolate(flat, size, mode="bilinear", align_corners=False).view(*maps.shape[:-2], *size)

    def resize_labels(self, labels_HW: NDArray[np.integer], size: tuple[int, int]) -> NDArray[np.integer]:
        """A label map (H, W) of the grid or of any size of the image at another size, by its nearest neighbour."""
        if not self.is_patches:
            return resize_labels(labels_HW, size)
        rows, cols = (
            ((np.arange(after) + 0.5) * before / after).astype(int)
            for before, after in zip(labels_HW.shape, size, strict=True)
        )
        return labels_HW[rows[:, None], cols]

    @property
    def default_kernel_size(self) -> int:
        """The classifier's s in cells: the odd number whose window spans about as many pixels as the paper's."""
        return 2 * round((WINDOW / self.stride - 1) / 2) + 1

    def dilations_like(self, dilations_at_8: tuple[int, ...]) -> tuple[int, ...]:
        """Dilations of the segmentation head that reach as many pixels as these do at stride 8; each once."""
        return tuple(dict.fromkeys(max(1, round(8 * dilation / self.stride)) for dilation in dilations_at_8))
