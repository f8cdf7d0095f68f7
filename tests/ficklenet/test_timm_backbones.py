"""Networks of timm as backbones: geometry, the identity through the product's classifier, weights, training."""

import importlib.util

import pytest
import torch
from torch import nn

from ficklenet.backbones import (
    backbone_geometry,
    build_backbone,
    imagenet_weights,
    load_backbone_weights,
    require_backbone_name,
    require_imagenet_weights,
)
from ficklenet.classifier import ClassifierSpec, FickleNet, pack_classifier, unpack_classifier
from ficklenet.classifier_training import make_optimizer, training_loss
from ficklenet.dense_sampler import expected_evidence, sample_evidence
from ficklenet.expansion import literal_logits, literal_maps
from ficklenet.geometry import GridGeometry
from ficklenet.masks import INFERENCE_STREAM, TRAINING_STREAM, dropout_masks, mask_key
from ficklenet.segmentation_inference import input_sizes, predict_grid
from ficklenet.segmenter import Segmenter, SegmenterSpec
from ficklenet.timm_backbones import probe
from ficklenet.transforms import normalize

pytestmark = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")

RESNET, LITE, VIT = "timm/resnet10t", "timm/efficientnet_lite0", "timm/vit_tiny_patch16_224"
TF_LITE = "timm/tf_efficientnet_lite0"

# Backbone, output stride, height and width of the image, grid
IDENTITY_CASES = [
    ("vgg16", 8, (33, 49), (5, 7)),
    (RESNET, 8, (49, 33), (7, 5)),
    (LITE, 16, (49, 97), (4, 7)),
    (LITE, 32, (97, 65), (4, 3)),
    (VIT, 8, (48, 80), (3, 5)),
    ("timm/vit_small_patch14_reg4_dinov2", 8, (70, 42), (5, 3)),  # an odd stride; a class token and four registers
]


def gradients(logits, features):
    """Sum over channels of the features times the gradient of each logit: Grad-CAM before ReLU, (B, C, H, W)."""
    maps = []
    for logits_B in logits.unbind(1):
        (gradient,) = torch.autograd.grad(logits_B.sum(), features, retain_graph=True)
        maps.append((features * gradient).sum(1))
    return torch.stack(maps, 1)


@pytest.mark.parametrize(
    ("name", "size", "channels", "sides"),
    [(LITE, 65, [40, 112, 320], [9, 5, 5]), (RESNET, 65, [128, 256, 512], [9, 5, 5]), (VIT, 64, [192] * 3, [4] * 3)],
)
def test_last_stages_are_timms_from_finer_to_coarser(name, size, channels, sides):
    backbone = build_backbone(name, 16).eval()
    with torch.no_grad():
        stages = backbone.last_stages(torch.randn(1, 3, size, size))
    assert [stage.shape for stage in stages] == [
        (1, channel, side, side) for channel, side in zip(channels, sides, strict=True)
    ]


@pytest.mark.parametrize(("name", "output_stride", "size", "grid"), IDENTITY_CASES)
def test_identity_holds_on_the_features_of_every_kind_of_backbone(name, output_stride, size, grid):
    torch.manual_seed(0)
    geometry = backbone_geometry(name, output_stride)
    spec = ClassifierSpec(
        name,
        ("a", "b"),
        kernel_size=geometry.default_kernel_size,
        drop_rate=0.5,
        input_size=geometry.nearest_input_size(60),
        output_stride=output_stride,
    )
    model = FickleNet(spec).double().eval()
    nn.init.normal_(model.head.weight)
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    masks = dropout_masks(
        [mask_key(0, "a"), mask_key(0, "b")],
        [0],
        kernel_size=spec.kernel_size,
        grid=grid,
        drop_rate=spec.drop_rate,
        stream=INFERENCE_STREAM,
    )
    with torch.no_grad():
        features = model.backbone(images)
    assert features.shape == (2, model.backbone.out_channels, *grid)
    head = model.head
    literal = literal_logits(features, head.weight, head.bias, masks[:, 0])
    assert (model(images, masks[:, 0]) - literal).abs().max() < 1e-10

    evidence = sample_evidence(head.affinity(features, torch.tensor([[0, 1]] * 2)), masks, grid)[0]
    assert (evidence - literal_maps(features, head.weight, head.bias, masks[:, 0])).abs().max() < 1e-10
    leaf = features.requires_grad_()
    assert (evidence - gradients(head(leaf, masks[:, 0]), leaf)).abs().max() < 1e-10  # autograd of the product's head
    expected = expected_evidence(head.affinity(features, torch.tensor([[0, 1]] * 2)), grid, 0.5)
    assert (expected - gradients(head.expected_logits(leaf, 0.5), leaf)).abs().max() < 1e-10


