"""Figures of a tiny run's seeds: against a direct count, over splits and parts, sweeps, deterministic maps."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.connect import connect
from ficklenet.metrics import confusion_matrix, label_metrics
from ficklenet.seeds import resize_labels
from jobs.cli.launch import launch_step
from jobs.evaluate import main
from jobs.evaluation.comparison import better_labels
from jobs.evaluation.counting import selected_units
from jobs.evaluation.measuring import evaluate_labels, sweep
from jobs.evaluation.metrics import MeasuredLabels
from jobs.reporting.run_status import run_status, status_lines
from jobs.run.directory import Run, open_run
from jobs.run.selection import is_tuning_image, measurable_splits, resolve_selection
from jobs.steps.states import run_state
from storage.images import read_mask
from storage.manifest import write_manifest
from storage.steps import Skipped, Step


@pytest.fixture
def seeded_run(finished_maps_run) -> Run:
    with connect("in-process") as connection:
        launch_step(finished_maps_run, connection, "seeds")
    return finished_maps_run


def evaluate(
    run: Run, splits=(), part="all", resolutions=("map", "image"), deterministic=False
) -> dict[tuple[str, str], MeasuredLabels]:
    with connect("in-process") as connection:
        figures = evaluate_labels(run, connection, list(splits), part, resolutions, deterministic=deterministic)
    own = [figure for figure in figures if not figure.labels.startswith("baseline: ")]
    return {(figure.labels, figure.resolution): figure for figure in own}


def baselines(run: Run, splits=(), part="all", deterministic=False) -> dict[str, MeasuredLabels]:
    """By kind, at map resolution."""
    with connect("in-process") as connection:
        figures = evaluate_labels(run, connection, list(splits), part, ("map",), deterministic=deterministic)
    marked = [figure for figure in figures if figure.labels.startswith("baseline: ")]
    return {figure.labels.removeprefix("baseline: "): figure for figure in marked}


def sweep_settings(run: Run, *assignments: str, splits=(), part=None) -> list[MeasuredLabels]:
    with connect("in-process") as connection:
        return sweep(run, connection, list(assignments), list(splits), part, deterministic=False)


def recorded(run: Run) -> list[dict]:
    return json.loads((run.location / "evaluation" / "metrics.json").read_bytes())["metrics"]


def counted(run: Run, resolution: str, splits: tuple[str, ...]) -> np.ndarray:
    """The seeds' confusion matrix without any of the job's machinery."""
    store, total = run.seeds(), np.zeros((6, 7), int)
    for index, row in enumerate(run.manifest().iter_rows()):
        if row.split in splits:
            truth, seeds = read_mask(row.mask_uri, range(1, 6)), store.read(index)
            if resolution == "map":
                truth = resize_labels(truth, seeds.shape)
            total += confusion_matrix(truth, resize_labels(seeds, truth.shape), 5, 255)
    return total


@pytest.mark.parametrize("resolution", ["map", "image"])
def test_figures_are_those_of_the_stored_seeds(seeded_run, resolution):
    figure = evaluate(seeded_run, resolutions=(resolution,))["seeds", resolution]
    np.testing.assert_array_equal(figure.matrix, counted(seeded_run, resolution, ("train",)))
    assert (figure.num_images, figure.splits, figure.part) == (12, ("train",), "all")


def test_densified_seeds_and_pseudo_labels_stand_beside_the_seeds(seeded_run, capsys):
    assert {labels for labels, _ in evaluate(seeded_run)} == {"seeds", "densified seeds"}
    with connect("in-process") as connection:
        launch_step(seeded_run, connection, "pseudo_labels")
    figures = evaluate(seeded_run)
    assert {labels for labels, _ in figures} == {"seeds", "densified seeds", "pseudo-labels"}
    assert label_metrics(figures["densified seeds", "map"].matrix).coverage == 1.0
    expected = sum(
        confusion_matrix(
            read_mask(row.mask_uri, range(1, 6)),
            read_mask(seeded_run.labels("pseudo_labels").place(row.image_id).uri, range(1, 6)),
            5,
            255,
        )
        for row in seeded_run.manifest().rows(0, 12)
    )
    np.testing.assert_array_equal(figures["pseudo-labels", "image"].matrix, expected)


def test_a_single_undropped_sample_and_the_deterministic_map_agree(map_images, drawn_images):
    run = map_images(drawn_images, "maps.drop_rate=0.0", "maps.num_samples=1")
    with connect("in-process") as connection:
        launch_step(run, connection, "seeds")
    figures = evaluate(run, resolutions=("map",), deterministic=True)
    sampled, deterministic = figures["seeds", "map"].matrix, figures["deterministic seeds", "map"].matrix
    assert abs(sampled - deterministic).sum() <= 0.01 * sampled.sum()  # but for the store's half precision
    assert len({labels for labels, _ in figures}) == 4


def test_deterministic_figures_differ_from_the_sampled_ones(seeded_run):
    figures = evaluate(seeded_run, resolutions=("map",), deterministic=True)
    assert (figures["seeds", "map"].matrix != figures["deterministic seeds", "map"].matrix).any()


def test_tune_and_report_share_all_images(seeded_run):
    tune, report, whole = (
        evaluate(seeded_run, part=part, resolutions=("map",))["seeds", "map"] for part in ("tune", "report", "all")
    )
    np.testing.assert_array_equal(tune.matrix + report.matrix, whole.matrix)
    assert tune.num_images + report.num_images == whole.num_images
    kept = {(record["part"], record["labels"]) for record in recorded(seeded_run)}
    assert len([labels for _, labels in kept if "seeds" in labels]) == 6  # every part of both kinds is kept


def test_a_quarter_of_the_ids_is_for_tuning():
    share = np.mean([is_tuning_image(f"2007_{number:06d}") for number in range(4000)])
    assert 0.23 < share < 0.27
    tuning = [number for number in range(40) if is_tuning_image(f"scene_{number:04d}")]
    assert tuning == [4, 6, 9, 17, 30, 32, 39]  # for ever: figures on the report part must stay comparable


def test_newer_figures_replace_the_older_of_the_same_images(seeded_run):
    evaluate(seeded_run)
    first = recorded(seeded_run)
    evaluate(seeded_run)
    assert recorded(seeded_run) == first
    assert first[0]["iou"].keys() == {"background", "star", "ring", "cross", "stripes", "moon"}
    assert first[0]["size"] == "9 x 9" and first[0]["settings"]["seeds"]["theta"] == 0.35


def test_sweep_reads_masks_of_the_tune_part_only_and_says_so(seeded_run, capsys):
    tuning = [row for row in seeded_run.manifest().rows(0, 12) if is_tuning_image(row.image_id)]
    for row in seeded_run.manifest().iter_rows():
        if row not in tuning:
            Path(row.mask_uri).rename(Path(row.mask_uri + ".kept"))
    try:
        figures = sweep_settings(seeded_run, "theta=0.1,0.35", "seeds.evidence_threshold=0.0,0.2")
    finally:
        for row in seeded_run.manifest().iter_rows():
            if row not in tuning:
                Path(row.mask_uri + ".kept").rename(Path(row.mask_uri))
    assert [figure.labels for figure in figures][:2] == [
        "seeds, seeds.theta=0.1, seeds.evidence_threshold=0.0",
        "seeds, seeds.theta=0.1, seeds.evidence_threshold=0.2",
    ]
    assert len(figures) == 4 and {figure.num_images for figure in figures} == {len(tuning)}
    assert not any(figure.left_out for figure in figures)
    assert "reads masks of the tune part" in capsys.readouterr().out
    at_default = sweep_settings(seeded_run, "theta=0.35")[0].matrix
    stored = evaluate(seeded_run, part="tune", resolutions=("map",))["seeds", "map"].matrix
    np.testing.assert_array_equal(at_default, stored)


def test_validation_images_are_measured_apart_and_whole(seeded_run):
    assert evaluate(seeded_run, ["val"], part=None)["seeds", "map"].num_images == 2
    with pytest.raises(ValueError, match="only training splits have parts"):
        evaluate(seeded_run, ["val"], part="tune")
    with pytest.raises(ValueError, match="not both"):
        evaluate(seeded_run, ["train", "val"])
    for part in (None, "all"):
        with pytest.raises(ValueError, match="on the tune part of training splits only"):
            sweep_settings(seeded_run, "theta=0.1", splits=["val"], part=part)
    with pytest.raises(ValueError, match="on the tune part of training splits only"):
        sweep_settings(seeded_run, "theta=0.1", part="report")
    with pytest.raises(ValueError, match="no such split; the manifest has train, val"):
        evaluate(seeded_run, ["test"])


def test_report_part_of_the_training_splits_is_the_default(seeded_run):
    selection = resolve_selection(seeded_run.manifest(), seeded_run.config, [], None)
    assert (selection.splits, selection.part) == (("train",), "report")


def test_masks_of_the_tune_part_alone_are_measured_and_said(seeded_run, capsys):
    manifest = seeded_run.manifest()
    rows = list(manifest.iter_written_rows())
    tuning = next(row.image_id for row in rows if row.split == "train" and is_tuning_image(row.image_id))
    rows = [row if row.image_id == tuning else replace(row, mask_uri=None) for row in rows]
    write_manifest(seeded_run.location / "manifest.parquet", rows, manifest.class_names, manifest.class_values)
    run = open_run(seeded_run.uri)
    assert measurable_splits(run.manifest(), run.config) == [["train"]]
    assert run_status(run).steps[-1].state == "not started"
    with connect("in-process") as connection:
        measured = evaluate_labels(run, connection, [], None, ("map",), deterministic=False)
    assert {(each.part, each.num_images) for each in measured} == {("all", 1)}
    assert "all images with masks are measured, because none of them is in the report part" in capsys.readouterr().out
    assert run_status(run).steps[-1].state == "done"
    assert status_lines(run_status(run))[0].endswith("14 images, 5 classes, 1 image with a mask")
    to_report = resolve_selection(run.manifest(), run.config, [], "report")
    with pytest.raises(ValueError, match=r"report part.*--part all"):
        selected_units(run.manifest(), to_report, run.config.unit_size)


def test_images_without_a_usable_mask_are_left_out_and_counted(map_images, drawn_images, tmp_path, capsys):
    lost = Path(shutil.copy(drawn_images[2].mask_uri, tmp_path / "lost.png"))
    images = [
        drawn_images[0],
        replace(drawn_images[1], mask_uri=None),
        replace(drawn_images[2], mask_uri=str(lost)),
        replace(drawn_images[3], uri="/gone.png"),
    ]
    run = map_images(images)
    lost.unlink()
    with connect("in-process") as connection:
        launch_step(run, connection, "seeds")
    figure = evaluate(run, deterministic=True)["seeds", "map"]
    assert figure.num_images == 2
    assert figure.left_out == {"no mask": 1, "mask: missing: no such file": 1}
    # the image that could not be read has a mask, and no seeds: all of it is missed
    assert figure.matrix[:, -1].sum() >= 81
    assert figure.skipped == {"missing: no such file": 1}
    sentence = "skipped by an earlier step (missing: no such file): all its pixels count as misses."
    assert sentence in capsys.readouterr().out


def test_a_run_without_masks_is_refused_before_its_seeds_are_asked_for(map_images, drawn_images):
    run = map_images([replace(image, mask_uri=None) for image in drawn_images])
    with pytest.raises(ValueError, match=r"none of the images \(train\) has a mask, .*--masks FOLDER"):
        evaluate(run)


def test_masks_that_cannot_be_read_are_said(map_images, drawn_images, tmp_path):
    masks = [Path(shutil.copy(image.mask_uri, tmp_path)) for image in drawn_images]
    run = map_images([replace(image, mask_uri=str(m)) for image, m in zip(drawn_images, masks, strict=True)])
    for mask in masks:
        mask.unlink()
    with connect("in-process") as connection:
        launch_step(run, connection, "seeds")
    with pytest.raises(ValueError, match=r"no image of train could be measured \(12 mask: missing: no such file\)"):
        evaluate(run)


def test_seeds_must_be_complete_and_made_with_these_settings(seeded_run):
    with pytest.raises(ValueError, match=r"seeds.theta: 0.35 -> 0.5\).*--restart seeds"):
        evaluate(open_run(seeded_run.uri, None, ["seeds.theta=0.5"]))
    (Path(seeded_run.uri) / "seeds" / "done" / "000000.json").unlink()
    with pytest.raises(ValueError, match=r"seeds are complete for 10 of 14 images.*jobs/aggregate_seeds.py"):
        evaluate(seeded_run)


def test_wrong_sweep_is_refused(seeded_run):
    with pytest.raises(ValueError, match=r"write a seeds\.\* or pseudo_labels\.\* key"):
        sweep_settings(seeded_run, "maps.num_samples=1,2")
    with pytest.raises(ValueError, match=r"seeds.theta: given 2"):
        sweep_settings(seeded_run, "theta=2")


def test_command_prints_a_table_of_every_kind_and_class(seeded_run, capsys):
    main(["--run", seeded_run.uri, "--resolution", "map", "--part", "all"])
    out = capsys.readouterr().out
    assert "train: 12 images" in out and "at map resolution (9 x 9)" in out
    for word in ("mIoU", "fg precision", "coverage", "densified seeds", "background", "moon"):
        assert word in out


def test_only_what_the_skipping_step_made_misses_an_image(predicted_run, capsys):
    step = Step(predicted_run.location / "predictions")
    [receipt] = step.receipts().values()
    step.write_receipt(replace(receipt, skipped=(Skipped("scene_0012", "empty file"),)))
    for place in ("labels", "unrefined"):
        (predicted_run.data("predictions") / place / "scene_0012.png").delete()
    found = evaluate(predicted_run, ["val"], part=None, resolutions=("image",))
    assert {labels for (labels, _), figure in found.items() if figure.skipped == {"empty file": 1}} == {
        "predictions",
        "predictions without CRF",
    }
    assert found["seeds", "image"].skipped == found["densified seeds", "image"].skipped == {}
    told = "by an earlier step (empty file): all its pixels count as misses in predictions, predictions without CRF.\n"
    assert told in capsys.readouterr().out


def test_training_and_validation_images_are_measured_apart_even_where_one_is_both(seeded_run):
    run = open_run(seeded_run.uri, None, ["data.train_splits=train,val"])
    assert measurable_splits(run.manifest(), run.config) == [["train"], ["val"]]
    assert resolve_selection(run.manifest(), run.config, [], None).splits == ("train",)


def test_masks_of_another_size_are_left_out_and_those_of_other_values_told(map_images, drawn_images, tmp_path, capsys):
    masks = [Path(shutil.copy(image.mask_uri, tmp_path)) for image in drawn_images[:2]]
    images = [replace(image, mask_uri=str(mask)) for image, mask in zip(drawn_images, masks, strict=False)]
    run = map_images([*images, drawn_images[2]])
    binary = Image.new("L", Image.open(drawn_images[0].uri).size)
    binary.paste(255, (0, 0, 20, 20))
    Image.new("L", (50, 50), 1).save(masks[0])  # they were good when the run was prepared
    binary.save(masks[1])
    with connect("in-process") as connection:
        launch_step(run, connection, "seeds")
    capsys.readouterr()
    assert evaluate(run)["seeds", "map"].left_out == {"mask: its size differs from the image's": 1}
    printed = capsys.readouterr().out
    assert "evaluate: 1 mask without a pixel of any of the image's classes (first: 'scene_0001'). The known " in printed
    assert "1 star, 2 ring, 3 cross, 4 stripes, 5 moon; all others are ignored. To give" in printed


def test_baselines_stand_beside_the_seeds_at_map_resolution(seeded_run, capsys):
    found = baselines(seeded_run)
    assert set(found) == {"all ones", "centred Gaussian", "maps, best threshold"}
    assert {figure.num_images for figure in found.values()} == {12}
    printed = capsys.readouterr().out
    chosen = "evaluate: the baselines' parameters are chosen on 3 images of train, tune part"
    assert f"{chosen}; some of them are measured too, which favours the baselines." in printed
    assert f"baseline: centred Gaussian ({found['centred Gaussian'].chosen})" in printed
    assert all(label_metrics(figure.matrix).coverage == 1.0 for figure in found.values())
    ones = found["all ones"].matrix
    assert ones[:, 0].sum() == 0 and ones.sum() == counted(seeded_run, "map", ("train",)).sum()
    with_deterministic = baselines(seeded_run, deterministic=True)
    assert set(with_deterministic) - set(found) == {
        "deterministic maps, best threshold",
        "deterministic maps, blurred",
        "deterministic maps, dilated",
    }


def test_a_baseline_is_as_good_on_the_tune_part_as_any_that_was_tried(seeded_run):
    chosen = label_metrics(baselines(seeded_run, part="tune")["maps, best threshold"].matrix).mean_iou
    thresholds = [
        sweep_settings(seeded_run, f"seeds.theta={theta}", f"seeds.evidence_threshold={theta}")[0]
        for theta in (0.2, 0.5, 0.8)
    ]
    assert chosen >= max(label_metrics(figure.matrix).mean_iou for figure in thresholds)


def test_newer_baselines_replace_the_older_whatever_was_chosen(seeded_run):
    baselines(seeded_run)
    place = seeded_run.location / "evaluation" / "metrics.json"
    metrics = recorded(seeded_run)
    for record in metrics:
        record["chosen"] = "something else"
    place.write_bytes(json.dumps({"metrics": metrics}).encode())
    baselines(seeded_run)
    assert len(recorded(seeded_run)) == len(metrics)
    assert all(record["chosen"] != "something else" for record in recorded(seeded_run))


def test_images_with_several_classes_are_shown_apart(seeded_run):
    figure = evaluate(seeded_run, resolutions=("map",))["seeds", "map"]
    store, expected, number = seeded_run.seeds(), np.zeros((6, 7), int), 0
    for index, row in enumerate(seeded_run.manifest().iter_rows()):
        truth = read_mask(row.mask_uri, range(1, 6))
        if row.split == "train" and len(set(np.unique(truth)) - {0, 255}) > 1:
            expected += confusion_matrix(resize_labels(truth, (9, 9)), store.read(index), 5, 255)
            number += 1
    assert 0 < number < 12 and figure.num_several == number
    np.testing.assert_array_equal(figure.matrix_several, expected)
    assert recorded(seeded_run)[0]["mean_iou_several"] == label_metrics(expected).mean_iou


def test_images_of_one_class_each_are_said_to_show_coverage(map_images, drawn_images, capsys):
    single = [image for image in drawn_images if len(image.labels) == 1]
    run = map_images(single)
    with connect("in-process") as connection:
        launch_step(run, connection, "seeds")
    evaluate(run, resolutions=("map",))
    printed = capsys.readouterr().out
    assert "have one class or none. On images with one class, these figures" in printed
    assert "figures of fewer than about 20 images say little" in printed


def test_a_fully_supervised_network_is_measured_without_maps_and_seeds(trained_run, capsys):
    run = open_run(trained_run.uri, None, ["segmenter.supervision=masks", "segmenter.epochs=1"])
    with connect("in-process") as connection:
        launch_step(run, connection, "segmenter")
        launch_step(run, connection, "predictions")
    found = evaluate(run, ["val"], part=None)
    assert {labels for labels, _ in found} == {"predictions", "predictions without CRF"}
    assert {resolution for _, resolution in found} == {"map", "image"}
    assert all(figure.classifier is None and figure.num_images == 2 for figure in found.values())
    assert "the run has no seeds; only the other labels are measured" in capsys.readouterr().out
    assert run_state(run, run.manifest()).steps["evaluation"].state == "done"
    with pytest.raises(ValueError, match="the predictions do not cover train, report part, and there are no seeds"):
        evaluate(run, ["train"], part="report")


def test_better_pseudo_labels_are_recommended_with_their_place(predicted_run):
    with connect("in-process") as connection:
        launch_step(predicted_run, connection, "pseudo_labels")
        figures = evaluate_labels(predicted_run, connection, ["val"], None, ("image",), deterministic=False)
    by_name = {figure.labels: figure for figure in figures}
    good, bad = np.eye(6, 7, dtype=int), np.ones((6, 7), int)
    better = [replace(by_name["pseudo-labels"], matrix=good), replace(by_name["predictions"], matrix=bad)]
    advice = better_labels(predicted_run, better)
    assert advice.startswith(
        "on val the pseudo-labels are better masks (mIoU 1.000) than the network's predictions (0."
    )
    assert str(predicted_run.data("pseudo_labels") / "labels") in advice and "--labels pseudo_labels" in advice
    assert better_labels(predicted_run, [replace(better[0], matrix=bad), replace(better[1], matrix=good)]) == ""
    assert better_labels(predicted_run, better[1:]) == ""
