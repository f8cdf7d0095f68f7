"""Where the cells of a feature grid are on the network's input, and how maps must be resized.

There are two kinds of networks. In networks with odd, symmetrically padded kernels (VGG-16 here, ResNets,
EfficientNets), cell i is exactly at input pixel ``stride * i``. An input of ``stride * g + 1`` pixels gives g + 1
cells, and the first and the last cell are at the first and the last pixel. So maps are resized with aligned corners.

Networks that cut the image into patches (vision transformers, ConvNeXt) have cell i at the centre of the pixels
``stride * i`` to ``stride * (i + 1) - 1``. An input of ``stride * g`` pixels gives g cells. So half-pixel resizing is
right for their maps. The image itself is always resized with aligned corners. For patches this causes an error, which
is largest at the image's border: half of the ratio of the two sizes, in pixels of the image.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ficklenet.arguments import require_array, require_tensor
from ficklenet.seeds import resize_labels

if TYPE_CHECKING:  # the report needs only the positions of cells, and torch takes seconds to import
    from torch import Tensor

Frame = Literal["corners", "centres"]

WINDOW = 72  # pixels that the classifier's window spans by default: the paper's 9 cells of 8 pixels


@dataclass(frozen=True)
class GridGeometry:
    """The feature grid of a network.

    Attributes:
        stride: the distance of neighbouring cells in input pixels.
        frame: "corners": cell i is at pixel ``stride * i``; "centres": it is at the centre of the i-th patch.
    """

    stride: int
    frame: Frame = "corners"

    @property
    def is_patches(self) -> bool:
        return self.frame == "centres"

    @property
    def in_words(self) -> str:
        """The geometry in words, such as '8 pixels, corners aligned' or '16 pixels, patches'."""
        return f"{self.stride} pixels, {'patches' if self.is_patches else 'corners aligned'}"

    def grid_size(self, input_size: int) -> int:
        """The number of cells along a side of the grid, for an input with this side in pixels."""
        return input_size // self.stride if self.is_patches else (input_size - 1) // self.stride + 1

    def nearest_input_size(self, pixels: float) -> int:
        """The nearest side that fits the cells exactly, with at least two cells."""
        extra = 0 if self.is_patches else 1
        num_steps = max(round((pixels - extra) / self.stride), 2 - extra)
        return self.stride * num_steps + extra

    def refines(self, coarser: "GridGeometry") -> bool:
        """Whether labels of the other grid can be shown on this one: its cells are this grid's, or several of them."""
        return self.frame == coarser.frame and coarser.stride % self.stride == 0

    def require_input_size(self, input_size: int, key: str = "input_size") -> None:
        """Raises ValueError for a side that does not fit the cells exactly; the message begins with the key."""
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

    def at_cells(self, images_BCHW: "Tensor") -> "Tensor":
        """The pixels (B, C, h, w) of network inputs (B, C, H, W) at the positions of the cells."""
        first = self.stride // 2 if self.is_patches else 0
        return images_BCHW[:, :, first :: self.stride, first :: self.stride]

    def resize_maps(self, maps: "Tensor", size: tuple[int, int]) -> "Tensor":
        """Float maps (..., h, w) on the grid, or on any other size of the image, resized bilinearly to (..., *size)."""
        from torch.nn import functional

        from ficklenet.transforms import resize_maps

        if not self.is_patches:
            return resize_maps(maps, size)
        require_tensor(maps, "floats", None, "resize_maps", "maps", ", for labels use resize_labels")
        flat = maps.reshape(-1, 1, *maps.shape[-2:])
        return functional.interpolate(flat, size, mode="bilinear", align_corners=False).view(*maps.shape[:-2], *size)

    def resize_labels(self, labels_HW: NDArray[np.integer], size: tuple[int, int]) -> NDArray[np.integer]:
        """A label map (H, W) on the grid, or at any size of the image, resized by nearest neighbour."""
        if not self.is_patches:
            return resize_labels(labels_HW, size)
        require_array(labels_HW, "integers", ("H", "W"), "resize_labels", "labels")
        rows, cols = (
            ((np.arange(after) + 0.5) * before / after).astype(int)
            for before, after in zip(labels_HW.shape, size, strict=True)
        )
        return labels_HW[rows[:, None], cols]

    @property
    def default_kernel_size(self) -> int:
        """The classifier's s in cells: the odd number with a window of about as many pixels as in the paper."""
        return 2 * round((WINDOW / self.stride - 1) / 2) + 1

    def dilations_like(self, dilations_at_8: tuple[int, ...]) -> tuple[int, ...]:
        """Dilations of the segmentation head that span as many pixels as these at stride 8, without repetitions."""
        return tuple(dict.fromkeys(max(1, round(8 * dilation / self.stride)) for dilation in dilations_at_8))
