"""Averages the maps of several views of an image (other scales, the mirror image) on one grid.

Shape legend: S slots, H W the grid of the result, h w the grid of a view.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ficklenet.arguments import require_tensor
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
    """The mean of the views on a grid: (S, H, W) in [0, 1].

    Every view shows the whole image, so its corners are the corners of the grid at any scale.

    Raises:
        ValueError: there is no view, or its maps are no floats.
    """
    if not views:
        raise ValueError("fuse: no view of the image given; give at least the image itself.")
    for view in views:
        require_tensor(view.maps_Shw, "floats", None, "fuse", "maps_Shw")
    return torch.stack([resize_maps(_unmirrored(view), grid) for view in views]).mean(0)


def _unmirrored(view: View) -> Tensor:
    return view.maps_Shw.flip(-1) if view.is_mirrored else view.maps_Shw
