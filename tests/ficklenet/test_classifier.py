"""The classifier, its specification and its file."""

import dataclasses
import io
import pickle

import pytest
import torch

from ficklenet.classifier import (
    ClassifierSpec,
    FickleNet,
    pack_classifier,
    predicted_classes,
    unpack_classifier,
)
from ficklenet.masks import expected_mask
from ficklenet.model_file import model_record

SPEC = ClassifierSpec("small", ("cat", "dog"), kernel_size=3, drop_rate=0.5, input_size=33)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return FickleNet(SPEC).eval()


def test_classifier_survives_packing(model):
    copy = unpack_classifier(pack_classifier(model))
    images = torch.randn(2, 3, 33, 33)
    assert copy.spec == SPEC and not copy.training
    assert torch.equal(copy.expected_logits(images), model.expected_logits(images))


def test_file_says_where_it_comes_from(model):
    record = model_record(pack_classifier(model, {"metrics": {"loss": 0.5}}))
    assert record["about"] == {"metrics": {"loss": 0.5}}
    assert record["spec"]["class_names"] == ["cat", "dog"]
    assert model_record(corrupt(model, lambda c: {n: c[n] for n in ("format", "spec", "state")}))["about"] == {}


def test_packing_the_same_classifier_gives_the_same_bytes(model):
    assert pack_classifier(model) == pack_classifier(unpack_classifier(pack_classifier(model)))


def test_expected_logits_are_the_pass_under_the_expected_mask(model):
    images = torch.randn(2, 3, 33, 33)
    mask = expected_mask(3, SPEC.grid, 0.5).expand(2, -1, -1)
    assert torch.allclose(model(images, mask), model.expected_logits(images), atol=1e-6)


def test_unpacking_runs_no_code_and_says_what_is_wrong(model, tmp_path):
    class Malicious:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    with pytest.raises(ValueError, match=r"classifier file.*not a classifier.*Give the model.pt"):
        unpack_classifier(pickle.dumps(Malicious(), protocol=2))
    buffer = io.BytesIO()
    torch.save({"format": Malicious()}, buffer)
    with pytest.raises(ValueError, match="classifier file"):
        unpack_classifier(buffer.getvalue())
    assert not tmp_path.joinpath("ran").exists()


def corrupt(model, change):
    content = torch.load(io.BytesIO(pack_classifier(model)), weights_only=True)
    buffer = io.BytesIO()
    torch.save(change(content), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["state"],
        lambda content: [1, 2],
        lambda content: content | {"format": "other-7"},
        lambda content: content | {"state": {}},
        lambda content: content | {"spec": content["spec"] | {"kernel_size": 5}},
        lambda content: content | {"spec": content["spec"] | {"colour": "red"}},
        lambda content: content | {"spec": content["spec"] | {"kernel_size": "3"}},
    ],
)
def test_files_from_elsewhere_are_refused_in_one_sentence(model, change):
    with pytest.raises(ValueError, match="classifier file") as caught:
        unpack_classifier(corrupt(model, change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"no archive", b"PK\x03\x04 cut off"])
def test_bytes_that_are_no_archive_are_refused(data):
    with pytest.raises(ValueError, match="classifier file"):
        unpack_classifier(data)


@pytest.mark.parametrize("keep", [0.2, 0.9])
def test_truncated_file_is_refused(model, keep):
    data = pack_classifier(model)
    with pytest.raises(ValueError, match="classifier file"):
        unpack_classifier(data[: int(len(data) * keep)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "alexnet"}, "give one of vgg16, resnet101, small"),
        ({"class_names": ()}, "give at least one"),
        ({"class_names": ("cat", "cat")}, "without repetitions"),
        ({"class_names": "cat"}, r"the text 'cat' given; give a tuple: \('cat',\)"),
        ({"input_size": 320}, "Give 8 g \\+ 1"),
        ({"kernel_size": 4}, "odd number"),
        ({"drop_rate": 1.5}, "from 0 to 1"),
    ],
)
def test_impossible_specification_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SPEC, **change)


def test_predicted_classes_are_the_best_above_the_threshold_ascending():
    logits = torch.tensor([[2.0, -3.0, 5.0, 1.0], [-3.0, -4.0, -1.0, -2.0]])
    chosen = predicted_classes(logits, threshold=0.5, max_classes=2, num_slots=3)
    assert chosen.tolist() == [[0, 2, -1], [-1, -1, -1]]
