"""The backbones: geometry, torchvision's names, freezing, loading."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import resnet101
from torchvision.models.vgg import cfgs, make_layers

from ficklenet.backbones import (
    BACKBONE_NAMES,
    backbone_geometry,
    build_backbone,
    imagenet_weights,
    load_backbone_weights,
)

DATA = os.environ.get("FICKLENET_DATA")


SIZES = [("vgg16", 33), ("vgg16", 41), ("small", 33), ("small", 41), ("small", 50), ("resnet101", 33)]


@pytest.mark.parametrize(("name", "size"), SIZES)
def test_output_grid_is_as_stated(name, size):
    backbone = build_backbone(name)
    features = backbone(torch.zeros(1, 3, size, size + 8))
    grid = backbone.geometry.grid_size(size), backbone.geometry.grid_size(size + 8)
    assert features.shape == (1, backbone.out_channels, *grid)


@pytest.mark.parametrize("name", BACKBONE_NAMES)
def test_last_stages_end_with_the_features_and_share_their_grid(name):
    torch.manual_seed(0)
    backbone, image = build_backbone(name).eval(), torch.randn(2, 3, 33, 41)
    with torch.no_grad():
        stages, features = backbone.last_stages(image), backbone(image)
    assert len(stages) > 1 and torch.equal(stages[-1], features)
    assert {stage.shape[2:] for stage in stages} == {features.shape[2:]}


@pytest.mark.parametrize("name", BACKBONE_NAMES)
def test_cells_lie_where_the_geometry_says(name):
    """With mirror-symmetric kernels, mirroring an image that the cells fill mirrors its features exactly."""
    torch.manual_seed(0)
    backbone = build_backbone(name).double()
    for layer in backbone.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data += layer.weight.data.flip(3)
    stride, extra = backbone.geometry.stride, 0 if backbone.geometry.is_patches else 1
    image = torch.randn(1, 3, 4 * stride + extra, 5 * stride + extra, dtype=torch.float64)
    features = backbone(image)
    assert torch.allclose(backbone(image.flip(3)), features.flip(3), atol=1e-12)
    assert not torch.allclose(backbone(image.roll(1, 3)), features, atol=1e-6)


def test_conv5_alone_of_vgg16_is_dilated_by_two():
    layers = [layer for layer in build_backbone("vgg16").features if isinstance(layer, nn.Conv2d)]
    assert [layer.dilation for layer in layers] == [(1, 1)] * 10 + [(2, 2)] * 3
    assert [layer.padding for layer in layers] == [layer.dilation for layer in layers]
    pools = [layer for layer in build_backbone("vgg16").features if isinstance(layer, nn.MaxPool2d)]
    assert [(pool.kernel_size, pool.stride, pool.padding) for pool in pools] == [(3, 2, 1)] * 3 + [(3, 1, 1)]


def test_vgg16_has_torchvisions_names_and_shapes():
    theirs = {f"features.{name}": value for name, value in make_layers(cfgs["D"]).state_dict().items()}
    mine = build_backbone("vgg16").state_dict()
    assert {name: value.shape for name, value in mine.items()} == {n: v.shape for n, v in theirs.items()}


def test_vgg16_equals_torchvisions_before_the_first_pool():
    theirs, mine = make_layers(cfgs["D"]), build_backbone("vgg16")
    load_backbone_weights(mine, {f"features.{name}": value for name, value in theirs.state_dict().items()})
    image = torch.randn(1, 3, 17, 17)
    assert torch.allclose(mine.features[:4](image), theirs[:4](image))


def test_resnet101_takes_torchvisions_weights_and_equals_it_where_they_are_alike():
    """Up to the second stage theirs is this one; beyond it theirs has strides where this one has dilation."""
    torch.manual_seed(0)
    theirs, mine = resnet101(weights=None).eval(), build_backbone("resnet101")
    load_backbone_weights(mine, theirs.state_dict())  # fc and counts of batches included
    image = torch.randn(1, 3, 17, 17)

    def early(network):
        x = network.maxpool(network.relu(network.bn1(network.conv1(image))))
        return network.layer2(network.layer1(x))

    with torch.no_grad():
        assert torch.allclose(early(mine), early(theirs), rtol=1e-4, atol=1e-5)
    convolutions = [layer for layer in mine.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.dilation for layer in convolutions if layer.dilation != (1, 1)] == [(2, 2)] * 23 + [(4, 4)] * 2


def test_resnet101_trains_all_but_its_batch_norm_and_frozen_stages():
    torch.manual_seed(0)
    backbone = build_backbone("resnet101")
    backbone.freeze_stages(1)
    backbone.train()
    before = {name: value.clone() for name, value in backbone.named_buffers()}
    features = backbone(torch.randn(1, 3, 17, 17))
    assert features.isfinite().all() and 0.01 < features.std() < 100
    features.sum().backward()
    gradients = {name: weight.grad for name, weight in backbone.named_parameters()}
    assert gradients.pop("conv1.weight") is None
    assert all(value is not None and value.abs().sum() > 0 for value in gradients.values())
    assert not any("bn" in name for name in gradients)
    assert all(torch.equal(before[name], value) for name, value in backbone.named_buffers())
    with pytest.raises(ValueError, match="frozen stages: 6 given; this backbone has 0 to 5"):
        backbone.freeze_stages(6)


def test_backbone_without_imagenet_weights_says_so():
    with pytest.raises(ValueError, match='"small" has no ImageNet weights; give "none"'):
        imagenet_weights("small")


def test_weights_load_from_half_precision_and_without_the_classifier():
    source, target = build_backbone("small"), build_backbone("small")
    state = {name: value.half() for name, value in source.state_dict().items()}
    load_backbone_weights(target, state | {"classifier.0.weight": torch.zeros(3)})
    image = torch.randn(1, 3, 17, 17)
    assert torch.allclose(target(image), source(image), rtol=0.05, atol=0.05)
    assert target.features[0].weight.dtype == torch.float32


def test_wrong_weights_are_refused_and_change_nothing():
    backbone = build_backbone("small")
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    state = backbone.state_dict()
    missing = {name: value for name, value in state.items() if name != "features.0.weight"}
    with pytest.raises(ValueError, match=r"1 missing \(first: features.0.weight\)"):
        load_backbone_weights(backbone, missing)
    with pytest.raises(ValueError, match=r"1 unknown \(first: layer1.weight\)"):
        load_backbone_weights(backbone, state | {"layer1.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"features.0.weight has shape \(1, 3\)"):
        load_backbone_weights(backbone, missing | {"features.0.weight": torch.zeros(1, 3)})
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())


def test_freezing_stops_the_first_stages_only_and_can_be_undone():
    backbone = build_backbone("vgg16")
    backbone.freeze_stages(2)
    trained = [name for name, weight in backbone.named_parameters() if weight.requires_grad]
    assert trained[0] == "features.10.weight" and len(trained) == 2 * 9
    backbone.freeze_stages(backbone.num_stages)
    assert not any(weight.requires_grad for weight in backbone.parameters())
    backbone.freeze_stages(0)
    assert all(weight.requires_grad for weight in backbone.parameters())
    with pytest.raises(ValueError, match="frozen stages: 6 given; this backbone has 0 to 5"):
        backbone.freeze_stages(6)
    backbone.freeze_stages("all")
    assert not any(weight.requires_grad for weight in backbone.parameters())


@pytest.mark.parametrize("name", BACKBONE_NAMES)
def test_every_weight_belongs_to_one_stage(name):
    backbone = build_backbone(name)
    stages = backbone.stage_weights()
    assert len(stages) == backbone.num_stages
    found = [id(weight) for stage in stages for weight in stage]
    assert sorted(found) == sorted(id(weight) for weight in backbone.parameters())


def test_unknown_backbone_is_refused_with_the_known_and_the_nearest_names():
    with pytest.raises(ValueError, match=r'"resnet" given; give one of vgg16, .*, or timm.NAME .* mean resnet101'):
        build_backbone("resnet")
    with pytest.raises(ValueError, match=r"Did you mean vgg16\?"):
        backbone_geometry("vgg19")


def test_another_output_stride_of_vgg16_is_refused():
    with pytest.raises(ValueError, match="output_stride: 16 given; vgg16 takes 8"):
        build_backbone("vgg16", output_stride=16)


@pytest.mark.skipif(not DATA, reason="FICKLENET_DATA names no folder of real data")
def test_imagenet_weights_give_sane_features_at_paper_size():
    backbone = build_backbone("vgg16")
    path = Path(str(DATA)) / "weights" / "vgg16_features.pt"
    load_backbone_weights(backbone, torch.load(path, weights_only=True))
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 321, 321))
    assert features.shape == (1, 512, 41, 41)
    assert features.isfinite().all() and features.amin() == 0 and features.mean() > 0.01
