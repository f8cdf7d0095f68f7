"""Training the segmentation network on a tiny run: what it leaves, what it may read, resume, refusals."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch

from cluster.connect import Connection, connect
from cluster.training_context import LocalContext
from ficklenet.drawing import DRAWN_CLASS_NAMES
from ficklenet.metrics import label_metrics
from ficklenet.segmenter import unpack_segmenter
from jobs.cli.launch import launch_step
from jobs.evaluation.measuring import evaluate_labels
from jobs.run.directory import Run, open_run
from jobs.run.training_record import kept_bytes, read_epochs, read_training
from jobs.steps.networks import load_classifier
from jobs.training import backbone_weights, segmentation_data, segmentation_worker
from jobs.training.foreground import foreground_shares
from jobs.training.segmentation_data import SegmentationImages, training_images
from storage.location import Location
from storage.seed_store import SeedStore
from storage.units import plan_units


def train(run: Run, *assignments: str, restart: bool = False) -> dict:
    with connect("in-process") as connection:
        launch_step(open_run(run.uri, None, assignments), connection, "segmenter", restart=restart)
    return read_training(run.data("segmenter")).metrics


def losses(run: Run) -> list[float]:
    """Of each epoch."""
    return [line["loss"] for line in read_epochs(run.data("segmenter"))]


def copy_run(run: Run, target: Location) -> None:
    for file in Path(run.uri).rglob("*"):
        if file.is_file():
            (target / file.relative_to(run.uri).as_posix()).write_bytes(file.read_bytes())


def weights(run: Run) -> dict[str, torch.Tensor]:
    return unpack_segmenter(kept_bytes(run, "segmenter")[0]).state_dict()


def test_finished_training_leaves_a_network_that_knows_its_classes(seeded_run, capsys):
    metrics = train(seeded_run)
    model = unpack_segmenter(kept_bytes(seeded_run, "segmenter")[0])
    assert model.spec.class_names == DRAWN_CLASS_NAMES and model.spec.grid == (9, 9)
    assert np.isfinite(metrics["loss"]) and metrics["epoch"] == 2
    record = json.loads((seeded_run.location / "segmenter" / "complete.json").read_bytes())
    assert record["fingerprint"]["segmenter"]["supervision"] == "seeds"
    train(seeded_run)
    assert "already trained" in capsys.readouterr().out


def test_weak_training_reads_no_mask(seeded_run, monkeypatch):
    def no_mask(*_):
        raise AssertionError("a mask was read")

    monkeypatch.setattr(segmentation_data, "read_mask", no_mask)
    train(seeded_run)
    assert all(image.mask_uri is None for image in training_images(seeded_run.manifest(), seeded_run.config))


def test_masks_of_strong_splits_alone_are_read(seeded_run, drawn_images, tmp_path):
    run = open_run(seeded_run.uri, None, ["segmenter.strong_splits=train"])
    images = training_images(run.manifest(), run.config)
    assert len(images) == 12 and all(image.mask_uri for image in images)
    dataset = SegmentationImages(run, images, run.manifest())
    example = dataset.example(images[0])
    assert (example.truth <= len(DRAWN_CLASS_NAMES)).all() and (example.truth > 0).any()
    weak = seeded_run
    images = training_images(weak.manifest(), weak.config)
    assert (SegmentationImages(weak, images, weak.manifest()).example(images[0]).truth == 255).all()


def test_strong_splits_change_what_is_learnt(seeded_run):
    train(seeded_run)
    weak = weights(seeded_run)
    train(seeded_run, "segmenter.strong_splits=train", restart=True)
    assert any(not torch.equal(value, weak[name]) for name, value in weights(seeded_run).items())


def test_full_supervision_needs_no_seeds(seeded_run):
    (seeded_run.location / "seeds").delete_tree()
    assert np.isfinite(train(seeded_run, "segmenter.supervision=masks")["loss"])


def test_images_and_seeds_are_mirrored_together_and_by_address(seeded_run):
    run = seeded_run
    images = training_images(run.manifest(), run.config)
    dataset = SegmentationImages(run, images, run.manifest())
    plain = dataset.example(images[0])
    is_mirrored = []
    for epoch in range(8):
        found = dataset[epoch, 0]
        np.testing.assert_array_equal(found.pixels, dataset[epoch, 0].pixels)
        is_mirrored.append(not np.array_equal(found.pixels, plain.pixels))
        step = -1 if is_mirrored[-1] else 1
        np.testing.assert_array_equal(found.pixels, plain.pixels[..., ::step])
        np.testing.assert_array_equal(found.seeds, plain.seeds[..., ::step])
    assert 0 < sum(is_mirrored) < 8


BUCKET = "test-bucket"  # of the S3 server of tests/conftest.py


class Killed(BaseException):
    pass


def test_interrupted_training_continues_to_the_same_weights(seeded_run, monkeypatch):
    train(seeded_run)
    expected = weights(seeded_run)
    steps = []
    whole_step = segmentation_worker.segmentation_step

    def interrupted(*arguments, **options):
        steps.append(1)
        if len(steps) == 5:  # in the second epoch, of 3 steps each
            raise Killed
        return whole_step(*arguments, **options)

    monkeypatch.setattr(segmentation_worker, "segmentation_step", interrupted)
    with pytest.raises(Killed):
        train(seeded_run, restart=True)
    train(seeded_run)
    assert len(steps) == 5 + 3
    for name, value in weights(seeded_run).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


class AnswersOne(torch.nn.Module):
    """Labels the left half of every image with class 0, the rest background."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(images), 6, 8, 8)
        logits[:, 1, :, :4] = 1
        return logits


