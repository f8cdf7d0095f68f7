"""Backbones by name: VGG-16 as DeepLab-LargeFOV uses it, ResNet-101, a small one for drawn scenes, and timm's.

All have stages that can be frozen, starting at the input. With the pooling (3 x 3, padding 1) of the first three, an
input of 8 g + 1 pixels gives a grid of g + 1 cells, and cell i is exactly at input pixel 8 i: 321 -> 41, 129 -> 17.
``timm/<name>`` is any network of timm that has features (``ficklenet.timm_backbones``); its geometry says where its
cells are.

To add a backbone of your own, write an ``nn.Module`` with the attributes and methods of ``Backbone``, and return it
from ``build_backbone`` under a name of ``BACKBONE_NAMES``. Nothing else needs to know it.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ficklenet.geometry import GridGeometry
from ficklenet.stages import NumFrozen, freeze_first

STRIDE_8 = GridGeometry(8)
STRIDE_4 = GridGeometry(4)
LOW_STAGES = 2  # stages of a chain of layers before the features of stride 4
BACKBONE_NAMES = ("vgg16", "resnet101", "small")
TIMM_PREFIX = "timm/"
OUTPUT_STRIDES = (8, 16, 32)  # of networks of timm that can be dilated
IMAGENET_WEIGHTS = {"vgg16": "VGG16_Weights.IMAGENET1K_V1", "resnet101": "ResNet101_Weights.IMAGENET1K_V1"}


@dataclass(frozen=True)
class LowLevel:
    """The features of an early stage, on a finer grid than the last ones.

    Attributes:
        channels: of these features.
        geometry: where their cells lie; it refines the geometry of the last features.
    """

    channels: int
    geometry: GridGeometry


class Backbone(Protocol):
    """The attributes and methods that a backbone, an ``nn.Module``, must have.

    Attributes:
        out_channels: K, the channels of the output.
        geometry: the stride, and where the cells of the output lie on the input.
        num_stages: how many stages can be frozen.
    """

    out_channels: int
    geometry: GridGeometry
    num_stages: int

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        """Images (B, 3, H, W), normalised by ``ficklenet.transforms.normalize`` -> features (B, K, h, w).

        A network that was trained with another mean and deviation translates its input itself.
        """

    @property
    def low_level(self) -> LowLevel | None:
        """The early features that ``with_low_level`` gives; None if there are none, as in a vision transformer."""

    def with_low_level(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The features of ``low_level`` and the last ones, from one pass. Called only if ``low_level`` is not None."""

    def last_stages(self, images_BCHW: Tensor) -> list[Tensor]:
        """The outputs of the last two or three stages, the last stage at the end: (B, K', h', w') each.

        Images as in ``__call__``. Earlier stages may have finer grids; all have the same corners or the same centres.
        """

    def stage_weights(self) -> list[list[nn.Parameter]]:
        """The weights that can be trained, stage by stage, starting at the input."""

    def freeze_stages(self, num_frozen: NumFrozen) -> None:
        """Stops the training of the first stages' weights and resumes it for the others; "all" stops every stage."""

    def published_weights(self, state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The backbone's weights, under its own names, from a state dict with the published names."""

    def eval(self) -> Any:
        """As ``nn.Module`` has it."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """As ``nn.Module`` has it."""

    def state_dict(self) -> dict[str, Any]:
        """As ``nn.Module`` has it."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Any:
        """As ``nn.Module`` has it."""


class LayerChain(nn.Module):
    """A chain of layers in stages, such as VGG-16.

    Attributes:
        features: all layers in one ``nn.Sequential``, so that state dicts have torchvision's names
            (``features.N.weight``).
    """

    geometry = STRIDE_8

    def __init__(self, stages: Sequence[Sequence[nn.Module]], out_channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential(*[layer for stage in stages for layer in stage])
        self.out_channels = out_channels
        self.num_stages = len(stages)
        self._stage_of_layer = [index for index, stage in enumerate(stages) for _ in stage]
        early = [layer for layer in self.stages(0, LOW_STAGES) if isinstance(layer, nn.Conv2d)]
        self.low_level = LowLevel(early[-1].out_channels, STRIDE_4)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> features (B, K, h, w)."""
        return self.features(images_BCHW)

    def with_low_level(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The features at stride 4, behind the second pooling, and the last ones."""
        low_BKHW = self.stages(0, LOW_STAGES)(images_BCHW)
        return low_BKHW, self.stages(LOW_STAGES, self.num_stages)(low_BKHW)

    def last_stages(self, images_BCHW: Tensor) -> list[Tensor]:
        """The outputs of the last two stages, of VGG-16 conv4 (after its pool of stride 1) and conv5."""
        before_last = self.stages(0, self.num_stages - 1)(images_BCHW)
        return [before_last, self.stages(self.num_stages - 1, self.num_stages)(before_last)]

    def stages(self, start: int, stop: int) -> nn.Sequential:
        """The layers of stages ``start`` to ``stop - 1``; they are not copied."""
        return nn.Sequential(
            *(layer for stage, layer in zip(self._stage_of_layer, self.features, strict=True) if start <= stage < stop)
        )

    def stage_weights(self) -> list[list[nn.Parameter]]:
        """The weights of each stage."""
        return [list(self.stages(number, number + 1).parameters()) for number in range(self.num_stages)]

    def freeze_stages(self, num_frozen: NumFrozen) -> None:
        """Stops the training of the first stages' weights and resumes it for the others; "all" stops every stage."""
        freeze_first(self.stage_weights(), num_frozen)

    def published_weights(self, state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The convolutions of torchvision's whole network."""
        return without_classifier(state_dict)


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
        if isinstance(layer, nn.Conv2d) and not layer.weight.is_meta:  # there, torch would import its compiler: seconds
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return backbone


def build_backbone(name: str, output_stride: int = 8) -> Backbone:
    """A new backbone by name, with random weights.

    Args:
        name: a name of ``BACKBONE_NAMES``, or ``timm/<name>``.
        output_stride: 8, 16 or 32, for networks of timm that can be dilated; a larger stride gives a coarser grid in
            less time. Other networks of timm keep their own stride. The project's own backbones allow only 8.

    Raises:
        ValueError: there is none of that name or of that stride, or it has no features on a grid, or timm is not
            installed.
    """
    require_backbone_name(name)
    allowed = OUTPUT_STRIDES if name.startswith(TIMM_PREFIX) else (8,)
    if output_stride not in allowed:
        raise ValueError(f"output_stride: {output_stride} given; {name} takes {' or '.join(map(str, allowed))}.")
    match name:
        case "vgg16":
            return vgg16()
        case "resnet101":  # torchvision takes 2 s to import, and only weights and the ResNet need it
            from ficklenet.resnet import ResNet101

            return ResNet101()
        case "small":
            return small()
    from ficklenet.timm_backbones import TimmBackbone

    return TimmBackbone(name.removeprefix(TIMM_PREFIX), output_stride)


@cache
def low_level_of(name: str, output_stride: int = 8) -> LowLevel | None:
    """The early features of a backbone, without a network in memory. Arguments as in ``build_backbone``."""
    require_backbone_name(name)
    if name.startswith(TIMM_PREFIX):
        from ficklenet.timm_backbones import probe

        return probe(name.removeprefix(TIMM_PREFIX), output_stride).low_level
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return build_backbone(name, output_stride).low_level


@cache
def backbone_geometry(name: str, output_stride: int = 8) -> GridGeometry:
    """Where the cells of a backbone's output are, without building it. Arguments as in ``build_backbone``."""
    require_backbone_name(name)
    if name.startswith(TIMM_PREFIX):
        from ficklenet.timm_backbones import probe

        return probe(name.removeprefix(TIMM_PREFIX), output_stride).geometry
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return build_backbone(name, output_stride).geometry


def require_backbone_name(name: str, key: str = "backbone") -> None:
    """Raises ValueError for an unknown name; the message begins with the key and suggests similar names."""
    if name in BACKBONE_NAMES:
        return
    known = list(BACKBONE_NAMES)
    if name.startswith(TIMM_PREFIX):
        from ficklenet.timm_backbones import is_network, network_names

        if is_network(name.removeprefix(TIMM_PREFIX)):
            return
        known = [f"{TIMM_PREFIX}{network}" for network in network_names()]
    begun = sorted((other for other in known if other.startswith(name)), key=len)
    near = begun[:3] or get_close_matches(name, known, n=3, cutoff=0.6)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise ValueError(
        f'{key}: "{name}" given; give one of {", ".join(BACKBONE_NAMES)}, or {TIMM_PREFIX}NAME with the name of a '
        f"network of timm.{hint}"
    )


def load_backbone_weights(backbone: Backbone, state_dict: Mapping[str, Tensor]) -> None:
    """Copies published weights of any precision into the backbone.

    Args:
        backbone: the backbone, which is changed in place.
        state_dict: weights with the published names, of the whole network or only of the backbone.

    Raises:
        ValueError: a weight is missing, unknown or of another shape; the backbone is unchanged.
    """
    published = backbone.published_weights(state_dict)
    given = {name: value for name, value in published.items() if not _is_count(name)}
    wanted = {name: value for name, value in backbone.state_dict().items() if not _is_count(name)}
    for problem, names in (
        ("missing", wanted.keys() - given.keys()),
        ("unknown", given.keys() - wanted.keys()),
    ):
        if names:
            raise ValueError(
                f"backbone weights: {len(names)} {problem} (first: {min(names)}). "
                f"Give a state dict of this backbone with its published names, such as {next(iter(wanted))}."
            )
    for name, value in given.items():
        if value.shape != wanted[name].shape:
            raise ValueError(
                f"backbone weights: {name} has shape {tuple(value.shape)}, here it must be "
                f"{tuple(wanted[name].shape)}. Give the weights of this backbone."
            )
    backbone.load_state_dict(given, strict=False)  # all except the counts of batches
    if hasattr(backbone, "keep_statistics"):
        backbone.keep_statistics()


def without_classifier(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of torchvision's whole network without its last layers."""
    return {name: value for name, value in state_dict.items() if not name.startswith(("classifier.", "fc."))}


def imagenet_weights(name: str) -> Mapping[str, Tensor]:
    """Pretrained weights of a backbone from torchvision's or timm's registry.

    They are downloaded once (VGG-16 528 MB, ResNet-101 171 MB) and then read from the registry's cache.

    Raises:
        ValueError: there are none for this backbone.
        OSError: they are not in the cache and cannot be downloaded.
    """
    require_imagenet_weights(name)
    if name.startswith(TIMM_PREFIX):
        from ficklenet.timm_backbones import registry_weights

        return registry_weights(name.removeprefix(TIMM_PREFIX))
    from torchvision.models import get_weight

    return get_weight(IMAGENET_WEIGHTS[name]).get_state_dict(progress=False, check_hash=True)


def require_imagenet_weights(name: str, key: str = "backbone weights") -> None:
    """Raises ValueError for a backbone without pretrained weights; the message begins with the key. No download."""
    if not has_imagenet_weights(name):
        raise ValueError(
            f'{key}: the backbone "{name}" has no ImageNet weights; give "none" or the path of a state dict.'
        )


def has_imagenet_weights(name: str) -> bool:
    """Whether torchvision or timm has pretrained weights of a backbone. No download."""
    if not name.startswith(TIMM_PREFIX):
        return name in IMAGENET_WEIGHTS
    from ficklenet.timm_backbones import has_registry_weights

    return has_registry_weights(name.removeprefix(TIMM_PREFIX))


def _is_count(name: str) -> bool:
    """Whether a weight is batch norm's count of batches, which is not used here."""
    return name.endswith(".num_batches_tracked")


def _convolutions(*channels: int, dilation: int = 1) -> list[nn.Module]:
    """3 x 3 convolutions that keep the size, each followed by ReLU."""
    layers: list[nn.Module] = []
    for num_in, num_out in itertools.pairwise(channels):
        layers += [nn.Conv2d(num_in, num_out, 3, padding=dilation, dilation=dilation), nn.ReLU(inplace=True)]
    return layers


def _pool(stride: int) -> nn.MaxPool2d:
    return nn.MaxPool2d(3, stride=stride, padding=1)