@pytest.mark.parametrize(
    ("name", "output_stride", "expected"),
    [
        (RESNET, 8, GridGeometry(8)),
        (LITE, 16, GridGeometry(16)),
        (VIT, 8, GridGeometry(16, "centres")),
        ("timm/convnext_atto", 8, GridGeometry(8, "centres")),
        ("timm/mobilenetv3_small_050", 8, GridGeometry(32)),  # timm does not dilate it
        ("timm/swin_tiny_patch4_window7_224", 8, GridGeometry(32, "centres")),
    ],
)
def test_geometry_is_the_networks_own(name, output_stride, expected):
    assert backbone_geometry(name, output_stride) == expected


@pytest.mark.parametrize("name", ["timm/efficientnet_lite0", "timm/mobilenetv3_small_050"])
def test_cells_lie_on_every_stride_th_pixel_corners_aligned(name):
    """With mirror-symmetric kernels, mirroring an image of stride * g + 1 pixels mirrors its features exactly."""
    torch.manual_seed(0)
    backbone = build_backbone(name).double().eval()
    for layer in backbone.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data += layer.weight.data.flip(3)
    size = backbone.geometry.nearest_input_size(100)
    image = torch.randn(1, 3, size, size, dtype=torch.float64)
    assert torch.allclose(backbone(image.flip(3)), backbone(image).flip(3), atol=1e-9)
    assert not torch.allclose(backbone(image.roll(1, 3)), backbone(image), atol=1e-6)


def test_a_patch_alone_reaches_its_own_cell_before_attention():
    network = build_backbone(VIT).network
    image = torch.zeros(1, 3, 48, 48)
    changed = image.clone()
    changed[:, :, 16:32, 32:48] = 1
    difference = (network.patch_embed(changed) - network.patch_embed(image)).abs().sum(-1)[0]
    assert difference.nonzero().tolist() == [[1, 2]]


def test_input_is_translated_to_the_networks_own_mean_and_deviation():
    torch.manual_seed(0)
    backbone = build_backbone(VIT).eval()
    assert backbone.network.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    images = torch.randint(0, 256, (1, 3, 32, 48), dtype=torch.uint8)
    own = backbone.network.forward_features((images / 255 - 0.5) / 0.5)[:, 1:]  # without the class token
    with torch.no_grad():
        features = backbone(normalize(images))
    torch.testing.assert_close(features.flatten(2).mT, own, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnet10", r'"timm/resnet10" given.*Did you mean timm/resnet10t'),
        ("timm/vit_tiny", r"Did you mean timm/vit_tiny_"),
        ("timm/resnet50.a9_in1k", r"Did you mean timm/resnet50\."),
    ],
)
def test_wrong_names_get_the_nearest(name, message):
    with pytest.raises(ValueError, match=message):
        require_backbone_name(name, "classifier.backbone")
    require_backbone_name("timm/resnet50.a1_in1k")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/mixer_s16_224", "has no features on a grid of cells for inputs of any size"),
        ("timm/inception_v3", "are neither on every 32th pixel nor at the centres of patches"),
    ],
)
def test_networks_whose_maps_could_not_be_placed_are_refused_in_one_sentence(name, message):
    with pytest.raises(ValueError, match=message) as caught:
        build_backbone(name)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_probing_draws_no_random_number_and_works_in_inference_mode():
    probe.cache_clear()
    torch.manual_seed(3)
    with torch.inference_mode():
        backbone_geometry(RESNET)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))


@pytest.mark.parametrize("name", [RESNET, LITE, VIT])
def test_every_trained_weight_reaches_the_loss_and_has_one_stage(name):
    torch.manual_seed(0)
    geometry = backbone_geometry(name, 32)
    size = geometry.nearest_input_size(65)
    model = FickleNet(ClassifierSpec(name, ("a", "b"), 1, 0.0, size, output_stride=32))
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    training_loss(model, images, torch.tensor([[1, 0], [0, 1]]), [1, 2], epoch=0).backward()
    trained = {id(weight): weight for weight in model.backbone.parameters() if weight.requires_grad}
    assert all(weight.grad is not None for weight in trained.values())
    stages = model.backbone.stage_weights()
    assert sorted(id(weight) for stage in stages for weight in stage) == sorted(trained)
    assert model.backbone.num_stages == len(stages) >= 5
    model.backbone.freeze_stages("all")
    assert not any(weight.requires_grad for weight in model.backbone.parameters())
    model.backbone.freeze_stages(0)
    assert {id(weight) for weight in model.backbone.parameters() if weight.requires_grad} == set(trained)


def test_layer_wise_decay_slows_the_first_stages_most():
    model = FickleNet(ClassifierSpec(RESNET, ("a",), 3, 0.5, 33))
    groups = make_optimizer(model, learning_rate=1.0, backbone_factor=0.1, layer_decay=0.5).param_groups
    assert [group["lr"] for group in groups] == pytest.approx([1.0, 0.1 / 16, 0.1 / 8, 0.1 / 4, 0.1 / 2, 0.1])
    for decay in (0.0, 1.5):
        with pytest.raises(ValueError, match="layer decay"):
            make_optimizer(model, learning_rate=1.0, layer_decay=decay)


