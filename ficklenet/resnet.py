"""ResNet-101 at output stride 8: the last two stages are dilated instead of strided, and batch norm is frozen.

The layers and their names are torchvision's. All kernels are odd and padded by half of their size, so an input of
8 g + 1 pixels gives g + 1 cells, and cell i is at input pixel 8 i, as in ``ficklenet.backbones``.
"""

from collections.abc import Mapping

from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d

from ficklenet.backbones import STRIDE_4, STRIDE_8, LowLevel, without_classifier
from ficklenet.stages import NumFrozen, freeze_first

BLOCKS = (3, 4, 23, 3)
RESIDUAL_SCALE = 0.2
"""The scale of a block's residual in a network with random weights. Batch norm has no statistics there, so at scale 1
the variance would double in each of the 33 blocks."""


class ResNet101(nn.Module):
    """Five stages: the stem, and four of bottleneck blocks.

    A batch of 10 is too small to measure statistics, so batch norm keeps the loaded statistics also in training. Its
    weights are not trained.

    Attributes:
        out_channels: K, the channels of the output.
        geometry: the geometry of stride 8.
        num_stages: the number of stages that can be frozen.
    """

    out_channels = 512 * Bottleneck.expansion
    geometry = STRIDE_8
    num_stages = 5
    low_level = LowLevel(64 * Bottleneck.expansion, STRIDE_4)

    def __init__(self) -> None:
        super().__init__()
        whole = ResNet(
            Bottleneck,
            list(BLOCKS),
            replace_stride_with_dilation=[False, True, True],
            norm_layer=FrozenBatchNorm2d,
        )
        self.conv1, self.bn1, self.relu, self.maxpool = whole.conv1, whole.bn1, whole.relu, whole.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = whole.layer1, whole.layer2, whole.layer3, whole.layer4
        for block in self.modules():
            if isinstance(block, Bottleneck):
                block.bn3.weight.fill_(RESIDUAL_SCALE)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> features (B, 2048, h, w)."""
        return self.last_stages(images_BCHW)[-1]

    def with_low_level(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The output of the first stage of blocks (B, 256, H / 4, W / 4), and the features."""
        low_BKHW = self._first_stages(images_BCHW)
        return low_BKHW, self.layer4(self.layer3(self.layer2(low_BKHW)))

    def last_stages(self, images_BCHW: Tensor) -> list[Tensor]:
        """The outputs of the last three stages, which all have stride 8."""
        second = self.layer2(self._first_stages(images_BCHW))
        third = self.layer3(second)
        return [second, third, self.layer4(third)]

    def _first_stages(self, images_BCHW: Tensor) -> Tensor:
        return self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images_BCHW)))))

    def stage_weights(self) -> list[list[nn.Parameter]]:
        """The weights of each stage."""
        stages = (self.conv1, self.layer1, self.layer2, self.layer3, self.layer4)
        return [list(stage.parameters()) for stage in stages]

    def freeze_stages(self, num_frozen: NumFrozen) -> None:
        """Stops the training of the first stages' weights and resumes it for the others; "all" stops every stage."""
        freeze_first(self.stage_weights(), num_frozen)

    def published_weights(self, state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The weights of torchvision's network without its last layer."""
        return without_classifier(state_dict)
