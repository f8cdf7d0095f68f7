"""The segmentation network, its specification and its file."""

import dataclasses
import pickle

import pytest
import torch

from ficklenet.classifier import ClassifierSpec, FickleNet, pack_classifier
from ficklenet.model_file import model_record
from ficklenet.segmenter import (
    ASPP,
    LARGEFOV,
    SegmentationHead,
    Segmenter,
    SegmenterSpec,
    default_dilations,
    load_fc_weights,
    pack_segmenter,
    unpack_segmenter,
)

SPEC = SegmenterSpec("small", ("cat", "dog"), input_size=65)


def segmenter(**changes) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(dataclasses.replace(SPEC, **changes)).eval()


def test_logits_lie_on_the_grid_of_the_seeds():
    assert SPEC.grid == (9, 9)
    assert segmenter()(torch.randn(2, 3, 65, 65)).shape == (2, 3, 9, 9)


def test_largefov_on_vgg16_has_the_layers_of_the_paper():
    with torch.device("meta"):
        model = Segmenter(SegmenterSpec("vgg16", tuple(map(str, range(20)))))
        convolutions = [layer for layer in model.head.modules() if isinstance(layer, torch.nn.Conv2d)]
        assert model(torch.empty(1, 3, 321, 321)).shape == (1, 21, 41, 41)
    assert [tuple(layer.weight.shape) for layer in convolutions] == [
        (1024, 512, 3, 3),
        (1024, 1024, 1, 1),
        (21, 1024, 1, 1),
    ]
    assert convolutions[0].dilation == (12, 12)


def test_fc6_and_fc7_begin_at_every_fourth_unit_of_vggs_own():
    names = {"0": (4096, 512 * 49), "3": (4096, 4096)}
    given = {f"classifier.{name}.weight": torch.rand(1).expand(shape).clone() for name, shape in names.items()}
    given |= {f"classifier.{name}.bias": torch.arange(4096.0) for name in names}
    given["classifier.0.weight"].view(4096, 512, 7, 7)[8, 5, 3, 6] = 7.0
    given["classifier.3.weight"][8, 12] = 9.0
    head = Segmenter(SegmenterSpec("vgg16", ("cat",), ASPP)).head
    fc8 = head.branches[3][8].weight.clone()
    load_fc_weights(head, given)
    for branch in head.branches:
        assert branch[2].weight[2, 5, 1, 2] == 7 and (branch[2].weight == 7).sum() == 1
        assert branch[5].weight[2, 3] == 9 and branch[2].bias[2] == branch[5].bias[2] == 8
    assert torch.equal(head.branches[3][8].weight, fc8)
    assert sum(weight.numel() for weight in head.new_layers().parameters()) == 4 * (1024 * 2 + 2)


def test_without_fc_weights_the_whole_head_is_new():
    head = segmenter().head
    load_fc_weights(head, {"features.0.weight": torch.zeros(1)})
    assert len(list(head.new_layers().parameters())) == len(list(head.parameters()))


def test_fc6_sees_12_cells_away_and_no_nearer_than_its_pooling():
    head = segmenter(input_size=257).head
    features = torch.rand(1, 64, 33, 33, requires_grad=True)
    head(features)[0, :, 16, 16].abs().sum().backward()
    seen = features.grad[0].abs().sum(0).nonzero()
    offsets = set((seen - 16).flatten().tolist())
    assert offsets <= {center + d for center in (-12, 0, 12) for d in (-2, -1, 0, 1, 2)} and {-12, 12} & offsets


def test_aspp_sums_four_heads():
    model = segmenter(dilations=ASPP)
    features = torch.randn(1, 64, 9, 9)
    expected = sum(branch(features) for branch in model.head.branches)
    assert [branch[2].dilation[0] for branch in model.head.branches] == [6, 12, 18, 24]
    torch.testing.assert_close(model.head(features), expected)


def test_resnet_features_are_classified_by_one_layer():
    with torch.device("meta"):
        model = Segmenter(SegmenterSpec("resnet101", ("cat", "dog"), ASPP))
    assert [tuple(branch.weight.shape) for branch in model.head.branches] == [(3, 2048, 3, 3)] * 4


@pytest.mark.parametrize("grid", [(9, 7), (4, 5)])  # the second is smaller than the largest dilation
def test_branches_of_one_layer_give_what_torchs_convolutions_give_and_the_same_gradients(grid):
    torch.manual_seed(0)
    head = SegmentationHead(torch.nn.Conv2d(6, 3, 3, padding=dilation, dilation=dilation) for dilation in (1, 2, 5))
    features = torch.randn(2, 6, *grid, requires_grad=True)
    found, wanted = head(features), sum(branch(features) for branch in head.branches)
    torch.testing.assert_close(found, wanted)
    weights = [features, *head.parameters()]
    gradients = zip(*(torch.autograd.grad(each.square().sum(), weights) for each in (found, wanted)), strict=True)
    for of_found, of_wanted in gradients:
        torch.testing.assert_close(of_found, of_wanted, rtol=1e-4, atol=1e-4)


def test_default_dilations_are_the_published_ones():
    assert default_dilations("vgg16") == default_dilations("small") == LARGEFOV
    assert default_dilations("resnet101") == ASPP
    assert default_dilations("resnet101", head="deeplabv3plus") == (12, 24, 36)


def test_last_layer_begins_small_and_unbiased():
    last = Segmenter(dataclasses.replace(SPEC, class_names=tuple(map(str, range(80))))).head.branches[0][-1]
    assert last.weight.std().item() == pytest.approx(0.01, rel=0.1) and not last.bias.any()


@pytest.mark.parametrize("dilations", [LARGEFOV, ASPP])
def test_segmenter_survives_packing(dilations):
    model = segmenter(dilations=dilations)
    data = pack_segmenter(model, {"metrics": {"val_miou": 0.5}})
    copy = unpack_segmenter(data)
    images = torch.randn(2, 3, 65, 65)
    assert copy.spec == model.spec and not copy.training
    assert torch.equal(copy(images), model(images))
    assert model_record(data)["about"] == {"metrics": {"val_miou": 0.5}}


def test_files_from_elsewhere_are_refused_in_one_sentence(tmp_path):
    class Malicious:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    classifier = pack_classifier(FickleNet(ClassifierSpec("small", ("cat", "dog"), input_size=65)))
    whole = pack_segmenter(segmenter())
    for data in (b"", b"no archive", whole[: len(whole) // 2], classifier, pickle.dumps(Malicious(), protocol=2)):
        with pytest.raises(ValueError, match=r"segmenter file.*Give the model.pt that train_segmentation") as caught:
            unpack_segmenter(data)
        assert "\n" not in str(caught.value)
    assert not tmp_path.joinpath("ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "alexnet"}, "give one of vgg16"),
        ({"dilations": ()}, "one or more from 1"),
        ({"dilations": (6, 0)}, "one or more from 1"),
        ({"class_names": ()}, "give at least one"),
        ({"class_names": ("cat", "cat")}, "without repetitions"),
        ({"class_names": "cat"}, r"the text 'cat' given; give a tuple: \('cat',\)"),
        ({"input_size": 320}, "Give 8 g \\+ 1"),
    ],
)
def test_impossible_specification_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SPEC, **change)
