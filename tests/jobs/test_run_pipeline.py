"""The whole pipeline on a tiny run: everything once, nothing twice, and where it stops."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import NoReturn
from urllib.error import URLError

import pytest

from cluster.connect import connect
from ficklenet.drawing import DRAWN_CLASS_NAMES
from jobs import aggregate_seeds
from jobs.cli import plans
from jobs.cli.estimate import Estimate
from jobs.cli.launch import launch_step
from jobs.cli.pipeline import run_pipeline
from jobs.cli.plans import plan_pipeline
from jobs.evaluation.measuring import evaluate_labels
from jobs.preparation.prepare import prepare
from jobs.reporting.run_status import run_status
from jobs.run.directory import Run, open_run, setting_notes
from jobs.run.training_record import read_complete
from jobs.run_pipeline import main
from jobs.steps.evaluation_state import read_metrics
from jobs.steps.finished import require_finished
from jobs.steps.networks import require_network
from jobs.training import backbone_weights
from storage.errors import NotYet


def launch(run: Run, *assignments: str) -> None:
    with connect("in-process") as connection:
        run_pipeline(open_run(run.uri, None, assignments), connection)


def test_pipeline_makes_everything_and_a_second_launch_makes_nothing(trained_run, capsys):
    launch(trained_run)
    printed = capsys.readouterr().out
    assert "predictions without CRF" in printed and "densified seeds" in printed
    assert "evaluate: train: 12 images\n" in printed  # the tune part too, because few masks are in the report part
    assert f"a picture of the maps: {trained_run.uri}/report/contact_sheet.png\n" in printed
    assert Path(trained_run.uri, "report", "index.html").exists()
    made = {path: path.stat().st_mtime_ns for path in Path(trained_run.uri).rglob("*/labels/*.png")}
    assert len(made) == 14 + 2  # pseudo-labels and predictions
    launch(trained_run)
    printed = capsys.readouterr().out
    assert printed.count("already trained") == 2 and printed.count("0 of 4 units to do") == 3
    assert all(path.stat().st_mtime_ns == before for path, before in made.items())


def test_pipeline_stops_at_the_first_step_that_cannot_be_completed(trained_run, capsys):
    with pytest.raises(ValueError, match="no training image has a seed of a class"):
        launch(trained_run, "seeds.theta=1")
    assert "step 5 of 6, segmenter" in capsys.readouterr().out
    assert not Path(trained_run.uri, "predictions").exists()
    with connect("in-process") as connection:
        launch_step(open_run(trained_run.uri, None, ["seeds.theta=0.35"]), connection, "seeds", restart=True)
        launch_step(open_run(trained_run.uri), connection, "pseudo_labels", restart=True)
    launch(trained_run, "segmenter.weights=none")
    assert "classifier: already trained" in capsys.readouterr().out


def test_a_dry_run_says_which_outdated_steps_would_be_redone(predicted_run, capsys):
    with connect("in-process") as connection:
        launch_step(open_run(predicted_run.uri, None, ["pseudo_labels.refine=false"]), connection, "pseudo_labels")
        launch_step(open_run(predicted_run.uri, None, ["seeds.theta=0.5"]), connection, "seeds", restart=True)
    before = files_of(predicted_run)
    with pytest.raises(ValueError, match=r"outdated, .*: segmenter, predictions\. .* --redo-outdated deletes"):
        main(["--run", predicted_run.uri, "--dry-run"])
    capsys.readouterr()
    main(["--run", predicted_run.uri, "--dry-run", "--redo-outdated"])
    printed = capsys.readouterr().out
    assert "segmenter, dry run: 2 of 2 epochs to do" in printed
    extent = "predictions, dry run: 1 of 1 unit to do (2 of 2 images)"
    assert f"{extent}; details are known after the steps above are redone.\n" in printed
    for name in ("segmenter", "predictions"):
        assert re.search(rf"first:   deletes \d+ objects, .* in {predicted_run.uri}/{name}\n", printed)
    assert "seeds, dry run: 0 of 4 units to do" in printed and files_of(predicted_run) == before


def test_a_step_that_reads_an_outdated_network_says_so(predicted_run, capsys):
    with connect("in-process") as connection:
        launch_step(open_run(predicted_run.uri, None, ["seeds.theta=0.5"]), connection, "seeds", restart=True)
        capsys.readouterr()
        launch_step(open_run(predicted_run.uri), connection, "predictions")
    assert "predictions: WARNING: the step segmenter of" in capsys.readouterr().out


def test_results_that_are_outdated_through_an_earlier_step_are_refused(seeded_run):
    complete = read_complete(seeded_run.location / "classifier")
    Path(seeded_run.uri, "classifier/complete.json").write_text(json.dumps(complete | {"sha256": "of another"}))
    with pytest.raises(ValueError, match=r"export: the step seeds of .* is outdated.*--redo-outdated"):
        require_finished(open_run(seeded_run.uri), "seeds", "export")


def test_without_seeds_the_missing_network_is_advised_to_be_made_by_the_pipeline(trained_run, seeded_run):
    with pytest.raises(NotYet, match=r"has no trained segmentation network\. Run 'python jobs/run_pipeline\.py"):
        require_network(trained_run, "segmenter", "predict")
    with pytest.raises(NotYet, match=r"has no trained segmentation network\. Run 'python jobs/train_segmentation\.py"):
        require_network(seeded_run, "segmenter", "predict")


def test_after_a_restart_the_pipeline_names_all_outdated_steps_and_redoes_them_when_asked(predicted_run, capsys):
    changed = open_run(predicted_run.uri, None, ["seeds.theta=0.5"])
    with connect("in-process") as connection:
        launch_step(changed, connection, "seeds", restart=True)
    with pytest.raises(ValueError, match=r"changed: segmenter, predictions\. .* --redo-outdated deletes"):
        launch(predicted_run)
    network = predicted_run.step("segmenter").fingerprint()
    with connect("in-process") as connection:
        run_pipeline(open_run(predicted_run.uri, None, ["segmenter.epochs=3"]), connection, redo_outdated=True)
    assert predicted_run.step("segmenter").fingerprint() != network
    printed = capsys.readouterr().out
    assert "Do not use these masks" in printed and "masks for CVAT" not in printed
    assert "segmenter: epoch 3 of 3" in printed and "the run keeps" not in printed
    assert open_run(predicted_run.uri).config.segmenter.epochs == 3
    predictions = predicted_run.step("predictions")
    start = predictions.start_id()
    next(Path(predictions.location.uri).rglob("000003.json")).unlink()  # as if the job had been stopped here
    with connect("in-process") as connection:
        run_pipeline(open_run(predicted_run.uri), connection, redo_outdated=True)  # nothing is outdated now
    assert capsys.readouterr().out.count("already trained") == 2
    assert predictions.start_id() == start != "" and 3 in predictions.receipts()


def test_the_pipeline_measures_again_what_was_measured_and_is_outdated_and_no_more(predicted_run):
    def measured() -> set[tuple[str, str, str, str]]:
        return {(e["labels"], *e["splits"], e["part"], e["resolution"]) for e in read_metrics(predicted_run)}

    with connect("in-process") as connection:
        evaluate_labels(predicted_run, connection, ["val"], None, ("map",), deterministic=True)
        evaluate_labels(predicted_run, connection, ["train"], "report", ("map", "image"), deterministic=False)
        evaluate_labels(predicted_run, connection, ["train"], "tune", ("map",), deterministic=False)
        before = measured()
        launch_step(open_run(predicted_run.uri, None, ["maps.num_samples=3"]), connection, "maps", restart=True)
        assert run_status(predicted_run).steps[-1].state == "outdated"
        run_pipeline(open_run(predicted_run.uri), connection, redo_outdated=True)
    status = run_status(predicted_run)
    assert {step.name: step.state for step in status.steps}["evaluation"] == "done"
    samples = {
        (each["labels"], each["part"], each["settings"]["maps"]["num_samples"], *each["splits"], each["resolution"])
        for each in read_metrics(predicted_run)
    }
    for labels, split, part, resolution in before:
        assert ((labels, part, 3, split, resolution) in samples) == (part != "tune"), (labels, split, part, resolution)
    more = {each[1:] for each in measured()} - {each[1:] for each in before}
    assert more == {("val", "all", "image"), ("train", "report", "image")} - {each[1:] for each in before}


@pytest.mark.parametrize("has_masks", [False, True])
def test_a_pipeline_warns_at_its_end_of_steps_that_another_launch_made_outdated(
    has_masks, predicted_run, monkeypatch, capsys
):
    def launched_beside(run, connection, name, **options):
        launch_step(run, connection, name, **options)
        if name == "predictions":
            launch_step(open_run(run.uri, None, ["seeds.theta=0.5"]), connection, "seeds", restart=True)

    launch(predicted_run)
    assert "outdated" not in capsys.readouterr().out
    monkeypatch.setattr("jobs.cli.pipeline.launch_step", launched_beside)
    if has_masks:
        with pytest.raises(ValueError, match=r"seeds\.theta: 0\.5 -> 0\.35"):  # the metrics are of these seeds
            launch(predicted_run)
    else:
        monkeypatch.setattr("jobs.cli.pipeline.measurable_splits", lambda *_: [])
        launch(predicted_run)
    warning = next(line for line in capsys.readouterr().out.splitlines() if "pipeline: WARNING" in line)
    assert ": segmenter, predictions. To compute them again: " in warning
    assert f"'python jobs/run_pipeline.py --run {predicted_run.uri} --redo-outdated'" in warning


def test_a_setting_that_a_finished_step_refuses_is_refused_before_the_first_step(seeded_run, capsys):
    command = f"'python jobs/aggregate_seeds.py --run {seeded_run.uri} --set seeds.theta=0.5 --restart seeds'"
    for pipeline in (run_pipeline, plan_pipeline):
        with (
            connect("in-process") as connection,
            pytest.raises(ValueError, match=r"seeds\.theta: 0\.35 -> 0\.5") as refused,
        ):
            pipeline(open_run(seeded_run.uri, None, ["seeds.theta=0.5"]), connection)
        assert f"Start over with {command}, which deletes this step's results." in str(refused.value)
    assert capsys.readouterr().out == ""


def test_settings_of_other_started_steps_are_named_once_with_the_command_that_changes_them(seeded_run, capsys):
    script = f"python jobs/generate_maps.py --run {seeded_run.uri}"
    run = open_run(seeded_run.uri, None, ["maps.num_samples=9"])
    assert setting_notes(run, ["classifier"]) == [
        "maps.num_samples: the run keeps 8, because the step maps was started with it. To change it to 9: "
        f"'{script} --set maps.num_samples=9 --restart maps'."
    ]
    free = open_run(seeded_run.uri, None, ["maps.device=cpu"])  # the step accepts it without a restart
    assert f"To change it to cpu: '{script} --set maps.device=cpu'." in setting_notes(free, ["classifier"])[0]
    assert setting_notes(run, ["maps"]) == setting_notes(free, ["maps"]) == []
    aggregate_seeds.main(["--run", seeded_run.uri, "--set", "maps.device=cpu"])
    assert capsys.readouterr().out.count("maps.device: the run keeps auto, because") == 1


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("segmenter.weights=/nowhere.pt", r"segmenter\.weights: no file /nowhere\.pt"),
        ("segmenter.weights=imagenet", r'segmenter\.weights: the backbone "small" has no ImageNet weights'),
        ("segmenter.strong_splits=val", r"segmenter\.strong_splits: given val, which has no training image"),
        ("cluster.training_workers=5", r"cluster\.training_workers: given 5, allowed: 1 to 4, .*segmenter\.batch_size"),
    ],
)
@pytest.mark.parametrize("step", [run_pipeline, plan_pipeline])
def test_what_the_segmentation_network_cannot_begin_with_is_refused_before_the_first_step(
    step, assignment, sentence, trained_run, capsys
):
    with connect("in-process") as connection, pytest.raises(ValueError, match=sentence):
        step(open_run(trained_run.uri, None, [assignment]), connection)
    assert "step 1" not in capsys.readouterr().out


def test_splits_without_a_usable_image_are_refused_before_the_first_step(trained_run, drawn_images, tmp_path, capsys):
    images = [replace(image, problem="no good" if image.split == "val" else None) for image in drawn_images]
    run = open_run(str(tmp_path / "other"), defaults=trained_run.config.model_dump())
    prepare(run, images, DRAWN_CLASS_NAMES)
    with pytest.raises(ValueError, match=r"no image of the split val can be used \(the first: no good\.\)"):
        launch(run, "predictions.splits=val")
    assert "step 1" not in capsys.readouterr().out


def test_a_network_with_nothing_to_teach_is_refused_before_the_first_step(trained_run, capsys):
    settings = ("segmenter.supervision=masks", "predictions.network=retrained")
    with pytest.raises(ValueError, match="was trained on all masks already"):
        launch(trained_run, *settings)
    assert "step 1" not in capsys.readouterr().out


def test_weights_that_cannot_be_downloaded_here_are_found_before_the_first_step(trained_run, monkeypatch, capsys):
    def no_network(name: str) -> NoReturn:
        raise URLError("no route to host")

    monkeypatch.setattr(backbone_weights, "imagenet_weights", no_network)
    run = open_run(trained_run.uri, None, ["segmenter.backbone=vgg16", "segmenter.weights=imagenet"])
    with connect("in-process") as connection, pytest.raises(ValueError, match=r"cannot be downloaded .*no route"):
        run_pipeline(run, connection)
    assert "step 1" not in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["--demo", "--run", "somewhere"]])
def test_either_a_run_or_the_demo_is_asked_for(arguments):
    with pytest.raises(ValueError, match=r"give --run PATH of a prepared run, or --demo"):
        main(arguments)


def test_a_run_without_images_to_predict_is_refused_before_anything_is_trained(trained_run, capsys):
    with pytest.raises(ValueError, match=r"of the split test, .* has the splits train, val\. .*splits=train,val"):
        main(["--run", trained_run.uri, "--set", "predictions.splits=test"])
    assert "step 1" not in capsys.readouterr().out


def files_of(run: Run) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in Path(run.uri).rglob("*")}


def test_a_dry_run_describes_every_step_and_changes_nothing(trained_run, monkeypatch, capsys):
    monkeypatch.setattr(plans, "estimate_steps", lambda *_, **__: Estimate({}, 0.0, 0.0))
    before = files_of(trained_run)
    main(["--run", trained_run.uri, "--dry-run"])
    printed = capsys.readouterr().out
    assert "classifier, dry run: 0 of 1 epoch to do" in printed
    assert "maps, dry run: 4 of 4 units to do (14 of 14 images)" in printed
    for name, extent in (
        ("seeds", "4 of 4 units to do (14 of 14 images)"),
        ("segmenter", "2 of 2 epochs to do, 3 steps of 4 images each"),
        ("predictions", "1 of 1 unit to do (2 of 2 images)"),
    ):
        assert f"{name}, dry run: {extent}; details are known after the steps above are finished.\n" in printed
    end = "metrics of train, metrics of val, the contact sheet and the report.\npipeline: nothing was started, nothing"
    assert f"pipeline: then {end} was written.\n" in printed and printed.count("nothing was started") == 1
    assert files_of(trained_run) == before


def test_a_dry_run_of_a_finished_run_finds_nothing_to_do(predicted_run, capsys):
    with connect("in-process") as connection:
        launch_step(predicted_run, connection, "pseudo_labels")
    capsys.readouterr()
    main(["--run", predicted_run.uri, "--dry-run"])
    printed = capsys.readouterr().out
    assert printed.count("0 of 4 units to do") == 3 and "predictions, dry run: 0 of 1 unit to do" in printed
    assert "segmenter, dry run: 0 of 2 epochs to do, because it is already trained." in printed


def test_a_dry_run_is_refused_where_the_launch_would_stop(finished_maps_run):
    arguments = ["--run", finished_maps_run.uri, "--dry-run"]
    with pytest.raises(ValueError, match=r"maps\.num_samples: 8 -> 9"):
        main([*arguments, "--set", "maps.num_samples=9"])
    with pytest.raises(ValueError, match=r"--dry-run goes with --run"):
        main(["--demo", "--dry-run"])


@pytest.mark.parametrize("num_classes", [1, 80])
def test_class_lists_of_any_length_go_through(trained_run, drawn_images, tmp_path, num_classes):
    names = [*DRAWN_CLASS_NAMES, *(f"class {number}" for number in range(75))][:num_classes]
    known = [replace(image, labels=tuple(set(image.labels) & set(names))) for image in drawn_images]
    chosen = [image for image in known if image.labels][:6]
    images = [replace(image, split="val" if number > 3 else "train") for number, image in enumerate(chosen)]
    run = open_run(str(tmp_path / "other"), defaults=trained_run.config.model_dump())
    prepare(run, images, names)
    launch(run)
    assert len(list(Path(run.uri, "predictions/labels").iterdir())) == 2
    assert "Segmentation network" in Path(run.uri, "report/index.html").read_text()
