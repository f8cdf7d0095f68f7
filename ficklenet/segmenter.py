"""The segmentation network: DeepLab-LargeFOV, DeepLab with ASPP or DeepLab v3+ on a backbone, and its portable file.

LargeFOV (Chen et al., ICLR 2015) has pool5 and pool5a, then fc6 (a 3 x 3 convolution of dilation 12), fc7 and fc8 (both
1 x 1). ASPP (Chen et al., TPAMI 2018) sums four such branches with dilations 6, 12, 18 and 24. On ResNet-101 and on
networks of timm, a branch is one 3 x 3 convolution. DeepLab v3+ is in ``ficklenet.deeplab_v3plus``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ficklenet.arguments import require_class_names
from ficklenet.backbones import backbone_geometry, build_backbone, low_level_of
from ficklenet.deeplab_v3plus import DeepLabV3Plus
from ficklenet.geometry import GridGeometry
from ficklenet.model_file import pack_model, unpack_model

FILE_FORMAT = "ficklenet-segmenter-1"
LARGEFOV = (12,)
ASPP = (6, 12, 18, 24)
ASPP_V3 = (12, 24, 36)  # of DeepLab v3+ at stride 8, twice those at stride 16
Head = Literal["deeplab", "deeplabv3plus"]
FC_HEADS = ("vgg16", "small")  # backbones that end before the fully connected layers; fc6 and fc7 replace these
FC_DEVIATIONS = {"vgg16": 0.005}
"""The standard deviation of the random weights of fc6 and fc7, as in Caffe; other backbones use He's rule. VGG-16's
ImageNet features are large (root mean square 16). With He's rule, the outputs of fc7 would be so large that the first
step at DSRG's rates saturates every pixel at one label, and the training does not recover."""


@dataclass(frozen=True)
class SegmenterSpec:
    """Everything about a segmentation network that is not a weight.

    Attributes:
        backbone: a name of ``ficklenet.backbones.build_backbone``.
        class_names: the classes in order; label = index + 1, background 0.
        dilations: of the head's branches, in cells of the backbone; (12,) is LargeFOV, (6, 12, 18, 24) ASPP. Smaller
            inputs need smaller dilations.
        input_size: side of the square input in pixels. It must fit the backbone's cells: 8 g + 1 at stride 8.
        output_stride: as in ``build_backbone``.
        head: "deeplab": LargeFOV or ASPP; "deeplabv3plus": with a decoder on the backbone's early features.
    """

    backbone: str
    class_names: tuple[str, ...]
    dilations: tuple[int, ...] = LARGEFOV
    input_size: int = 321
    output_stride: int = 8
    head: Head = "deeplab"

    def __post_init__(self) -> None:
        self.input_geometry.require_input_size(self.input_size)
        logits_geometry(self.backbone, self.output_stride, self.head)  # refuses a backbone without early features
        if not self.dilations or min(self.dilations) < 1:
            raise ValueError(f"dilations: {list(self.dilations)} given; give one or more from 1, such as 12.")
        require_class_names(self.class_names)

    @property
    def num_labels(self) -> int:
        """The number of labels: the background and the classes."""
        return len(self.class_names) + 1

    @property
    def geometry(self) -> GridGeometry:
        """Where the cells of the logits lie."""
        return logits_geometry(self.backbone, self.output_stride, self.head)

    @property
    def input_geometry(self) -> GridGeometry:
        """Where the cells of the backbone lie; an input must fill them. The cells of the logits are never coarser."""
        return backbone_geometry(self.backbone, self.output_stride)

    @property
    def grid(self) -> tuple[int, int]:
        """(H, W) of the logits of the square input."""
        side = self.geometry.grid_size(self.input_size)
        return side, side


class Segmenter(nn.Module):
    """A network that gives label logits on the backbone's grid."""

    def __init__(self, spec: SegmenterSpec) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = build_backbone(spec.backbone, spec.output_stride)
        self.head = _head(spec, self.backbone.out_channels)

    def forward(self, images_BCHW: Tensor, features_BKHW: Tensor | None = None) -> Tensor:
        """Normalised images (B, 3, H, W) -> logits (B, L, h, w) of background and classes.

        Args:
            features_BKHW: the backbone's output, if it is known; then the images are not used. DeepLab v3+ needs more
                than this output, so it cannot use it.
        """
        if isinstance(self.head, DeepLabV3Plus):
            return self.head(*self.backbone.with_low_level(images_BCHW))
        return self.head(self.backbone(images_BCHW) if features_BKHW is None else features_BKHW)


