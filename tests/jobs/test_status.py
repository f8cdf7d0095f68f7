"""The status of a run: before, during and after a step, for people and for programs."""

import json
import os
import shutil
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.connect import connect
from jobs import status
from jobs.cli.launch import launch_step
from jobs.evaluation.measuring import evaluate_labels, sweep
from jobs.reporting.run_status import _step_lines, run_status
from jobs.run.directory import open_run
from jobs.run.selection import Selection
from jobs.run.training_record import read_complete
from jobs.steps.evaluation_state import read_metrics
from storage.location import Location
from storage.manifest import write_manifest
from storage.records import read_json_lines, seal
from storage.steps import Skipped, Step


def write_beat(step: Location, *, age: float = 0.0, **changes: object) -> None:
    beat = {"launch": "1-of-1", "host": "elsewhere", "pid": 1, "started": time.time() - 100}
    place = step / "drivers/1-of-1.json"
    place.write_bytes(json.dumps(beat | changes).encode())
    os.utime(place.uri, times=(time.time() - age, time.time() - age))


def maps_status(run):
    return next(step for step in run_status(run).steps if step.name == "maps")


def test_steps_of_a_run_are_told_in_order(finished_maps_run):
    found = run_status(finished_maps_run)
    assert (found.images, found.classes) == (14, 5)
    assert [(step.name, step.state, step.done, step.left) for step in found.steps] == [
        ("classifier", "done", 1, 0),
        ("maps", "done", 14, 0),
        ("seeds", "not started", 0, 14),
        ("pseudo-labels", "not started", 0, 14),
        ("segmenter", "not started", 0, 2),
        ("predictions", "not started", 0, 2),
        ("evaluation", "not started", 0, 0),
    ]
    maps = found.steps[1]
    files = [path for path in Path(finished_maps_run.uri, "maps").rglob("*") if path.is_file()]
    assert (maps.objects, maps.bytes) == (len(files), sum(path.stat().st_size for path in files))
    assert maps.drivers == []


def test_the_optional_steps_that_the_settings_need_are_listed_before_they_start(finished_maps_run):
    settings = ["seeds.maps=refined", "predictions.network=retrained"]
    found = run_status(open_run(finished_maps_run.uri, None, settings))
    states = {step.name: (step.state, step.left) for step in found.steps}
    assert list(states) == [
        *("classifier", "maps", "cells", "refined", "seeds", "pseudo-labels", "segmenter", "retrained"),
        *("predictions", "evaluation"),
    ]
    assert states["cells"] == states["refined"] == ("not started", 14)


def test_a_launch_without_a_result_may_wait_for_nodes(finished_maps_run):
    write_beat(finished_maps_run.location / "seeds")
    seeds = next(step for step in run_status(finished_maps_run).steps if step.name == "seeds")
    assert (seeds.state, seeds.done) == ("running", 0)
    assert "nothing is finished yet" in "".join(_step_lines(seeds, set()))


def test_a_step_runs_as_long_as_its_driver_gives_signs(finished_maps_run):
    step = Step(finished_maps_run.location / "maps")
    (step.location / "done/000002.json").delete()
    assert maps_status(finished_maps_run).state == "partly done"
    write_beat(step.location)
    running = maps_status(finished_maps_run)
    assert (running.state, running.done, running.left) == ("running", 10, 4)
    assert not any("nothing is finished yet" in line for line in _step_lines(running, set()))
    assert running.drivers[0].host == "elsewhere"
    write_beat(step.location, age=1000)
    stale = maps_status(finished_maps_run)
    assert (stale.state, stale.drivers[0].is_stale) == ("partly done", True)


