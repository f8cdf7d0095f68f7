"""One map of several: the same image's maps at other scales and of its mirror image, brought to one grid and averaged.

Shape legend: S slots, H W the grid of the result, h w the grid of a view.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ficklenet.transforms import resize_maps


@dataclass(frozen=True)
class View:
    """Maps of one view of an image.

    Attributes:
        maps_Shw: in [0, 1], (S, h, w) or with leading dimensions.
        is_mirrored: whether the view is the mirror image (left and right exchanged).
    """

    maps_Shw: Tensor
    is_mirrored: bool = False


def fuse(views: Sequence[View], grid: tuple[int, int]) -> Tensor:
    """The views' mean on a grid: (S, H, W) in [0, 1].

    Every view has the whole image, so its corners lie on the grid's corners, whatever its scale.

    Raises:
        ValueError: no view.
    """
    if not views:
        raise ValueError("fuse: no view of the image given; give at least the image itself.")
    return torch.stack([resize_maps(_unmirrored(view), grid) for view in views]).mean(0)


def _unmirrored(view: View) -> Tensor:
    return view.maps_Shw.flip(-1) if view.is_mirrored else view.maps_Shw