def test_the_share_of_foreground_is_that_of_the_cells(seeded_run):
    images, store = training_images(seeded_run.manifest(), seeded_run.config), seeded_run.seeds()
    dataset = SegmentationImages(seeded_run, images, seeded_run.manifest())
    seeds = np.stack([store.read(image.row) for image in images])
    context = LocalContext(seeded_run.uri, "unused", False, print)
    found = foreground_shares(context, AnswersOne(), dataset, torch.float32)
    assert found["taught_foreground"] == pytest.approx(np.isin(seeds, range(1, 6)).mean())
    assert found["predicted_foreground"] == pytest.approx(12 * 32 / seeds.size)


def test_a_network_that_answers_background_ends_with_a_warning_each_time_it_is_named(seeded_run, monkeypatch, capsys):
    shares = {"predicted_foreground": 0.002, "taught_foreground": 0.2}
    monkeypatch.setattr(segmentation_worker, "foreground_shares", lambda *_: shares)
    assert train(seeded_run)["predicted_foreground"] == 0.002
    for line in ("trained in", "already trained"):
        printed = capsys.readouterr().out
        assert line in printed and "segmenter: WARNING: the network predicts a class in 0.2% of the cells" in printed
        train(seeded_run)


def test_micro_batches_of_a_batch_add_up_but_for_dropout(seeded_run):
    assert np.isfinite(train(seeded_run, "segmenter.micro_batch_size=1")["loss"])


def test_one_unreadable_image_is_skipped_and_reported(seeded_run, drawn_images, capsys):
    images = training_images(seeded_run.manifest(), seeded_run.config)
    original = segmentation_data.read_image
    broken = images[3].uri

    def read(uri, **limits):
        if uri == broken:
            raise segmentation_data.BadImage("cut off")
        return original(uri, **limits)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmentation_data, "read_image", read)
        metrics = train(seeded_run)
    assert metrics["skipped"] == 1
    assert f"segmenter: skipped 1: cut off ({images[3].image_id})\n" in capsys.readouterr().out
    lines = read_epochs(seeded_run.data("segmenter"))
    assert [line["skipped_images"] for line in lines] == [{images[3].image_id: "cut off"}] * 2  # new, and all


def test_the_runs_classifier_can_be_the_start(seeded_run):
    wanted = load_classifier(seeded_run).backbone.state_dict()
    run = open_run(seeded_run.uri, None, ["segmenter.weights=classifier"])
    model = segmentation_worker.new_segmenter(run, DRAWN_CLASS_NAMES)
    assert all(torch.equal(value, wanted[name]) for name, value in model.backbone.state_dict().items())
    assert np.isfinite(train(seeded_run, "segmenter.weights=classifier")["loss"])