def test_the_pace_is_that_of_the_drivers_at_work(finished_maps_run):
    step, now = Step(finished_maps_run.location / "maps"), time.time()
    receipts = step.receipts()
    for number, finished in ((0, now - 5000), (1, now - 20), (3, now - 10)):  # unit 0: of an earlier launch
        step.write_receipt(replace(receipts[number], finished=finished))
    (step.location / "done/000002.json").delete()
    write_beat(step.location)
    running = maps_status(finished_maps_run)
    assert running.pace == pytest.approx(2 / 10)  # unit 3 has two images
    assert running.seconds_left == pytest.approx(4 / 0.2)


def test_network_and_predictions_are_told_and_outdated_with_what_they_were_made_of(predicted_run, capsys):
    def network_and_predictions() -> list[tuple[str, str, int, int]]:
        steps = run_status(predicted_run).steps[4:6]
        return [(step.unit, step.state, step.done, step.left) for step in steps]

    assert network_and_predictions() == [("epochs", "done", 2, 0), ("images", "done", 2, 0)]  # 2 of 14 are predicted
    (predicted_run.location / "segmenter/complete.json").delete()
    assert network_and_predictions() == [("epochs", "partly done", 2, 0), ("images", "outdated", 2, 0)]
    status.main(["--run", predicted_run.uri])
    predict = f"python jobs/predict_masks.py --run {predicted_run.uri} --restart predictions"
    assert f"  compute again, when segmenter is finished: {predict}\n" in capsys.readouterr().out
    with connect("in-process") as connection:
        launch_step(open_run(predicted_run.uri, None, ["seeds.theta=0.5"]), connection, "seeds", restart=True)
    assert [state for _, state, _, _ in network_and_predictions()] == ["outdated", "outdated"]
    status.main(["--run", predicted_run.uri])
    printed = capsys.readouterr().out
    assert f"compute again: python jobs/train_segmentation.py --run {predicted_run.uri} --restart segmenter" in printed


def test_people_read_what_was_skipped_who_works_and_how_to_go_on(finished_maps_run, capsys):
    step = Step(finished_maps_run.location / "maps")
    step.write_receipt(replace(step.receipts()[1], skipped=(Skipped("scene_0004", "empty file"),)))
    (step.location / "done/000002.json").delete()
    write_beat(step.location, age=1000)
    status.main(["--run", finished_maps_run.uri])
    text = capsys.readouterr().out
    assert "maps: partly done; 9 images done, 1 skipped, 4 left; " in text
    assert "  skipped 1: empty file (scene_0004)\n" in text
    assert "driver 1-of-1 on elsewhere (process 1): last heartbeat 16 min 40 s ago, probably killed" in text
    assert f"continue: python jobs/generate_maps.py --run {finished_maps_run.uri}" in text
    assert f"seeds: not started; python jobs/aggregate_seeds.py --run {finished_maps_run.uri}" in text


def test_images_that_a_training_skipped_are_told_like_those_of_other_steps(finished_maps_run, capsys):
    place = finished_maps_run.location / "classifier" / "metrics.jsonl"
    (line,) = read_json_lines(place, "an epoch's metrics")
    line |= {"skipped": 2, "skipped_images": {"scene_0004": "cut off", "scene_0001": "cut off"}}
    place.write_bytes(json.dumps(line).encode() + b"\n")
    status.main(["--run", finished_maps_run.uri])
    assert "  skipped 2: cut off (scene_0004, scene_0001)\n" in capsys.readouterr().out
    classifier = run_status(finished_maps_run).steps[0]
    assert (classifier.num_skipped, classifier.skipped) == (2, {"cut off": ["scene_0004", "scene_0001"]})