def logits_geometry(
    backbone: str, output_stride: int = 8, head: Head = "deeplab", *, key: str = "head"
) -> GridGeometry:
    """Where the cells of a segmentation network's logits lie.

    Raises:
        ValueError: beginning with the key, the head needs early features, and the backbone has none.
    """
    if head == "deeplab":
        return backbone_geometry(backbone, output_stride)
    low_level = low_level_of(backbone, output_stride)
    if low_level is None:
        raise ValueError(
            f'{key}: "{head}" given, but {backbone} has no features that are finer than its last ones. Give "deeplab", '
            "or a backbone such as vgg16, resnet101 or timm/resnet50."
        )
    return low_level.geometry


def default_dilations(backbone: str, output_stride: int = 8, head: Head = "deeplab") -> tuple[int, ...]:
    """The head's dilations as they were published, in cells of the backbone.

    LargeFOV on VGG-16 and the small network. ASPP on others, as in DeepLab's ResNet-101: a single convolution of
    dilation 12 sees nine cells that lie far from each other. DeepLab v3+: those of its paper at stride 8 and 16.
    """
    at_8 = ASPP_V3 if head == "deeplabv3plus" else LARGEFOV if backbone in FC_HEADS else ASPP
    return backbone_geometry(backbone, output_stride).dilations_like(at_8)


def _head(spec: SegmenterSpec, in_channels: int) -> "SegmentationHead | DeepLabV3Plus":
    if spec.head == "deeplabv3plus":
        low_level = low_level_of(spec.backbone, spec.output_stride)
        assert low_level is not None  # the specification has refused such a backbone
        return DeepLabV3Plus(in_channels, spec.input_geometry, low_level, spec.num_labels, spec.dilations)
    branch = partial(_branch, fc_deviation=FC_DEVIATIONS.get(spec.backbone))
    make_branch = branch if spec.backbone in FC_HEADS else _plain_branch
    return SegmentationHead(make_branch(in_channels, spec.num_labels, dilation) for dilation in spec.dilations)