def test_frozen_stages_keep_the_weights_they_began_with(seeded_run):
    start = load_classifier(seeded_run).backbone
    train(seeded_run, "segmenter.weights=classifier", "segmenter.frozen_stages=2")
    model, num_frozen = (
        unpack_segmenter(kept_bytes(seeded_run, "segmenter")[0]),
        len(start.stages(0, 2)),
    )
    for number, (before, after) in enumerate(zip(start.features, model.backbone.features, strict=True)):
        if isinstance(before, torch.nn.Conv2d):
            assert torch.equal(before.weight, after.weight) == (number < num_frozen)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("segmenter.strong_splits=gold", r"segmenter\.strong_splits: given gold"),
        ("data.train_splits=gold", "no labelled image in the training splits"),
        ("images.input_size=129", "the seeds are 9 x 9 cells .* images.input_size = 129 has 17 x 17"),
        ("segmenter={weights='classifier', frozen_stages=5}", "frozen stages: 5 given; this backbone has 0 to 4"),
        ("segmenter.weights=/nowhere.pt", r"segmenter\.weights: no file /nowhere.pt"),
        ("segmenter.weights=imagenet", 'the backbone "small" has no ImageNet weights'),
        ("cluster.training_workers=5", r"allowed: 1 to 4.*segmenter\.batch_size"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_recorded(seeded_run, assignment, message):
    with pytest.raises(ValueError, match=message):
        train(seeded_run, assignment)
    assert not (seeded_run.location / "segmenter" / "step.json").exists()


def test_unfinished_or_empty_seeds_are_refused(seeded_run):
    (seeded_run.location / "seeds" / "done" / "000001.json").delete()
    with pytest.raises(ValueError, match=r"seeds are complete for 10 of 14 images.*aggregate_seeds"):
        train(seeded_run)


def test_seeds_that_are_all_unknown_are_refused_and_some_are_trained(seeded_run):
    store, step, units = seeded_run.seeds("r+"), seeded_run.step("seeds"), plan_units(14, 4)

    def write(unit, labels) -> None:
        step.write_receipt(replace(step.receipt(unit), objects=store.write_unit(unit, labels)))

    for unit in units:
        write(unit, np.full((unit.num_images, 9, 9), 255))
    with pytest.raises(ValueError, match="no training image has a seed of a class"):
        train(seeded_run)
    labels = np.full((4, 9, 9), 255)
    labels[0, 0, 0] = 1
    write(units[0], labels)
    assert np.isfinite(train(seeded_run)["loss"])


def test_other_seeds_are_another_training(seeded_run):
    train(seeded_run)
    with connect("in-process") as connection:
        launch_step(open_run(seeded_run.uri, None, ["seeds.theta=0.5"]), connection, "seeds", restart=True)
    with pytest.raises(ValueError, match=r"\(its seeds changed since.*--restart segmenter"):
        train(seeded_run)


def test_seeds_are_read_from_the_store_once_while_there_is_room(seeded_run, monkeypatch):
    reads, read = Counter[int](), SeedStore.read

    def counted(store, index):
        reads[index] += 1
        return read(store, index)

    monkeypatch.setattr(SeedStore, "read", counted)
    monkeypatch.setattr(segmentation_data, "KEPT_BYTES", 2 * 81)  # of two images
    manifest = seeded_run.manifest()
    images = SegmentationImages(seeded_run, training_images(manifest, seeded_run.config), manifest)
    first, second = ([images.example(images.images[n]).seeds for n in range(3)] for _ in range(2))
    assert [reads[images.images[n].row] for n in range(3)] == [1, 1, 2]
    assert all((one == other).all() for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("count", [1, 2])
def test_crfs_of_a_batch_run_in_as_many_processes_as_the_worker_has_cpus(count):
    with segmentation_worker.image_map(torch.device("cpu"), count) as map_images:
        assert list(map_images(abs, [-1, 2])) == [1, 2]
        assert (map_images is map) == (count == 1)


@pytest.mark.cluster
def test_a_run_on_s3_comes_to_the_same_network_and_figures_as_a_local_one(seeded_run, s3_environment):
    def figures(run: Run, connection: Connection) -> dict[str, float]:
        launch_step(run, connection, "predictions")
        measured = evaluate_labels(run, connection, ["val"], None, ("image",), deterministic=False)
        return {figure.labels: label_metrics(figure.matrix).mean_iou for figure in measured}

    remote = Location.parse(f"s3://{BUCKET}/segmentation/run")
    copy_run(seeded_run, remote)
    train(seeded_run)
    run = open_run(remote.uri, None, ["cluster.address=local"])
    with connect("in-process") as connection:
        expected = figures(seeded_run, connection)
    with connect("local", num_cpus=2) as connection:
        launch_step(run, connection, "segmenter")
        found = figures(run, connection)
    for name, value in weights(run).items():
        torch.testing.assert_close(value, weights(seeded_run)[name], rtol=1e-4, atol=1e-5)
    assert "predictions" in found and found == pytest.approx(expected, abs=1e-3)


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_worker_killed_in_mid_training_changes_nothing(seeded_run, local_ray, kill_at_checkpoint):
    settings = ["segmenter.batch_size=1", "segmenter.checkpoint_minutes=0", "segmenter.epochs=8"]
    train(seeded_run, *settings)
    expected, wanted = weights(seeded_run), losses(seeded_run)
    killed = kill_at_checkpoint(Path(seeded_run.uri, "segmenter"))
    launch_step(open_run(seeded_run.uri, None, [*settings, "cluster.address="]), local_ray, "segmenter", restart=True)
    assert len(killed) == 1
    assert losses(seeded_run) == pytest.approx(wanted, rel=1e-3)
    for name, value in weights(seeded_run).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.cluster
def test_two_workers_that_decode_and_refine_in_processes_of_their_own_finish(seeded_run, local_ray):
    settings = ["cluster.address=", "cluster.training_workers=2", "segmenter.loader_workers=1"]
    settings += ["cluster.cpus_per_training_worker=2", "segmenter.micro_batch_size=1"]
    launch_step(open_run(seeded_run.uri, None, settings), local_ray, "segmenter")
    metrics = read_training(seeded_run.data("segmenter")).metrics
    assert metrics["epoch"] == 2 and np.isfinite(metrics["loss"])


def test_a_download_that_fails_names_the_setting_and_the_way_out(monkeypatch):
    def fail(*_: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(backbone_weights, "imagenet_weights", fail)
    expected = r"classifier\.weights: .* of vgg16 cannot be downloaded .*not known.*path of a state dict"
    with pytest.raises(ValueError, match=expected):
        backbone_weights.load_weights(torch.nn.Identity(), "vgg16", "imagenet", "classifier.weights")
