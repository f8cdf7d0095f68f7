"""The head of DeepLab v3+ (Chen et al., ECCV 2018): dilated branches, then a decoder on early, finer features.

Its logits lie on the grid of the early features, of stride 4 as a rule, so that outlines are finer than the cells of
the maps. Group norm stands where the paper has batch norm: a batch of a few images is too small to measure statistics,
and the loss of an image must not depend on the others of its micro-batch.

Shape legend: B images, L labels, K channels, h w grid of the last features, H W grid of the early features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ficklenet.backbones import LowLevel
from ficklenet.geometry import GridGeometry

WIDTH = 256  # channels of every branch and of the decoder
LOW_WIDTH = 48  # the early features are reduced to these channels: fewer, so that the last features count more
NUM_GROUPS = 32  # of group norm; it divides WIDTH
LOW_GROUPS = 16


class DeepLabV3Plus(nn.Module):
    """Logits of labels from the early and the last features of a backbone.

    Args:
        in_channels: of the last features.
        geometry: of the last features.
        low_level: the early features.
        dilations: of the 3 x 3 branches, in cells of the last features; a 1 x 1 branch and the image's mean come
            beside them.
    """

    def __init__(
        self,
        in_channels: int,
        geometry: GridGeometry,
        low_level: LowLevel,
        num_labels: int,
        dilations: Sequence[int],
    ) -> None:
        super().__init__()
        self.geometry = geometry
        self.branches = nn.ModuleList(
            [_block(in_channels, WIDTH, 1), *(_block(in_channels, WIDTH, 3, dilation) for dilation in dilations)]
        )
        self.image_branch = nn.Sequential(nn.AdaptiveAvgPool2d(1), _block(in_channels, WIDTH, 1))
        self.project = nn.Sequential(_block((len(self.branches) + 1) * WIDTH, WIDTH, 1), nn.Dropout(0.5))
        self.reduce = _block(low_level.channels, LOW_WIDTH, 1, num_groups=LOW_GROUPS)
        self.decoder = nn.Sequential(
            _block(WIDTH + LOW_WIDTH, WIDTH, 3), _block(WIDTH, WIDTH, 3), nn.Conv2d(WIDTH, num_labels, 1)
        )
        last = self.decoder[-1]
        nn.init.normal_(last.weight, std=0.01)  # type: ignore[arg-type]
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def new_layers(self) -> nn.Module:
        """All of them start from random weights."""
        return self

    def forward(self, low_BKHW: Tensor, last_BKhw: Tensor) -> Tensor:
        """Early features (B, K, H, W) and the last ones (B, K', h, w) -> logits (B, L, H, W)."""
        image_BK11 = self.image_branch(last_BKhw)
        seen_BKhw = [branch(last_BKhw) for branch in self.branches]
        together_BKhw = self.project(torch.cat([*seen_BKhw, image_BK11.expand_as(seen_BKhw[0])], 1))
        enlarged_BKHW = self.geometry.resize_maps(together_BKhw, (low_BKHW.shape[2], low_BKHW.shape[3]))
        return self.decoder(torch.cat([enlarged_BKHW, self.reduce(low_BKHW)], 1))


def _block(
    in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1, *, num_groups: int = NUM_GROUPS
) -> nn.Sequential:
    """A convolution that keeps the size, group norm, ReLU; the weights by He's rule."""
    padding = dilation * (kernel_size // 2)
    layer = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return nn.Sequential(layer, nn.GroupNorm(num_groups, out_channels), nn.ReLU(inplace=True))
