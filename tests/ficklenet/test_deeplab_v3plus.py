"""DeepLab v3+: early features of every kind of backbone, the grid of the logits, the head's own promises."""

import importlib.util

import pytest
import torch
from torch import nn

from ficklenet.backbones import build_backbone, low_level_of
from ficklenet.geometry import GridGeometry
from ficklenet.segmenter import Segmenter, SegmenterSpec, load_fc_weights, pack_segmenter, unpack_segmenter

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
SPEC = SegmenterSpec("small", ("cat", "dog"), dilations=(1, 2), input_size=65, head="deeplabv3plus")


def segmenter(spec: SegmenterSpec = SPEC) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(spec).eval()


@pytest.mark.parametrize(
    ("name", "output_stride", "size"),
    [
        ("small", 8, 33),
        ("vgg16", 8, 33),
        pytest.param("timm/resnet10t", 8, 33, marks=needs_timm),
        pytest.param("timm/efficientnet_lite0", 16, 49, marks=needs_timm),
        pytest.param("timm/convnext_atto", 16, 48, marks=needs_timm),
        pytest.param("timm/swin_tiny_patch4_window7_224", 8, 64, marks=needs_timm),
    ],
)
def test_one_pass_gives_early_features_on_a_finer_grid_and_the_same_last_ones(name, output_stride, size):
    torch.manual_seed(0)
    backbone, images = build_backbone(name, output_stride).eval(), torch.randn(1, 3, size, size)
    with torch.no_grad():
        low, last = backbone.with_low_level(images)
        assert torch.equal(last, backbone(images))
    early = backbone.low_level
    assert early == low_level_of(name, output_stride)
    assert early.geometry == GridGeometry(4, backbone.geometry.frame)
    assert low.shape == (1, early.channels, *(early.geometry.grid_size(size),) * 2)


def test_resnet101_has_early_features_at_stride_4():
    with torch.device("meta"):
        low, last = build_backbone("resnet101").with_low_level(torch.empty(1, 3, 65, 65))
    assert (tuple(low.shape), tuple(last.shape)) == ((1, 256, 17, 17), (1, 2048, 9, 9))


def test_logits_lie_on_the_early_grid_and_the_input_fills_the_last():
    assert SPEC.grid == (17, 17)
    assert (SPEC.geometry, SPEC.input_geometry) == (GridGeometry(4), GridGeometry(8))
    assert segmenter()(torch.randn(2, 3, 65, 65)).shape == (2, 3, 17, 17)
    with pytest.raises(ValueError, match="Give 8 g \\+ 1"):
        SegmenterSpec("small", ("cat",), input_size=61, head="deeplabv3plus")


def test_early_and_last_features_meet_at_the_same_pixels():
    """With mirror-symmetric kernels, mirroring an image mirrors its logits exactly."""
    model = segmenter().double()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data += layer.weight.data.flip(3)
    image = torch.randn(1, 3, 65, 65, dtype=torch.float64)
    torch.testing.assert_close(model(image.flip(3)), model(image).flip(3), atol=1e-9, rtol=1e-9)
    assert not torch.allclose(model(image.roll(1, 3)), model(image), atol=1e-6)


def test_an_image_is_seen_alike_whatever_its_batch_is():
    model = segmenter().train()
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    images = torch.randn(3, 3, 65, 65)
    torch.testing.assert_close(model(images[:1]), model(images)[:1], atol=1e-5, rtol=1e-4)


def test_every_weight_of_the_head_is_new_and_gets_a_gradient():
    model = segmenter().train()
    model(torch.randn(2, 3, 65, 65)).square().sum().backward()
    new = {id(weight) for weight in model.head.new_layers().parameters()}
    assert new == {id(weight) for weight in model.head.parameters()}
    assert all(weight.grad is not None for weight in model.parameters())
    before = {name: value.clone() for name, value in model.head.state_dict().items()}
    load_fc_weights(model.head, {"classifier.0.weight": torch.zeros(1)})
    assert all(torch.equal(value, before[name]) for name, value in model.head.state_dict().items())


def test_branches_have_the_dilations_of_the_specification():
    branches = segmenter().head.branches
    assert [branch[0].kernel_size for branch in branches] == [(1, 1), (3, 3), (3, 3)]
    assert [branch[0].dilation for branch in branches] == [(1, 1), (1, 1), (2, 2)]


def test_it_survives_packing():
    model = segmenter()
    copy = unpack_segmenter(pack_segmenter(model))
    images = torch.randn(1, 3, 65, 65)
    assert copy.spec == SPEC and torch.equal(copy(images), model(images))


@needs_timm
def test_a_transformer_without_early_features_is_refused_in_one_sentence():
    name = "timm/vit_tiny_patch16_224"
    assert low_level_of(name) is None
    with pytest.raises(ValueError, match=r'head: "deeplabv3plus" given, but .*vit_tiny.* Give "deeplab"') as caught:
        SegmenterSpec(name, ("cat",), input_size=64, head="deeplabv3plus")
    assert "\n" not in str(caught.value)