def test_the_evaluation_is_told_by_its_metrics(seeded_run, map_images, drawn_images, capsys):
    def told(run) -> str:
        status.main(["--run", run.uri])
        return capsys.readouterr().out.splitlines()[-1]

    measure = f"python jobs/evaluate.py --run {seeded_run.uri}"
    both = f"{measure} --split=train --part=all && {measure} --split=val"  # of train, 9 masks are in the report part
    assert told(seeded_run) == f"evaluation: not started; {both}"
    with connect("in-process") as connection:
        evaluate_labels(seeded_run, connection, [], None, ("map",), deterministic=False)
    capsys.readouterr()
    assert told(seeded_run).startswith("evaluation: done; 5 metrics done; ")
    (seeded_run.location / "classifier/complete.json").delete()
    assert told(seeded_run) == f"  compute again: {both.replace('=all', '=report')}"  # as it was measured

    only_val = [replace(image, mask_uri=image.mask_uri if image.split == "val" else None) for image in drawn_images]
    run = map_images(only_val)
    assert told(run) == f"evaluation: not started; python jobs/evaluate.py --run {run.uri} --split=val"


def test_an_evaluation_is_outdated_with_the_network_alone_and_trials_are_none(predicted_run):
    def state() -> tuple[str, str]:
        step = run_status(predicted_run).steps[-1]
        return step.state, step.command.replace(f"python jobs/evaluate.py --run {predicted_run.uri} ", "")

    with connect("in-process") as connection:
        sweep(predicted_run, connection, ["theta=0.1"], [], None, deterministic=False)
        assert state() == ("not started", "--split=train && --split=val")  # the tune part has chosen settings
        evaluate_labels(predicted_run, connection, ["train"], "all", ("map",), deterministic=False)
        evaluate_labels(predicted_run, connection, ["val"], None, ("map",), deterministic=False)
    assert state()[0] == "done"
    folder = predicted_run.data("segmenter")
    (folder / "complete.json").write_bytes(json.dumps(read_complete(folder) | {"sha256": "of another"}).encode())
    assert state() == ("outdated", "--split=val")


def test_an_evaluation_is_outdated_with_the_settings_of_the_seeds(seeded_run):
    with connect("in-process") as connection:
        evaluate_labels(seeded_run, connection, [], None, ("map",), deterministic=False)
        assert run_status(seeded_run).steps[-1].state == "done"
        changed = open_run(seeded_run.uri, None, ["seeds.theta=0.5"])
        launch_step(changed, connection, "seeds", restart=True)
        assert run_status(changed).steps[-1].state == "outdated"
        evaluate_labels(changed, connection, [], None, ("map",), deterministic=False)
    assert run_status(changed).steps[-1].state == "done"


def test_an_evaluation_is_outdated_as_long_as_one_recorded_figure_is_of_earlier_results(predicted_run):
    def state() -> tuple[str, str]:
        step = run_status(predicted_run).steps[-1]
        return step.state, step.command.replace(f"python jobs/evaluate.py --run {predicted_run.uri} ", "")

    with connect("in-process") as connection:
        launch_step(predicted_run, connection, "pseudo_labels")
        evaluate_labels(predicted_run, connection, ["val"], None, ("map", "image"), deterministic=True)
        evaluate_labels(predicted_run, connection, ["train"], "all", ("map",), deterministic=False)
    assert state()[0] == "done"
    one_is_old = {
        ("predictions", "map", "--split=val"): {"segmenter": "of an earlier network"},
        ("predictions without CRF", "image", "--split=val"): {"settings": {"predictions": {"scales": [9.0]}}},
        ("pseudo-labels", "map", "--split=train --part=all"): {"settings": {"pseudo_labels": {"max_side": 9}}},
        ("seeds", "map", "--split=train --part=all"): {"made_from": {"seeds": "of earlier seeds"}},
        ("deterministic seeds", "image", "--split=val --deterministic"): {"classifier": "of an earlier classifier"},
    }
    place, measured = predicted_run.location / "evaluation" / "metrics.json", read_metrics(predicted_run)
    for (labels, resolution, command), changes in one_is_old.items():
        split = command.split()[0].removeprefix("--split=")
        records = [
            each
            | (changes if [each["labels"], each["resolution"], *each["splits"]] == [labels, resolution, split] else {})
            for each in measured
        ]
        assert records != measured
        place.write_bytes(seal({"metrics": records}))
        assert state() == ("outdated", command), labels


