"""Training the segmentation network's head on kept features of a frozen backbone: same weights, one pass per view."""

from collections import Counter

import numpy as np
import pytest
import torch

from cluster.connect import connect
from ficklenet.segmenter import unpack_segmenter
from jobs.cli.launch import launch_step
from jobs.run.directory import Run, open_run
from jobs.run.training_record import kept_bytes
from jobs.training import frozen_segmentation, segmentation_data, segmentation_worker
from storage.errors import BadImage
from storage.images import read_image

FROZEN = (
    "segmenter.weights=classifier",
    "segmenter.frozen_stages=all",
    "segmenter.epochs=4",
    "segmenter.batch_size=5",
)


def train(run: Run, *assignments: str, step: str = "segmenter", restart: bool = False) -> dict[str, torch.Tensor]:
    """The trained weights."""
    with connect("in-process") as connection:
        launch_step(open_run(run.uri, None, [*FROZEN, *assignments]), connection, step, restart=restart)
    return unpack_segmenter(kept_bytes(run, step)[0]).state_dict()


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """How many images run through the backbone in each call that computes features to keep."""
    found: list[int] = []
    whole = frozen_segmentation.frozen_features

    def counted(backbone, images, *arguments, **options):
        found.append(len(images))
        return whole(backbone, images, *arguments, **options)

    monkeypatch.setattr(frozen_segmentation, "frozen_features", counted)
    return found


def test_each_view_runs_through_the_backbone_once_and_the_head_learns_what_it_learns_without(
    seeded_run, passes, monkeypatch
):
    found = train(seeded_run)
    assert 12 < sum(passes) <= 24  # 12 images and their mirror images; 4 epochs of 10 images
    monkeypatch.setattr(segmentation_worker, "trains_only_the_head", lambda _: False)
    expected = train(seeded_run, restart=True)
    start = unpack_segmenter(kept_bytes(seeded_run, "segmenter")[0])
    torch.manual_seed(seeded_run.config.seed)
    untrained = segmentation_worker.new_segmenter(open_run(seeded_run.uri, None, FROZEN), start.spec.class_names)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-2, atol=1e-3)  # kept as float16
    changed = [name for name, value in untrained.state_dict().items() if not torch.equal(value, found[name])]
    assert changed and all(name.startswith("head.") for name in changed)


@pytest.mark.parametrize("places", ["1e-9", "3e-5"])  # none, and some
def test_without_room_features_are_computed_again_and_the_weights_are_the_same(seeded_run, passes, places):
    expected = train(seeded_run)
    num_passes = sum(passes)
    found = train(seeded_run, f"segmenter.kept_features_gb={places}", restart=True)
    assert sum(passes) - num_passes > num_passes
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_blank_pixels_of_an_image_that_could_not_be_read_once_are_not_kept(seeded_run, monkeypatch):
    victim = next(row.uri for row in seeded_run.manifest().iter_rows() if row.split == "train")
    reads: list[str] = []

    def read(uri: str, *arguments: int, **limits: int) -> np.ndarray:
        reads.append(uri)
        if uri == victim and reads.count(uri) <= 2:
            raise BadImage("no answer")
        return read_image(uri, *arguments, **limits)

    monkeypatch.setattr(segmentation_data, "read_image", read)
    found = train(seeded_run, "segmenter.epochs=8")
    reads.clear()
    monkeypatch.setattr(segmentation_worker, "trains_only_the_head", lambda _: False)
    expected = train(seeded_run, "segmenter.epochs=8", restart=True)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-2, atol=1e-3)


class Killed(BaseException):
    pass


def test_an_interrupted_training_continues_to_the_same_weights(seeded_run, monkeypatch):
    expected, calls, whole_step = train(seeded_run), Counter[str](), segmentation_worker.segmentation_step

    def interrupted(*arguments, **options):
        calls["steps"] += 1
        if calls["steps"] == 6:
            raise Killed
        return whole_step(*arguments, **options)

    monkeypatch.setattr(segmentation_worker, "segmentation_step", interrupted)
    with pytest.raises(Killed):
        train(seeded_run, restart=True)
    found = train(seeded_run)
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_a_retraining_reads_the_first_networks_labels_from_the_same_features(seeded_run, passes, monkeypatch):
    train(seeded_run)
    passes.clear()
    found = train(seeded_run, step="retrained")
    assert 12 < sum(passes) <= 24
    monkeypatch.setattr(segmentation_worker, "have_the_same_weights", lambda *_: False)
    expected = train(seeded_run, step="retrained", restart=True)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-2, atol=1e-3)


def test_the_cost_is_said_before_it_starts(seeded_run, capsys):
    train(seeded_run)
    printed = capsys.readouterr().out
    assert "each image and its mirror image run through it once: up to 24 passes" in printed
    assert "limited by segmenter.kept_features_gb = 40." in printed


def test_a_decoder_that_reads_early_features_does_without_keeping(seeded_run, passes, capsys):
    train(seeded_run, "segmenter.head=deeplabv3plus", "segmenter.dilations=2")
    assert passes == [] and "kept_features_gb" not in capsys.readouterr().out
