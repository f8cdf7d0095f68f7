"""A trained run in Python: equal to what the jobs store, pixel for pixel; the lines of the documentation run."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.notebook.trained_run import open_trained

PAGE = Path(__file__).parents[2] / "docs" / "howto-python.md"


def test_the_documented_lines_give_what_the_jobs_stored(decided_run, tmp_path, monkeypatch):
    of_the_run, of_a_new_picture, *_ = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    space: dict[str, object] = {}
    exec(of_the_run.replace("RUN", decided_run.uri).replace("IMAGE", "scene_0012"), space)
    assert space["same_maps"] and space["same_mask"]
    labels = space["mask"]
    assert labels.shape == (120, 160) and len(np.unique(labels)) > 2

    monkeypatch.chdir(tmp_path)
    Image.fromarray(space["image"]).save("new.jpg", format="PNG")
    exec(of_a_new_picture, space)
    np.testing.assert_array_equal(np.asarray(Image.open("mask.png")), labels)


def test_maps_and_scores_are_those_of_the_job_for_every_class(finished_maps_run):
    run = open_trained(finished_maps_run.uri)
    for image_id in ("scene_0000", "scene_0005"):
        stored, classes = run.stored_maps(image_id), [run.class_names[n] for n in run.entry(image_id).labels]
        found = run.localize(run.image(image_id), classes[::-1], image_id)
        for name in ("classes", "max", "mean", "score"):
            np.testing.assert_array_equal(getattr(found, name), getattr(stored, name))
        other = run.localize(run.image(image_id), classes, "another id")
        assert not np.array_equal(other.max, stored.max), "the masks follow from the id"


@pytest.mark.parametrize("image", ["file.jpg", np.zeros((4, 5)), np.zeros((4, 5, 3)), np.zeros((4, 5, 4), np.uint8)])
def test_anything_but_a_colour_image_is_refused(image, finished_maps_run):
    run = open_trained(finished_maps_run.uri)
    for call in (lambda: run.localize(image, run.class_names[:1]), lambda: run.predict(image)):
        with pytest.raises(ValueError, match=r"given .*, allowed: a uint8 array \(height, width, 3\), RGB"):
            call()


def test_one_class_in_place_of_a_list_and_an_unknown_id_are_named(finished_maps_run):
    run = open_trained(finished_maps_run.uri)
    with pytest.raises(ValueError, match=r"given the text 'ring', allowed: a list of class names, \['ring'\]"):
        run.localize(np.zeros((4, 5, 3), np.uint8), "ring")
    with pytest.raises(KeyError, match="no image 'ring'; the first id is 'scene_0000'"):
        run.image("ring")


def test_other_settings_and_unknown_classes(predicted_run):
    run = open_trained(predicted_run.uri, ["predictions.mirror=true"])
    image = run.image("scene_0013")
    assert run.predict(image, refine=False).shape == image.shape[:2]
    with pytest.raises(ValueError, match=r"localize: given 'unicorn', allowed: some of "):
        run.localize(image, ["unicorn"])
    with pytest.raises(KeyError, match="no image 'gone'"):
        run.image("gone")
    with pytest.raises(ValueError, match="has no manifest"):
        open_trained(f"{predicted_run.uri}/nothing")