@pytest.fixture
def report_part_run(seeded_run):
    """A run with figures of the report part of `train`."""
    with connect("in-process") as connection:
        evaluate_labels(seeded_run, connection, ["train"], None, ("map",), deterministic=False)
    return seeded_run


def give_mask(run, name: str, address: str) -> None:
    """Changes the address of a mask in the run's manifest, as an import does."""
    manifest = run.manifest()
    rows = [replace(row, mask_uri=address if row.image_id == name else row.mask_uri) for row in manifest.iter_rows()]
    write_manifest(run.location / "manifest.parquet", rows, manifest.class_names, manifest.class_values)


def test_an_evaluation_is_outdated_with_the_masks_that_it_measured(report_part_run, capsys):
    run = report_part_run
    selection = Selection(("train",), "report")
    measured = [row for row in run.manifest().iter_rows() if selection.includes(row.image_id, row.split)]
    for other in (row for row in run.manifest().iter_rows() if row not in measured):
        give_mask(run, other.image_id, f"corrected/1/{other.image_id}.png")
    assert run_status(run).steps[-1].state == "done"  # masks of the tune part and of other splits were not measured
    give_mask(run, measured[-1].image_id, f"corrected/1/{measured[-1].image_id}.png")
    capsys.readouterr()
    status.main(["--run", run.uri])
    printed = capsys.readouterr().out
    assert "evaluation: outdated; " in printed
    assert "  masks were added or changed since\n" in printed
    measure = f"python jobs/evaluate.py --run {run.uri}"
    assert f"  compute again: {measure} --split=train --part=report && {measure} --split=val\n" in printed
    place = run.location / "evaluation" / "metrics.json"
    older = [{name: value for name, value in each.items() if name != "masks"} for each in read_metrics(run)]
    place.write_bytes(seal({"metrics": older}))
    assert run_status(run).steps[-1].state == "done"  # figures of a version that recorded no masks


def test_a_run_that_was_moved_has_the_same_masks(report_part_run, tmp_path):
    moved = shutil.move(report_part_run.uri, tmp_path / "moved")
    assert run_status(open_run(str(moved))).steps[-1].state == "done"


def test_an_evaluation_without_masks_is_not_possible(map_images, drawn_images, capsys):
    run = map_images([replace(image, mask_uri=None) for image in drawn_images])
    status.main(["--run", run.uri])
    sentence = "evaluation: no figures, because none of the images to measure has a mask; nothing else needs one\n"
    assert capsys.readouterr().out.endswith(sentence)


def test_rows_that_share_an_id_are_counted_each(finished_maps_run):
    step = Step(finished_maps_run.location / "maps")
    twice = (Skipped("scene_0004", "its id is already taken by an earlier image"),) * 2
    step.write_receipt(replace(step.receipts()[1], skipped=twice))
    maps = maps_status(finished_maps_run)
    assert (maps.done, maps.num_skipped) == (12, 2)


def test_programs_read_one_json_object(finished_maps_run, capsys):
    status.main(["--run", finished_maps_run.uri, "--json"])
    found = json.loads(capsys.readouterr().out)
    names = ["classifier", "maps", "seeds", "pseudo-labels", "segmenter", "predictions", "evaluation"]
    assert [step["name"] for step in found["steps"]] == names
    assert found["steps"][1]["state"] == "done"


def test_status_changes_nothing(finished_maps_run):
    def files() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in Path(finished_maps_run.uri).rglob("*")}

    before = files()
    run_status(finished_maps_run)
    assert files() == before


def test_a_driver_at_work_here_is_seen(finished_maps_run):
    write_beat(finished_maps_run.location / "maps", host=socket.gethostname(), pid=os.getpid())
    [driver] = maps_status(finished_maps_run).drivers
    assert not driver.is_stale


def test_a_run_without_manifest_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="has no manifest"):
        status.main(["--run", str(tmp_path)])