def test_batch_norm_keeps_loaded_statistics_and_measures_others():
    torch.manual_seed(0)
    source, target = build_backbone(RESNET).train(), build_backbone(RESNET).train()
    images = torch.randn(4, 3, 33, 33)
    before = source.network.conv1[1].running_mean.clone()
    source(images)
    assert not torch.equal(source.network.conv1[1].running_mean, before)
    load_backbone_weights(target, source.network.state_dict())
    loaded = {name: value.clone() for name, value in target.named_buffers()}
    target.train()(images)
    assert all(torch.equal(value, loaded[name]) for name, value in target.named_buffers())
    assert torch.equal(target.network.conv1[1].running_mean, source.network.conv1[1].running_mean)


def test_weights_load_with_the_classifier_and_position_embeddings_of_another_size():
    import timm

    whole = timm.create_model("vit_tiny_patch16_224", img_size=112, num_classes=7)
    backbone = build_backbone(VIT)
    load_backbone_weights(backbone, whole.state_dict())
    torch.testing.assert_close(backbone.network.blocks[3].mlp.fc1.weight, whole.blocks[3].mlp.fc1.weight)
    assert backbone.network.pos_embed.shape == (1, 197, 192)
    again = build_backbone(VIT)
    load_backbone_weights(again, backbone.state_dict())  # under the names of this project's own files
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in backbone.state_dict().items())
    with pytest.raises(ValueError, match=r"unknown \(first: network.layer1"):
        load_backbone_weights(backbone, whole.state_dict() | {"layer1.weight": torch.zeros(1)})


def test_weights_by_the_names_of_efficientnet_pytorch_are_matched_in_order():
    torch.manual_seed(0)
    source, target = build_backbone(TF_LITE), build_backbone(TF_LITE)
    given = {f"_blocks.{number}": value for number, value in enumerate(source.network.state_dict().values())}
    given = {"_conv_stem.weight": given.pop("_blocks.0")} | given | {"_fc.weight": torch.zeros(3, 1280)}
    load_backbone_weights(target, given)
    assert all(torch.equal(value, target.state_dict()[name]) for name, value in source.state_dict().items())
    with pytest.raises(ValueError, match="has shape"):
        load_backbone_weights(target, dict(reversed(given.items())))
    with pytest.raises(ValueError, match=r"epsilon 0\.001, but timm/efficientnet_lite0 has 1e-05. Give timm/tf_effic"):
        load_backbone_weights(build_backbone(LITE), given)


def test_a_network_without_registry_weights_says_so(monkeypatch):
    require_imagenet_weights(RESNET)
    with pytest.raises(ValueError, match="has no ImageNet weights"):
        require_imagenet_weights("timm/vit_giant_patch14_224")

    import timm

    def offline(*_, **__):
        raise RuntimeError("no route to the hub")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(OSError, match="no route to the hub"):
        imagenet_weights(RESNET)


def test_a_classifier_on_patches_survives_packing_and_knows_its_geometry():
    torch.manual_seed(0)
    model = FickleNet(ClassifierSpec(VIT, ("a", "b"), 3, 0.9, 64)).eval()
    copy = unpack_classifier(pack_classifier(model))
    assert copy.spec == model.spec and copy.spec.grid == (4, 4) and copy.spec.geometry.frame == "centres"
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(copy.expected_logits(images), model.expected_logits(images))
    with pytest.raises(ValueError, match="a multiple of 16, such as 64"):
        ClassifierSpec(VIT, ("a", "b"), 3, 0.9, 65)


def test_a_segmenter_on_patches_predicts_at_several_sizes():
    torch.manual_seed(0)
    model = Segmenter(SegmenterSpec(VIT, ("a", "b"), dilations=(1,), input_size=64)).eval()
    assert [tuple(branch.weight.shape) for branch in model.head.branches] == [(3, 192, 3, 3)]
    sizes = input_sizes(64, (0.75, 1.0, 1.5), model.spec.geometry)
    assert sizes == (48, 64, 96)
    inputs = [torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8) for size in sizes]
    assert predict_grid(model, inputs, mirror=True).shape == (1, 3, 6, 6)


def test_a_few_steps_train_a_transformer_and_masks_have_its_grid():
    torch.manual_seed(0)
    model = FickleNet(ClassifierSpec(VIT, ("a", "b"), 3, 0.5, 32))
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    targets = torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0]])
    optimizer = make_optimizer(model, learning_rate=1e-3, backbone_factor=1.0)
    losses = []
    for epoch in range(12):
        optimizer.zero_grad()
        loss = training_loss(model, images, targets, [1, 2, 3, 4], epoch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    masks = dropout_masks(
        [1], [0], kernel_size=3, grid=model.spec.grid, drop_rate=0.5, stream=TRAINING_STREAM, device="cpu"
    )
    assert masks.shape[-1] == 4