class SegmentationHead(nn.Module):
    """A head that sums its branches.

    Attributes:
        has_fc_weights: fc6 and fc7 started from trained weights, so only fc8 is new.
    """

    def __init__(self, branches: Iterable[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.has_fc_weights = False

    def new_layers(self) -> nn.ModuleList:
        """The layers that started from random weights."""
        if not self.has_fc_weights:
            return self.branches
        return nn.ModuleList(list(branch.children())[-1] for branch in self.branches)

    def forward(self, features_BKHW: Tensor) -> Tensor:
        if all(isinstance(branch, nn.Conv2d) for branch in self.branches):
            return _sum_of_convolutions(features_BKHW, [*self.branches])  # type: ignore[list-item]
        logits_BLHW: Tensor = sum(branch(features_BKHW) for branch in self.branches)  # type: ignore[assignment]
        return logits_BLHW


def _sum_of_convolutions(features_BKHW: Tensor, branches: Sequence[nn.Conv2d]) -> Tensor:
    """The sum of 3 x 3 convolutions with dilation and padding: one matrix product, whose parts are shifted and added.

    The convolutions have few outputs and many inputs. Libraries are slow at these: on a CPU, a training step of ASPP on
    1,280 channels takes a quarter of the time this way.
    """
    steps = [(branch, row, column) for branch in branches for row in range(3) for column in range(3)]
    weights_NLK = torch.stack([branch.weight[:, :, row, column] for branch, row, column in steps])
    parts_BNLHW = torch.einsum("nlk,bkhw->bnlhw", weights_NLK, features_BKHW)
    logits_BLHW = sum(branch.bias for branch in branches)[:, None, None]  # type: ignore[index, misc]
    for (branch, row, column), part_BLHW in zip(steps, parts_BNLHW.unbind(1), strict=True):
        down, right = (row - 1) * branch.dilation[0], (column - 1) * branch.dilation[1]
        if abs(down) < part_BLHW.shape[2] and abs(right) < part_BLHW.shape[3]:  # else it sees nothing but the padding
            logits_BLHW = logits_BLHW + functional.pad(part_BLHW, (-right, right, -down, down))  # negative: cut off
    return logits_BLHW


def load_fc_weights(head: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Fills fc6 and fc7 of every branch from VGG-16's fully connected layers, if the state dict has them.

    As in DeepLab-LargeFOV (Chen et al., ICLR 2015, section 3.1), only every fourth unit is used, and of fc6's 7 x 7
    window every third row and column.

    Args:
        head: LargeFOV or ASPP on VGG-16; other heads do not change.
        state_dict: torchvision's names, ``classifier.0`` (4,096, 512 * 7 * 7) and ``classifier.3`` (4,096, 4,096).
    """
    fc6, fc7 = (state_dict.get(f"classifier.{number}.weight") for number in (0, 3))
    if not isinstance(head, SegmentationHead):
        return
    if fc6 is None or fc7 is None or fc6.shape != (4096, 512 * 49) or fc7.shape != (4096, 4096):
        return
    thinned = {
        "2.weight": fc6.view(4096, 512, 7, 7)[::4, :, ::3, ::3],
        "2.bias": state_dict["classifier.0.bias"][::4],
        "5.weight": fc7[::4, ::4, None, None],
        "5.bias": state_dict["classifier.3.bias"][::4],
    }
    for branch in head.branches:
        if isinstance(branch, nn.Sequential) and branch[2].weight.shape == thinned["2.weight"].shape:
            branch.load_state_dict(thinned, strict=False)
            head.has_fc_weights = True


def _branch(in_channels: int, num_labels: int, dilation: int, *, fc_deviation: float | None) -> nn.Sequential:
    """pool5, pool5a, fc6, fc7 and fc8; fc6 and fc7 have twice the backbone's channels, which is VGG-16's 1,024.

    Args:
        fc_deviation: the standard deviation of the weights of fc6 and fc7; None: He's rule.
    """
    width = 2 * in_channels
    fc6 = nn.Conv2d(in_channels, width, 3, padding=dilation, dilation=dilation)
    fc7 = nn.Conv2d(width, width, 1)
    fc8 = nn.Conv2d(width, num_labels, 1)
    for layer in (fc6, fc7):
        if fc_deviation is None:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        else:
            nn.init.normal_(layer.weight, std=fc_deviation)
    nn.init.normal_(fc8.weight, std=0.01)
    for layer in (fc6, fc7, fc8):
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    pools = nn.MaxPool2d(3, stride=1, padding=1), nn.AvgPool2d(3, stride=1, padding=1)
    return nn.Sequential(
        *pools, fc6, nn.ReLU(inplace=True), nn.Dropout(0.5), fc7, nn.ReLU(inplace=True), nn.Dropout(0.5), fc8
    )


def _plain_branch(in_channels: int, num_labels: int, dilation: int) -> nn.Conv2d:
    fc8 = nn.Conv2d(in_channels, num_labels, 3, padding=dilation, dilation=dilation)
    nn.init.normal_(fc8.weight, std=0.01)
    nn.init.zeros_(fc8.bias)  # type: ignore[arg-type]
    return fc8


def pack_segmenter(model: Segmenter, about: Mapping[str, Any] | None = None) -> bytes:
    """The segmentation network as the bytes of a file: a torch archive of plain types and CPU tensors.

    Args:
        about: the origin of the network, as plain (nested) data, for ``ficklenet.model_file.model_record``.
    """
    return pack_model(FILE_FORMAT, model.spec, model, about)


def unpack_segmenter(data: bytes) -> Segmenter:
    """The network from such a file, on the CPU and in evaluation mode; it runs no code from the file.

    Raises:
        ValueError: the bytes are not a segmenter file, or its weights do not fit its specification.
    """
    try:
        return unpack_model(data, FILE_FORMAT, lambda spec: Segmenter(SegmenterSpec(**spec)))
    except ValueError as error:
        raise ValueError(
            f"segmenter file: the given {len(data)} bytes are not a segmentation network of this project ({error}). "
            "Give the model.pt that train_segmentation wrote."
        ) from error
