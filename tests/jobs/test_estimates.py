"""The estimate of a dry run: what is timed, how it is scaled, and what status makes of it."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.connect import Connection
from ficklenet.drawing import DRAWN_CLASS_NAMES
from jobs import generate_maps, run_pipeline, train_ficklenet
from jobs.cli import estimate as estimating
from jobs.cli import plans, timing
from jobs.cli.estimate import Estimate, estimate_steps
from jobs.cli.launch import launch_step
from jobs.cli.timing import Paces, TrainingPace, UnitPace
from jobs.cli.workload import computed_shares
from jobs.preparation.prepare import prepare
from jobs.reporting.run_status import run_status, status_lines
from jobs.run.directory import Run, open_run
from jobs.run.selection import is_tuning_image
from jobs.run.steps import BY_NAME, pipeline_steps
from jobs.steps.estimates import FILE, KeptEstimate, StepEstimate, read_estimates, time_at_work, write_estimates
from storage.manifest import ManifestRow, write_manifest
from storage.receipts import Receipt
from storage.units import Unit

HERE = Connection(num_cpus=2, num_gpus=0, num_nodes=1, in_process=True)
LOCAL = Connection(num_cpus=2, num_gpus=0, num_nodes=1, is_to_start=True, is_optional=True)
PACES = Paces(
    {
        "classifier": TrainingPace(0.5, 0.0, 0.25, 1.0, 1e6),
        "maps": UnitPace(1.0, 0.0, 100.0),
        "seeds": UnitPace(0.001, 0.0, 10.0),
    }
)


@pytest.fixture
def fresh_run(trained_run, drawn_images, tmp_path) -> Run:
    """A prepared run of which no step was started: 12 training images and 2 for validation, in units of 4."""
    run = open_run(str(tmp_path / "fresh"), defaults=trained_run.config.model_dump())
    prepare(run, drawn_images, DRAWN_CLASS_NAMES)
    return run


def test_a_fresh_pipeline_is_timed_and_each_step_gets_a_time_and_a_size(fresh_run, monkeypatch, capsys):
    monkeypatch.setattr(timing, "SECONDS", 0)  # one round
    monkeypatch.setattr(estimating, "_own_seconds", lambda: 1.0)
    before = set(Path(fresh_run.uri).rglob("*"))
    run_pipeline.main(["--run", fresh_run.uri, "--dry-run"])
    printed = capsys.readouterr().out
    assert "could not be timed" not in printed, printed
    names = [row.name for row in pipeline_steps(fresh_run.config)]
    kept = read_estimates(fresh_run)
    assert sorted(kept.steps) == sorted(names)
    assert all(each.seconds > 0 and each.bytes > 0 for each in kept.steps.values()) and kept.other_seconds > 1
    assert printed.count("(timed on a few images)") == len(names)
    assert set(Path(fresh_run.uri).rglob("*")) - before == {Path(fresh_run.uri, "estimate.json")}


def timed_in_one_round(run: Run, *settings: str) -> Paces:
    """What is timed of the whole pipeline of a run."""
    run = open_run(run.uri, None, settings)
    rows = pipeline_steps(run.config)
    found = timing.time_steps(run, rows, on_gpu=False, num_threads=1, with_report=False)
    assert [*found.steps] == [row.name for row in rows][: len(found.steps)]
    return found


@pytest.mark.parametrize(
    "settings",
    [
        ("classifier.learning_rate=1000", "seeds.evidence_threshold=1.0"),  # the training would diverge
        ("seeds.theta=1.0", "seeds.saliency_threshold=0.0", "classifier.learning_rate=5"),
        ("seeds.maps=refined", "cells.theta=1.0", "cells.evidence_threshold=0.0"),
        ("seeds.maps=refined", "cells.theta=1.0", "cells.evidence_threshold=1.0", "maps.classes=predicted"),
    ],
)
def test_every_step_is_timed_whatever_the_classifier_has_learnt(settings, fresh_run, monkeypatch):
    monkeypatch.setattr(timing, "SECONDS", 0)
    empty = []

    def launch_with_empty_maps(run, connection, name):
        launch_step(run, connection, name)
        if name in ("maps", "refined"):
            store = run.maps("r+", step=name)
            for receipt in run.step(name).receipts(with_objects=True).values():
                unit = Unit(receipt.unit, receipt.start, receipt.stop)
                maps = store.read_unit(unit)
                objects = store.write_unit(unit, 0 * maps.max, 0 * maps.mean, maps.score, maps.classes)
                run.step(name).write_receipt(replace(receipt, objects={**receipt.objects, **objects}))
            empty.append(name)

    monkeypatch.setattr(timing, "launch_step", launch_with_empty_maps)
    found = timed_in_one_round(fresh_run, *settings)
    assert found.problem == "" and "predictions" in found.steps and "segmenter" in found.steps
    assert empty == (["maps", "refined"] if "refined" in found.steps else ["maps"])


def test_drawn_maps_have_cells_of_each_class_and_of_none(finished_maps_run):
    timing._draw_maps(finished_maps_run, "maps")
    store = finished_maps_run.maps()
    for number in range(store.num_images):
        found = store.read(number)
        assert (found.max > 0).any(axis=(1, 2)).all()
        assert (found.max == 0).all(axis=0).any()
    launch_step(finished_maps_run, HERE, "seeds")  # accepts them


def test_one_of_the_timed_images_has_a_label(tmp_path):
    labels = [(0,) if 3 < number < 8 else () for number in range(12)]
    rows = [ManifestRow(f"t{n}", "x.png", each, split="train", negative=not each) for n, each in enumerate(labels)]
    run = run_of(tmp_path, rows)
    chosen = timing._chosen(run.config, run.manifest(), 2)
    assert chosen == [0, 4, 11]


def test_the_reason_names_no_temporary_run_and_its_commands_are_left_out(fresh_run):
    command = f"Lower it: 'python jobs/aggregate_seeds.py --run {fresh_run.uri} --restart seeds'."
    for text, expected in (
        (
            f"No image has a seed. All evidence is below 0.2. {command}",
            "No image has a seed. All evidence is below 0.2",
        ),
        (f"{fresh_run.uri}/maps: damaged.", "it failed in the temporary run"),
        ("pydensecrf is not installed.", "pydensecrf is not installed"),
    ):
        assert timing._problem("segmenter", ValueError(text), fresh_run) == f"segmenter: {expected}"


def test_the_round_before_counts_if_a_later_one_fails(fresh_run, monkeypatch):
    rounds = iter([Paces({"maps": UnitPace(1, 1, 1)}), Paces({}, problem="maps: it failed")])
    monkeypatch.setattr(timing, "_round", lambda *_, **__: next(rounds))
    found = timing.time_steps(fresh_run, [], on_gpu=False, num_threads=0, with_report=True)
    assert [*found.steps] == ["maps"] and not found.problem


def test_the_total_says_which_steps_are_not_in_it(fresh_run, monkeypatch, capsys):
    def broken(run, connection, name):
        if name == "segmenter":
            raise ValueError(f"no seeds. Lower seeds.theta: 'python jobs/aggregate_seeds.py --run {run.uri}'.")
        launch_step(run, connection, name)

    monkeypatch.setattr(timing, "SECONDS", 0)
    monkeypatch.setattr(timing, "launch_step", broken)
    run_pipeline.main(["--run", fresh_run.uri, "--dry-run", "--set", "cluster.price_per_hour=3.6"])
    printed = capsys.readouterr().out
    missing = "segmenter, predictions, metrics and report"
    assert f"pipeline: {missing} could not be timed (segmenter: no seeds).\n" in printed
    assert f"pipeline: without {missing}, which could not be timed, this takes about " in printed
    assert f"pipeline: The cost is without {missing}, so the run costs more: all machines for " in printed
    for wrong in ("all of this", "upper bound", "for metrics and the report", "ficklenet-timing"):
        assert wrong not in printed
    kept = read_estimates(fresh_run)
    assert sorted(kept.steps) == ["classifier", "maps", "pseudo_labels", "seeds"] and kept.other_seconds == 0


def test_a_begun_step_that_could_not_be_timed_is_estimated_by_its_records(finished_maps_run, monkeypatch):
    monkeypatch.setattr(estimating, "time_steps", lambda *_, **__: Paces({}, problem="classifier: no"))
    rows = [BY_NAME[name] for name in ("classifier", "maps", "seeds")]
    found = estimate_steps(finished_maps_run, HERE, rows, is_whole=False)
    assert found.untimed == ("seeds",) and {*found.steps} == {"classifier", "maps"}
    assert found.steps["maps"].seconds == 0  # it is finished


def test_the_total_has_a_price_if_one_is_given(fresh_run, monkeypatch, capsys):
    notes = (estimating.BUSY,)
    found = Estimate({"maps": StepEstimate(90, 2e6)}, start_seconds=10, end_seconds=20, notes=notes)
    monkeypatch.setattr(plans, "estimate_steps", lambda *_, **__: found)
    run_pipeline.main(["--run", fresh_run.uri, "--dry-run", "--set", "cluster.price_per_hour=3.6"])
    sentence = (
        "pipeline: all of this takes about 2 min 0 s and 2.0 MB, and costs 0.12 at 3.6 per hour. 10 s of this are"
    )
    total, upper_bound, busy, end = capsys.readouterr().out.splitlines()[-4:]
    assert total.startswith(sentence) and busy == f"pipeline: {estimating.BUSY}"
    assert upper_bound.endswith("upper bound: all machines for the whole time, without the requests to S3.")
    assert end.startswith("pipeline: nothing was started. The dry run wrote one file, ")


def test_the_steps_of_a_pipelines_dry_run_do_not_each_say_that_nothing_was_written(fresh_run, monkeypatch, capsys):
    for steps in ({"maps": StepEstimate(90, 2e6)}, {}):
        monkeypatch.setattr(plans, "estimate_steps", lambda *_, steps=steps, **__: Estimate(steps, 0, 0))
        run_pipeline.main(["--run", fresh_run.uri, "--dry-run"])
        printed = capsys.readouterr().out
        assert printed.count("nothing was started") == 1 and "upper bound" not in printed
        assert printed.count("nothing was written") == (0 if steps else 1)


@pytest.mark.parametrize(
    ("load", "cpus", "starts"),
    [
        (0.5, 0, []),
        (99, 0, ["This machine was busy"]),
        (0.5, 700, ["The trainings were timed with cluster.cpus_per_training_worker = 700 threads on this"]),
    ],
)
def test_the_estimate_says_what_the_machine_changed(load, cpus, starts, fresh_run, monkeypatch):
    monkeypatch.setattr(estimating, "time_steps", lambda *_, **__: PACES)
    monkeypatch.setattr(estimating, "_process_seconds", lambda: 2.0)
    monkeypatch.setattr("os.getloadavg", lambda: (load, load, load))
    run = open_run(fresh_run.uri, None, [f"cluster.cpus_per_training_worker={cpus}"])
    found = estimate_steps(run, HERE, [BY_NAME["classifier"]], is_whole=False)
    assert [note.startswith(start) for note, start in zip(found.notes, starts, strict=True)] == [True] * len(starts)


@pytest.mark.parametrize(("connection", "maps_seconds"), [(HERE, 14), (LOCAL, 8)])
def test_times_are_scaled_by_images_epochs_and_workers(connection, maps_seconds, fresh_run, monkeypatch):
    monkeypatch.setattr(estimating, "time_steps", lambda *_, **__: PACES)
    monkeypatch.setattr(estimating, "_process_seconds", lambda: 2.0)
    monkeypatch.setattr(estimating, "_own_seconds", lambda: 4.0)
    found = estimate_steps(fresh_run, connection, [BY_NAME[name] for name in PACES.steps], is_whole=False)
    # One epoch of one step of 10 images, a validation of 2 images, and a report
    assert found.steps["classifier"] == StepEstimate(10 * 0.5 + 2 * 0.25 + 1.0, 1e6)
    assert found.steps["maps"] == StepEstimate(maps_seconds, 1400.0)  # units of 4, 4, 4 and 2 on one or two workers
    assert found.steps["seeds"].seconds == pytest.approx(0.014)
    on_ray = 0 if connection.in_process else 5 + 2 * 1.5  # only the maps start workers of Ray
    own = 4 if connection.in_process else 2  # a launch starts no slower than a worker
    assert found.start_seconds == own + on_ray
    assert found.seconds == pytest.approx(sum(step.seconds for step in found.steps.values()) + found.start_seconds)


def test_the_start_of_processes_is_measured_when_their_files_are_in_memory(monkeypatch):
    class Process:
        """The first two start slowly, as those after an installation do."""

        number = 0

        def __init__(self, *_, **__):
            Process.number += 1
            self.seconds = 0.4 if Process.number <= 2 else 0.01

        def wait(self):
            time.sleep(self.seconds)

    monkeypatch.setattr(estimating.subprocess, "Popen", Process)
    assert 0.02 <= estimating._process_seconds() < 0.4 and Process.number == 4


def test_what_is_finished_is_not_estimated_again(trained_run, monkeypatch):
    monkeypatch.setattr(estimating, "time_steps", lambda *_, **__: PACES)
    found = estimate_steps(trained_run, HERE, [BY_NAME["classifier"], BY_NAME["maps"]], is_whole=False)
    assert found.steps["classifier"] == StepEstimate(0.0, 0.0) and found.steps["maps"].seconds == 14


def test_a_frozen_backbone_costs_a_pass_for_each_image_and_its_mirror_image(fresh_run, monkeypatch):
    pace = TrainingPace(0.0, 1.0, 0.0, 0.0, 1.0)
    monkeypatch.setattr(estimating, "time_steps", lambda *_, **__: Paces({"classifier": pace}))
    run = open_run(fresh_run.uri, None, ["classifier.epochs=30"])
    found = estimate_steps(run, HERE, [BY_NAME["classifier"]], is_whole=False)
    assert found.steps["classifier"].seconds == pytest.approx(2 * 12 + 2, abs=1e-3)


def test_a_step_of_its_own_is_timed_if_nothing_of_it_is_finished(fresh_run, finished_maps_run, monkeypatch, capsys):
    asked = []

    def estimate(run, connection, rows, *, is_whole, restarted):
        asked.append([row.name for row in rows])
        return Estimate({name: StepEstimate(90, 2e6) for name in asked[-1]}, 0, 0)

    monkeypatch.setattr(plans, "estimate_steps", estimate)
    train_ficklenet.main(["--run", fresh_run.uri, "--dry-run"])
    assert "  time:    about 1 min 30 s (timed on a few images)\n" in capsys.readouterr().out
    generate_maps.main(["--run", finished_maps_run.uri, "--dry-run"])
    assert asked == [["classifier"]]
    assert not Path(fresh_run.uri, "estimate.json").exists()


def test_a_refused_launch_is_refused_before_anything_is_timed(fresh_run, monkeypatch):
    monkeypatch.setattr(plans, "estimate_steps", lambda *_, **__: pytest.fail("timed"))
    with pytest.raises(ValueError, match="train_ficklenet"):
        generate_maps.main(["--run", fresh_run.uri, "--dry-run"])


def test_status_compares_the_estimate_with_the_real_time(finished_maps_run):
    estimates = {"classifier": StepEstimate(100, 1), "maps": StepEstimate(200, 1)}
    write_estimates(finished_maps_run, KeptEstimate(estimates))
    status = run_status(finished_maps_run)
    lines = [line for line in status_lines(status) if line.startswith("  took ")]
    assert [line.partition("; ")[2] for line in lines] == ["the estimate was 1 min 40 s", "the estimate was 3 min 20 s"]
    assert all(" s without the time to start processes (the log includes it); " in line for line in lines)
    assert all(step.seconds > 0 for step in status.steps[:2])
    assert status.steps[2].estimated_seconds is None


def test_status_compares_the_whole_estimate_with_the_real_time(finished_maps_run):
    assert "pipeline" not in "".join(status_lines(run_status(finished_maps_run)))  # there was no dry run
    estimates = {"classifier": StepEstimate(100, 1), "maps": StepEstimate(200, 1)}
    write_estimates(finished_maps_run, KeptEstimate(estimates, other_seconds=30))
    status = run_status(finished_maps_run)
    assert status.seconds == sum(step.seconds for step in status.steps[:2])
    line = status_lines(status)[-1]
    assert line.startswith("pipeline: classifier and maps took ") and " until now," not in line and "all" not in line
    assert "; the estimate of the same was 5 min 0 s. There is " in line
    assert line.endswith("no estimate of seeds, pseudo-labels, segmenter and predictions")
    rest = {name: StepEstimate(3, 1) for name in ("seeds", "pseudo_labels", "segmenter", "predictions")}
    write_estimates(finished_maps_run, KeptEstimate(estimates | rest, other_seconds=30))
    line = status_lines(run_status(finished_maps_run))[-1]
    assert line.startswith("pipeline: all of this took ") and " until now, without the start of processes, " in line
    assert line.endswith("the metrics and the report; the estimate was 5 min 12 s, and 5 min 42 s with them")
    write_estimates(finished_maps_run, KeptEstimate(estimates | rest))  # the start and the end are not known
    assert status_lines(run_status(finished_maps_run))[-1].endswith("the estimate was 5 min 12 s")


def test_status_of_a_fresh_run_has_the_estimate(fresh_run):
    estimates = {row.name: StepEstimate(50, 1) for row in pipeline_steps(fresh_run.config)}
    write_estimates(fresh_run, KeptEstimate(estimates, other_seconds=30))
    line = status_lines(run_status(fresh_run))[-1]
    assert line == "pipeline: nothing is started yet; the estimate of all of this was 5 min 30 s"
    write_estimates(fresh_run, KeptEstimate({"maps": estimates["maps"]}, other_seconds=30))
    assert status_lines(run_status(fresh_run))[-1].endswith("; the estimate of maps was 50 s")


def test_a_later_dry_run_keeps_the_estimates_of_begun_steps(trained_run, monkeypatch):
    write_estimates(trained_run, KeptEstimate({"classifier": StepEstimate(100, 1), "maps": StepEstimate(200, 1)}))
    found = Estimate({"classifier": StepEstimate(0, 0), "maps": StepEstimate(90, 2)}, start_seconds=10, end_seconds=20)
    monkeypatch.setattr(plans, "estimate_steps", lambda *_, **__: found)
    run_pipeline.main(["--run", trained_run.uri, "--dry-run"])
    kept = {"classifier": StepEstimate(100, 1), "maps": StepEstimate(90, 2, num_images=14)}
    assert read_estimates(trained_run) == KeptEstimate(kept, 30)


def test_an_estimate_of_an_earlier_version_is_read(fresh_run):
    Path(fresh_run.uri, FILE).write_text('{"steps": {"maps": {"seconds": 90.0, "bytes": 2.0}}}')
    assert read_estimates(fresh_run) == KeptEstimate({"maps": StepEstimate(90, 2)})


def test_time_at_work_counts_parallel_workers_once_and_no_pauses():
    times = [(4, 10), (5, 10), (3, 20)]  # seconds, finished
    assert time_at_work(Receipt(n, n, n + 1, *pair) for n, pair in enumerate(times)) == 5 + 3


def test_rounds_take_more_images_while_there_is_time_and_a_fixed_time_is_not_scaled(fresh_run, monkeypatch):
    numbers = []

    def pretended_round(*_, num_training, **__):
        numbers.append(num_training)
        return Paces({}, evaluation_seconds=3.0 + 0.1 * num_training, num_measured=num_training)

    monkeypatch.setattr(timing, "_round", pretended_round)
    found = timing.time_steps(fresh_run, [], on_gpu=False, num_threads=0, with_report=True)
    assert numbers == [2, 12]  # all training images; a third round would have no more
    assert found.evaluation_seconds / found.num_measured == pytest.approx(0.1)


def run_of(tmp_path, rows, *settings: str) -> Run:
    """A run with a manifest of images that are not read, in units of 4, on one worker."""
    run = open_run(str(tmp_path / "listed"), None, ["unit_size=4", "cluster.address=in-process", *settings])
    write_manifest(run.location / "manifest.parquet", rows, ("cat",))
    return run


def estimate_of(run, monkeypatch, **paces):
    monkeypatch.setattr(estimating, "time_steps", lambda *_, **__: Paces(paces))
    return estimate_steps(run, HERE, [BY_NAME[name] for name in paces], is_whole=False).steps


def test_cells_are_estimated_for_the_images_whose_cells_are_used(tmp_path, monkeypatch):
    rows = [ManifestRow(f"t{n}", "x.png", (0,), split="train") for n in range(60)]
    rows += [ManifestRow(f"v{n}", "x.png", (0,), split="val") for n in range(20)]
    run = run_of(tmp_path, rows, "cells.max_images=6")
    found = estimate_of(run, monkeypatch, cells=UnitPace(seconds=2.0, finish_seconds=3.0, bytes=100.0))
    assert found["cells"].seconds == pytest.approx(6 * (2.0 + 3.0)) and found["cells"].bytes == pytest.approx(600)
    every = run_of(tmp_path, rows, "cells.max_images=4000")
    found = estimate_of(every, monkeypatch, cells=UnitPace(seconds=2.0, finish_seconds=3.0, bytes=100.0))
    assert found["cells"].seconds == pytest.approx(60 * (2.0 + 3.0)) and found["cells"].bytes == pytest.approx(6000)


def test_images_without_classes_are_only_read(tmp_path, monkeypatch):
    rows = [ManifestRow(f"a{n}", "x.png", (0,), split="train") for n in range(8)]
    rows += [ManifestRow(f"b{n}", "x.png", (), split="train") for n in range(32)]
    pace = UnitPace(seconds=2.0, finish_seconds=0.0, bytes=100.0, reading_seconds=0.25)
    names = ("maps", "refined", "pseudo_labels")
    found = estimate_of(run_of(tmp_path, rows), monkeypatch, **dict.fromkeys(names, pace))
    assert {found[name] for name in names} == {StepEstimate(8 * 2.0 + 32 * 0.25, 800.0)}
    predicting = run_of(tmp_path, rows, "maps.classes=predicted")
    assert estimate_of(predicting, monkeypatch, maps=pace)["maps"] == StepEstimate(40 * 2.0, 4000.0)


def test_predictions_are_estimated_for_the_usable_images_of_their_splits(tmp_path, monkeypatch):
    rows = [ManifestRow(f"t{n}", "x.png", (0,), split="train") for n in range(30)]
    rows += [ManifestRow(f"v{n}", "x.png", (0,), split="val", problem="too large" if n else None) for n in range(4)]
    found = estimate_of(run_of(tmp_path, rows), monkeypatch, predictions=UnitPace(2.0, 0.0, 100.0))
    assert found["predictions"] == StepEstimate(2.0, 100.0)


def test_features_that_there_is_no_room_for_cost_a_pass_in_each_epoch(tmp_path, monkeypatch):
    run = run_of(tmp_path, [ManifestRow(f"t{n}", "x.png", (0,), split="train") for n in range(10)])
    settings = ("classifier.epochs=20", "classifier.min_steps=1", "classifier.kept_features_gb=1")
    run = run_of(tmp_path, list(run.manifest().iter_rows()), *settings)
    pace = TrainingPace(0.0, 1.0, 0.0, 0.0, 1.0, feature_bytes=100_000_000)  # room for 10 of the 20 views
    found = estimate_of(run, monkeypatch, classifier=pace)
    assert found["classifier"].seconds == pytest.approx((2 * 10 + 20 * 10) / 2, abs=1e-3)


def test_what_is_timed_of_the_cells_is_a_price_per_image_whose_cells_are_used(finished_maps_run):
    launch_step(finished_maps_run, HERE, "cells")
    shares = computed_shares(BY_NAME["cells"], finished_maps_run.manifest(), finished_maps_run.config)
    assert shares.tolist() == [1.0] * 12 + [0.0] * 2  # the last two are for validation
    stored = finished_maps_run.step("cells").location.usage()[1]
    pace = timing._unit_pace(finished_maps_run, BY_NAME["cells"])
    assert pace.bytes == pytest.approx(stored / 12) and pace.reading_seconds == 0
    receipts = finished_maps_run.step("cells").receipts()
    assert pace.seconds == pytest.approx(sum(receipts[unit].seconds for unit in (1, 2)) / 8)


def test_the_evaluation_is_estimated_for_the_images_that_the_pipeline_measures(tmp_path):
    rows = [ManifestRow(f"t{n}", "x.png", (0,), split="train", mask_uri="x.png") for n in range(40)]
    rows += [ManifestRow(f"v{n}", "x.png", (0,), split="val", mask_uri="x.png") for n in range(5)]
    num_reported = sum(not is_tuning_image(row.image_id) for row in rows[:40])
    paces = Paces({}, evaluation_seconds=6.0, num_measured=3)
    assert estimating._end_seconds(run_of(tmp_path, rows), paces) == pytest.approx(2.0 * (num_reported + 5))
    assert num_reported < 40
