"""Negative images show none of the classes: trainings learn that, maps leave them out, their seeds are background."""

from dataclasses import replace

import numpy as np
import pytest

from cluster.connect import connect
from ficklenet.drawing import DRAWN_CLASS_NAMES
from jobs.cli.launch import launch_step
from jobs.preparation.prepare import prepare
from jobs.run.directory import Run, open_run
from jobs.training.image_list import image_list
from jobs.training.segmentation_data import training_images


@pytest.fixture
def run(drawn_images, trained_run, tmp_path) -> Run:
    """A run of four images, the second negative, the third unlabelled; unlabelled ones are mapped as predicted."""
    settings = ["maps.classes=predicted", "maps.predicted_threshold=0.0", "maps.max_classes=2"]
    run = open_run(str(tmp_path / "negatives"), None, settings, defaults=trained_run.config.model_dump())
    images = list(drawn_images[:4])
    images[1], images[2] = replace(images[1], labels=(), is_negative=True), replace(images[2], labels=())
    prepare(run, images, DRAWN_CLASS_NAMES)
    (tmp_path / "negatives" / "classifier").symlink_to(trained_run.location.uri + "/classifier")
    return run


def test_trainings_take_negative_images_and_no_unlabelled_ones(run):
    manifest = run.manifest()
    ids = [row.image_id for row in manifest.rows(0, 4)]
    assert [image.image_id for image in image_list(manifest, ["train"])] == [ids[0], ids[1], ids[3]]
    assert [image.image_id for image in training_images(manifest, run.config)] == [ids[0], ids[1], ids[3]]
    assert image_list(manifest, ["train"])[1].labels == ()


def test_negative_images_have_no_maps_and_are_background_in_seeds_and_pseudo_labels(run):
    with connect("in-process") as connection:
        for name in ("maps", "seeds", "pseudo_labels"):
            launch_step(run, connection, name)
    maps, seeds = run.maps(), run.seeds()
    assert [len(maps.read(row).classes) > 0 for row in range(4)] == [True, False, True, True]
    assert (seeds.read(1) == 0).all()
    assert not (seeds.read(0) == 0).all()
    negative = run.manifest().rows(1, 2)[0].image_id
    assert np.array_equal(np.unique(run.labels("pseudo_labels").read(negative)), [0])
