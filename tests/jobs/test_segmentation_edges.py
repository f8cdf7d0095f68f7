"""Data sets at the edge of what the segmentation network can be trained on: trained, or refused in one sentence."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.connect import connect
from ficklenet.geometry import GridGeometry
from ficklenet.segmenter import unpack_segmenter
from jobs.cli.launch import launch_step
from jobs.run.directory import SEEDS, Run, open_run, record_run
from jobs.run.training_record import kept_bytes, read_training
from storage.label_values import ignore_value
from storage.manifest import ManifestRow, write_manifest
from storage.seed_store import SeedStore
from storage.steps import Receipt, Step
from storage.units import plan_units

SETTINGS = {
    "unit_size": 4,
    "images": {"input_size": 33},
    "segmenter": {
        "backbone": "small",
        "weights": "none",
        "dilations": [2],
        "epochs": 2,
        "batch_size": 2,
        "min_steps": 1,
    },
    "predictions": {"splits": ["train"]},
}
GRID = GridGeometry(8).grid_size(33)


def seeded_run(
    folder: Path,
    labels: Sequence[tuple[int, ...]],
    num_classes: int,
    assignments: Sequence[str] = (),
    *,
    sizes: Sequence[tuple[int, int]] = (),
    without_seeds: Sequence[int] = (),
    never_seeded: Sequence[int] = (),
    rest: int | None = None,
    saliency: str | None = None,
) -> Run:
    """A run of images of noise with seeds: the upper rows background, one quadrant for each of an image's classes.

    Args:
        labels: the classes of each image.
        assignments: settings of the run.
        sizes: (height, width) of the images.
        without_seeds: images all of whose seeds are unknown.
        never_seeded: classes without seeds.
        rest: the label of all other cells; unknown by default.
        saliency: the address of every image's saliency map.
    """
    run = open_run(str(folder / "run"), None, assignments, defaults=SETTINGS)
    generator, rows = np.random.default_rng(0), []
    for number, classes in enumerate(labels):
        height, width = sizes[number] if sizes else (40, 30)
        place = folder / f"{number}.png"
        Image.fromarray(generator.integers(0, 255, (height, width, 3), np.uint8)).save(place)
        row = ManifestRow(f"image_{number}", str(place), classes, height, width, "train", saliency_uri=saliency)
        rows.append(row)
    write_manifest(run.location / "manifest.parquet", rows, [f"class {number}" for number in range(num_classes)])
    record_run(run)
    step = Step(run.location / "seeds")
    step.open({"unit_size": 4, "seeds": run.config.seeds.result_settings(), "upstream": {}}, "")
    store = SeedStore.create(step.data() / SEEDS, len(rows), num_classes, (GRID, GRID), 4)
    for unit in plan_units(len(rows), 4):
        seeds = np.full((unit.num_images, GRID, GRID), ignore_value(num_classes) if rest is None else rest)
        for place, number in enumerate(range(unit.start, unit.stop)):
            if number not in without_seeds:
                seeds[place, 0] = 0
                for position, label in enumerate(labels[number]):
                    if label not in never_seeded:
                        seeds[place, 1 + position % (GRID - 1), 1:] = label + 1
        store.write_unit(unit, seeds)
        step.write_receipt(Receipt(unit.index, unit.start, unit.stop, 1.0, 1.7e9, (), step.start_id()))
    return run


def trained(run: Run, *assignments: str) -> dict[str, np.ndarray]:
    """Trains and predicts; the predicted labels by image, after a look at the weights."""
    with connect("in-process") as connection:
        launch_step(open_run(run.uri, None, assignments), connection, "segmenter")
        metrics = read_training(run.data("segmenter")).metrics
        launch_step(run, connection, "predictions")
    assert np.isfinite(metrics["loss"])
    model = unpack_segmenter(kept_bytes(run, "segmenter")[0])
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    found = {file.stem: np.array(Image.open(file)) for file in Path(run.uri, "predictions/labels").iterdir()}
    assert len(found) == run.manifest().num_images
    assert all(labels.max() <= run.manifest().num_classes for labels in found.values())
    return found


def test_images_of_different_sizes_are_labelled_at_their_own(tmp_path):
    sizes = [(33, 200), (150, 90), (64, 64), (9, 300), (1, 1), (2, 70)]
    found = trained(seeded_run(tmp_path, [(0,), (1,), (0, 1), (1,), (0,), (1,)], 2, sizes=sizes))
    assert [found[f"image_{number}"].shape for number in range(len(sizes))] == sizes


def test_classes_absent_from_the_seeds_do_not_hinder_the_others(tmp_path):
    trained(seeded_run(tmp_path, [(0, 2), (1, 2), (2,), (0, 1)], 4, never_seeded=[2]))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_images_whose_seeds_are_all_unknown_are_trained_beside_others(tmp_path, batch_size):
    run = seeded_run(tmp_path, [(0,), (1,), (0,), (1,)], 2, without_seeds=[0, 1, 2])
    trained(run, f"segmenter.batch_size={batch_size}")


def test_seeds_without_any_class_are_refused(tmp_path):
    run = seeded_run(tmp_path, [(0,), (1,)], 2, never_seeded=[0, 1])
    with pytest.raises(ValueError, match=r"no training image has a seed of a class\. Lower seeds\.theta: .*aggregate"):
        trained(run)


@pytest.mark.parametrize(
    ("saliency", "assignments", "remedy"),
    [
        ("saliency.png", (), r"the saliency maps are below .*--set seeds\.background_cue=evidence"),
        ("saliency.png", ("seeds.background_cue=evidence",), r"Lower it: .*--set seeds\.evidence_threshold="),
        (None, (), r"all evidence is below seeds\.evidence_threshold\. Lower it"),
    ],
)
def test_seeds_that_are_all_background_are_refused_with_a_remedy_that_helps(saliency, assignments, remedy, tmp_path):
    run = seeded_run(tmp_path, [(0,), (1,)], 2, assignments, never_seeded=[0, 1], rest=0, saliency=saliency)
    with pytest.raises(ValueError, match=remedy) as refusal:
        trained(run)
    assert "seeds.theta" not in str(refusal.value)


@pytest.mark.parametrize("num_classes", [1, 80, 300])  # of 300, the value 255 is a class
def test_short_and_long_class_lists_are_trained(tmp_path, num_classes):
    labels = [(0,), (num_classes - 1,), tuple(range(min(num_classes, 40))), (num_classes // 2,)]
    trained(seeded_run(tmp_path, labels, num_classes))


def test_one_image_is_a_data_set(tmp_path):
    trained(seeded_run(tmp_path, [(0,)], 1))
