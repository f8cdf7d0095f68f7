"""Backbones of output stride 8: VGG-16 as DeepLab-LargeFOV uses it, ResNet-101, and a small one for drawn scenes.

All are cut into stages that can be frozen from the input on. With their pooling (3 x 3, padding 1) an input
of 8 g + 1 pixels gives a grid of g + 1 cells, and cell i lies exactly at input pixel 8 i: 321 -> 41, 129 ->
17. Another backbone is a module with the attributes and methods of ``Backbone`` and that geometry; it is named
in ``BACKBONE_NAMES`` and ``build_backbone`` (and, to be trained by the job, in ``jobs/run/config.py``).
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

if TYPE_CHECKING:  # torchvision takes 2 s to import, and only weights and the ResNet need it
    from ficklenet.resnet import ResNet101

OUTPUT_STRIDE = 8
BACKBONE_NAMES = ("vgg16", "resnet101", "small")
IMAGENET_WEIGHTS = {"vgg16": "VGG16_Weights.IMAGENET1K_V1", "resnet101": "ResNet101_Weights.IMAGENET1K_V1"}


class Backbone(Protocol):
    """What the rest of the project asks of a backbone, which is an ``nn.Module``.

    Attributes:
        out_channels: K, the channels of the output.
        num_stages: how many stages can be frozen.
    """

    out_channels: int
    num_stages: int

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> features (B, K, h, w), not negative."""

    def freeze_stages(self, num_frozen: int) -> None:
        """Stops the training of the first stages' weights, and resumes it for the others."""


class LayerChain(nn.Module):
    """A chain of layers in stages, such as VGG-16.

    Attributes:
        features: all layers in one ``nn.Sequential``, so that state dicts have torchvision's names
            (``features.N.weight``).
    """

    def __init__(self, stages: Sequence[Sequence[nn.Module]], out_channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential(*[layer for stage in stages for layer in stage])
        self.out_channels = out_channels
        self.num_stages = len(stages)
        self._stage_of_layer = [index for index, stage in enumerate(stages) for _ in stage]

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> features (B, K, h, w)."""
        return self.features(images_BCHW)

    def stages(self, start: int, stop: int) -> nn.Sequential:
        """The layers of stages ``start`` to ``stop - 1``, themselves, not copies."""
        return nn.Sequential(
            *(layer for stage, layer in zip(self._stage_of_layer, self.features, strict=True) if start <= stage < stop)
        )

    def freeze_stages(self, num_frozen: int) -> None:
        """Stops the training of the first stages' weights, and resumes it for the others."""
        if not 0 <= num_frozen <= self.num_stages:
            raise ValueError(f"frozen stages: {num_frozen} given; this backbone has 0 to {self.num_stages}.")
        for stage, layer in zip(self._stage_of_layer, self.features, strict=True):
            layer.requires_grad_(stage >= num_frozen)


def vgg16() -> LayerChain:
    """VGG-16 at stride 8 (DeepLab-LargeFOV): pools 3 x 3, the fourth of stride 1, conv5 dilated."""
    return LayerChain(
        [
            [*_convolutions(3, 64, 64), _pool(stride=2)],
            [*_convolutions(64, 128, 128), _pool(stride=2)],
            [*_convolutions(128, 256, 256, 256), _pool(stride=2)],
            [*_convolutions(256, 512, 512, 512), _pool(stride=1)],
            _convolutions(512, 512, 512, 512, dilation=2),
        ],
        out_channels=512,
    )


def small() -> LayerChain:
    """Five convolutions with VGG-16's pooling geometry, for drawn scenes; trained from scratch."""
    backbone = LayerChain(
        [
            [*_convolutions(3, 16), _pool(stride=2)],
            [*_convolutions(16, 32), _pool(stride=2)],
            [*_convolutions(32, 64), _pool(stride=2)],
            _convolutions(64, 64, 64),
        ],
        out_channels=64,
    )
    for layer in backbone.features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return backbone


def build_backbone(name: str) -> "LayerChain | ResNet101":
    """A fresh backbone by name, with random weights."""
    match name:
        case "vgg16":
            return vgg16()
        case "resnet101":
            from ficklenet.resnet import ResNet101

            return ResNet101()
        case "small":
            return small()
    raise ValueError(f'backbone: "{name}" given; give one of {", ".join(BACKBONE_NAMES)}.')


def grid_size(input_size: int) -> int:
    """Cells along a side of the feature grid for an input of that many pixels: three halvings, rounded up."""
    return (input_size - 1) // OUTPUT_STRIDE + 1


def load_backbone_weights(backbone: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Copies weights by torchvision's names into the backbone, whatever their precision; what torchvision's whole
    network has beside it (``classifier.*``, ``fc.*``, counts of batches) is ignored.

    Raises:
        ValueError: a weight is missing, unknown or of another shape; the backbone is unchanged.
    """
    given = {
        name: value
        for name, value in state_dict.items()
        if not name.startswith(("classifier.", "fc.")) and not name.endswith(".num_batches_tracked")
    }
    wanted = backbone.state_dict()
    for problem, names in (
        ("missing", wanted.keys() - given.keys()),
        ("unknown", given.keys() - wanted.keys()),
    ):
        if names:
            raise ValueError(
                f"backbone weights: {len(names)} {problem} (first: {min(names)}). "
                f"Give a state dict of this backbone with torchvision's names, such as {next(iter(wanted))}."
            )
    for name, value in given.items():
        if value.shape != wanted[name].shape:
            raise ValueError(
                f"backbone weights: {name} has shape {tuple(value.shape)}, here it must be "
                f"{tuple(wanted[name].shape)}. Give the weights of this backbone."
            )
    backbone.load_state_dict(given)


def imagenet_weights(name: str) -> Mapping[str, Tensor]:
    """ImageNet weights of a backbone from torchvision's registry (downloaded once: VGG-16 528 MB, ResNet-101 171 MB).

    Raises:
        ValueError: there are none for this backbone.
    """
    require_imagenet_weights(name)
    from torchvision.models import get_weight

    return get_weight(IMAGENET_WEIGHTS[name]).get_state_dict(progress=False, check_hash=True)


def require_imagenet_weights(name: str, key: str = "backbone weights") -> None:
    """Raises ValueError, beginning with the key, for a backbone without ImageNet weights; downloads nothing."""
    if name not in IMAGENET_WEIGHTS:
        raise ValueError(
            f'{key}: the backbone "{name}" has no ImageNet weights; give "none" or the path of a state dict.'
        )


def _convolutions(*channels: int, dilation: int = 1) -> list[nn.Module]:
    """3 x 3 convolutions that keep the size, each followed by ReLU."""
    layers: list[nn.Module] = []
    for num_in, num_out in itertools.pairwise(channels):
        layers += [nn.Conv2d(num_in, num_out, 3, padding=dilation, dilation=dilation), nn.ReLU(inplace=True)]
    return layers


def _pool(stride: int) -> nn.MaxPool2d:
    return nn.MaxPool2d(3, stride=stride, padding=1)
