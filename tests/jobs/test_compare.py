"""Runs side by side, and the list of images to look at first."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.connect import connect
from ficklenet.drawing import DRAWN_CLASS_NAMES
from ficklenet.metrics import disagreement, map_mismatch
from ficklenet.seeds import resize_labels
from jobs import compare
from jobs.cli.launch import launch_step
from jobs.evaluation.measuring import evaluate_labels
from jobs.preparation.prepare import prepare
from jobs.reporting.changes import find_changes
from jobs.reporting.comparison import metrics_side_by_side
from jobs.reporting.page import write_report
from jobs.reporting.review import review_list
from jobs.run.directory import Run, open_run, record_run
from jobs.steps.evaluation_state import read_metrics
from storage.manifest import write_manifest
from storage.records import seal
from storage.units import plan_units


def measure(run: Run, labels: str, value: float | None, part: str = "report") -> None:
    """Writes one measurement as `evaluate` does."""
    figures = dict.fromkeys(("mean_iou", "foreground_precision", "foreground_recall"), value)
    record = {"labels": labels, "splits": ["train"], "part": part, "resolution": "map", "num_images": 9, **figures}
    record |= {"classifier": None, "settings": {"seeds": (run.step("seeds").fingerprint() or {}).get("seeds", {})}}
    (run.location / "evaluation" / "metrics.json").write_bytes(json.dumps({"metrics": [record]}).encode())


def test_settings_that_differ_and_metrics_stand_side_by_side(seeded_run, finished_maps_run, capsys):
    other = open_run(finished_maps_run.uri, None, ["seeds.theta=0.5", "predictions.scales=0.75,1"])
    record_run(other)
    measure(seeded_run, "seeds", 0.4321)
    measure(finished_maps_run, "seeds", None)
    compare.main([seeded_run.uri, finished_maps_run.uri])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["seeds.theta", "0.35", "0.5"] in lines and ["predictions.scales", "1.0", "0.75,1.0"] in lines
    assert not any(line[:1] == ["unit_size"] for line in lines)
    assert ["seeds,", "train,", "report", "part,", "map", "resolution,", "mIoU", "0.432", "-"] in lines


def test_figures_of_other_seeds_than_the_run_has_now_are_named(seeded_run, finished_maps_run, capsys):
    measure(finished_maps_run, "seeds", 0.4321)
    measure(seeded_run, "seeds", 0.4321)
    compare.main([seeded_run.uri, finished_maps_run.uri])
    assert "WARNING" not in capsys.readouterr().out
    place = seeded_run.location / "evaluation" / "metrics.json"
    record = json.loads(place.read_bytes())
    record["metrics"][0]["settings"]["seeds"]["theta"] = 0.9
    place.write_bytes(json.dumps(record).encode())
    compare.main([seeded_run.uri, finished_maps_run.uri])
    printed = capsys.readouterr().out
    assert f"  WARNING: the figures of {seeded_run.uri} are outdated, because results or masks have changed" in printed
    assert f"Measure again: python jobs/evaluate.py --run {seeded_run.uri}" in printed


def test_figures_of_an_earlier_network_have_a_mark_and_are_not_the_same(predicted_run, tmp_path, capsys):
    with connect("in-process") as connection:
        evaluate_labels(predicted_run, connection, ["val"], None, ("map",), deterministic=False)
    other = open_run(shutil.copytree(predicted_run.uri, tmp_path / "other"))
    place = other.location / "evaluation" / "metrics.json"
    old = [each | {"segmenter": each["segmenter"] and "of an earlier network"} for each in read_metrics(other)]
    place.write_bytes(seal({"metrics": old}))
    compare.main([predicted_run.uri, other.uri, "--page", str(tmp_path / "page.html"), "--labels", "predictions"])
    printed = capsys.readouterr().out
    assert re.search(r"predictions, val, map resolution, mIoU +0\.\d+ +0\.\d+ \[1\]\n", printed)
    assert not re.search(r"seeds, val, map resolution, mIoU .*\[", printed)
    assert "\n  [1] measured with an earlier network\n" in printed
    page = (tmp_path / "page.html").read_text()
    differ, same = page.split("metrics are the same in all runs")
    assert "<td>predictions, val, map resolution, mIoU</td>" in differ and "[1] measured with an earlier" in differ
    assert "predictions" not in same.split("</table>")[0]


def test_metrics_that_differ_come_first_and_the_miou_of_predictions_before_all(predicted_run, tmp_path, capsys):
    with connect("in-process") as connection:
        evaluate_labels(predicted_run, connection, ["val"], None, ("map", "image"), deterministic=False)
    other = open_run(shutil.copytree(predicted_run.uri, tmp_path / "other"))
    place = other.location / "evaluation" / "metrics.json"
    figures = dict.fromkeys(("mean_iou", "foreground_precision", "foreground_recall"), 0.1234)
    records = [each | (figures if each["labels"] in ("seeds", "predictions") else {}) for each in read_metrics(other)]
    place.write_bytes(seal({"metrics": records}))
    compare.main([predicted_run.uri, other.uri])
    printed = capsys.readouterr().out
    differ, same = printed.split("metrics that differ")[1].split(" are the same in all runs")
    assert "WARNING" not in printed
    titles = [line.split("  ")[1] for line in differ.splitlines()[1:] if line.startswith("  ") and "," in line]
    assert titles[:3] == [
        "predictions, val, image resolution, mIoU",
        "seeds, val, image resolution, mIoU",
        "predictions, val, map resolution, mIoU",
    ]
    assert all(title.startswith(("predictions, ", "seeds, ")) and "0.123" not in same for title in titles)
    assert "  predictions without CRF, val, image resolution, mIoU" in same
    assert re.search(r"\n  \d+ metrics$", differ)


def test_of_several_settings_the_current_ones_are_compared(seeded_run, finished_maps_run):
    with connect("in-process") as connection:
        evaluate_labels(seeded_run, connection, ["val"], None, ("map",), deterministic=False)
    place = seeded_run.location / "evaluation" / "metrics.json"
    now = read_metrics(seeded_run)
    old = [each | {"settings": {"seeds": {"theta": 0.9}}, "mean_iou": 0.123} for each in now]
    place.write_bytes(seal({"metrics": now + old}))
    rows = metrics_side_by_side([seeded_run, finished_maps_run])
    assert rows.rows and not rows.notes and not any("0.123" in row.cells[0] for row in rows.rows)
    place.write_bytes(seal({"metrics": old}))
    rows = metrics_side_by_side([seeded_run, finished_maps_run])
    assert rows.notes == ("[1] measured with seeds.theta = 0.9",)
    assert all(row.cells[0].endswith(" [1]") for row in rows.rows)


def test_one_run_cannot_be_compared_and_equal_ones_say_so(seeded_run, capsys):
    with pytest.raises(ValueError, match=r"given only .*\. Give two runs or more"):
        compare.main([seeded_run.uri])
    compare.main([seeded_run.uri, seeded_run.uri])
    printed = capsys.readouterr().out
    assert printed.startswith(
        f"  WARNING: {seeded_run.uri} is given more than once, so these columns are the same run.\n"
    )
    assert "All settings are the same." in printed
    evaluate = f"python jobs/evaluate.py --run {seeded_run.uri}"
    assert f"None of these runs has metrics: '{evaluate}' makes them. To see the images whose" in printed


def test_settings_of_the_cluster_and_the_metrics_of_one_run_alone_are_left_out(seeded_run, finished_maps_run, capsys):
    record_run(open_run(finished_maps_run.uri, None, ["cluster.address=local"]))
    measure(seeded_run, "seeds", 0.4321)
    shutil.rmtree(finished_maps_run.uri + "/evaluation", ignore_errors=True)
    compare.main([seeded_run.uri, finished_maps_run.uri])
    printed = capsys.readouterr().out
    assert "cluster.address" not in printed and "0.432" not in printed
    evaluate = f"'python jobs/evaluate.py --run {finished_maps_run.uri}' makes them"
    assert f"  {finished_maps_run.uri} has no metrics: {evaluate}.\n" in printed


def test_outdated_labels_are_named_before_the_figure(predicted_run, tmp_path, capsys):
    shutil.copytree(predicted_run.uri, tmp_path / "other")
    with connect("in-process") as connection:
        launch_step(open_run(str(tmp_path / "other"), None, ["seeds.theta=0.9"]), connection, "seeds", restart=True)
    pair = [predicted_run.uri, str(tmp_path / "other")]
    compare.main([*pair, "--page", str(tmp_path / "page.html"), "--labels", "predictions"])
    printed = capsys.readouterr().out
    assert 0 < printed.index("WARNING: the step predictions") < printed.index("% of the pixels differ on average")


def test_runs_without_masks_are_compared_by_a_page(drawn_images, tmp_path, capsys):
    run = open_run(str(tmp_path / "run"), None, ["classifier.weights=none"])
    prepare(run, [replace(image, mask_uri=None) for image in drawn_images[:2]], DRAWN_CLASS_NAMES)
    compare.main([run.uri, run.uri])
    printed = capsys.readouterr().out
    assert "has metrics: the images have no masks. To see the images whose labels differ most, give --page" in printed


def test_the_review_list_has_every_mapped_image_the_most_doubtful_first(finished_maps_run):
    write_report(finished_maps_run, 0)
    with Path(finished_maps_run.uri, "report", "review.csv").open() as file:
        rows = list(csv.DictReader(file))
    manifest, store = finished_maps_run.manifest(), finished_maps_run.maps()
    assert sorted(row["image_id"] for row in rows) == [row.image_id for row in manifest.iter_rows() if row.labels]
    found = [float(row["disagreement"]) for row in rows]
    assert found == sorted(found, reverse=True) and len(set(found)) > 1
    maps = store.read(manifest.index_of(rows[0]["image_id"]))
    of_class = [
        disagreement(*pair, finished_maps_run.config.seeds.theta) for pair in zip(maps.max, maps.mean, strict=True)
    ]
    assert max(1.0 if value is None else value for value in of_class) == pytest.approx(found[0], abs=1e-4)
    page = Path(finished_maps_run.uri, "report", "index.html").read_text()
    assert "Look at these first" in page and rows[0]["image_id"] in page


def test_the_review_list_begins_with_masks_that_do_not_fit_their_maps(painted_run):
    write_report(painted_run, 0)
    with Path(painted_run.uri, "report", "review.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["image_id"] for row in rows[:2]} == {"scene_0012", "scene_0013"}  # the others have no mask
    assert [bool(row["mismatch"]) for row in rows] == [True] * 2 + [False] * (len(rows) - 2)
    assert float(rows[0]["mismatch"]) >= float(rows[1]["mismatch"])
    found = [float(row["disagreement"]) for row in rows[2:]]
    assert found == sorted(found, reverse=True)
    manifest, store, theta = painted_run.manifest(), painted_run.maps(), painted_run.config.seeds.theta
    index = manifest.index_of(rows[1]["image_id"])
    maps, mask = store.read(index), painted_run.labels("predictions").read(rows[1]["image_id"])
    small = resize_labels(mask, maps.max.shape[1:])
    expected = map_mismatch(small, maps.max, maps.mean, maps.classes, theta, 255)
    assert float(rows[1]["mismatch"]) == pytest.approx(expected, abs=1e-4)
    better = np.where((maps.max > theta).any(0), maps.classes[0] + 1, 0).astype(np.uint8)
    painted_run.labels("predictions").write(rows[1]["image_id"], resize_labels(better, mask.shape))
    write_report(painted_run, 0)
    with Path(painted_run.uri, "report", "review.csv").open() as file:
        (again,) = [row for row in csv.DictReader(file) if row["image_id"] == rows[1]["image_id"]]
    assert float(again["mismatch"]) < float(rows[1]["mismatch"])


def test_the_review_list_marks_corrected_images_and_puts_them_last(painted_run):
    manifest = painted_run.manifest()
    rows = [
        replace(row, mask_uri="corrected/1/a.png" if row.image_id in ("scene_0012", "scene_0001") else row.mask_uri)
        for row in manifest.iter_written_rows()
    ]
    write_manifest(painted_run.location / "manifest.parquet", rows, manifest.class_names, manifest.class_values)
    write_report(painted_run, 0)
    with Path(painted_run.uri, "report", "review.csv").open() as file:
        found = [(row["image_id"], row["corrected"]) for row in csv.DictReader(file)]
    assert found[0] == ("scene_0013", "no") and found[-2:] == [("scene_0012", "yes"), ("scene_0001", "yes")]
    assert {corrected for _, corrected in found[:-2]} == {"no"}
    page = Path(painted_run.uri, "report", "index.html").read_text()
    assert page.count('<span class="quiet">corrected</span>') == 2
    assert "Behind them are the images whose mask you have corrected already" in page


def test_the_review_list_ranks_the_masks_that_the_verdict_judges(painted_run):
    manifest, theta = painted_run.manifest(), painted_run.config.seeds.theta
    mask, maps = painted_run.labels("predictions").read("scene_0012"), painted_run.maps().read(12)
    better = np.where((maps.max > theta).any(0), maps.classes[0] + 1, 0).astype(np.uint8)
    painted_run.labels("pseudo_labels").write("scene_0012", resize_labels(better, mask.shape))
    mapped = np.arange(manifest.num_images)

    def mismatch(judged: str) -> float:
        (doubt,) = [each for each in review_list(painted_run, manifest, mapped, theta, judged) if each.row == 12]
        return doubt.mismatch

    assert mismatch("pseudo_labels") < mismatch("predictions") == mismatch("")


@pytest.fixture
def other_seeds(seeded_run, tmp_path) -> Run:
    """A copy of the run in which the seeds of two images are others: all of one, a third of the other."""
    shutil.copytree(seeded_run.uri, tmp_path / "other")
    other = open_run(str(tmp_path / "other"))
    store = other.seeds("r+")
    unit = plan_units(14, 4)[1]
    labels = store.read_unit(unit)
    labels[1] = (labels[1] + 1) % 3
    labels[2, :3] = (labels[2, :3] + 1) % 3
    objects = store.write_unit(unit, labels)
    place = Path(other.uri, "seeds", "done", "000001.json")
    receipt = other.receipt("seeds", unit)
    place.write_bytes(replace(receipt, objects=objects).to_json())
    return other


def test_the_images_that_changed_most_come_first(seeded_run, other_seeds):
    changes = find_changes([seeded_run, other_seeds], most_compared=100, most_shown=3)
    assert (changes.step, changes.num_compared) == ("seeds", 14)
    assert [image.image_id for image in changes.images[:2]] == ["scene_0005", "scene_0006"]
    assert [image.share for image in changes.images] == pytest.approx([1, 1 / 3, 0], abs=0.04)
    assert changes.mean_share == pytest.approx((1 + 1 / 3) / 14, abs=0.01)
    first = changes.images[0]
    assert len(first.labels) == len(first.right) == 2 and first.truth and first.photograph


def test_a_page_shows_the_most_changed_images(seeded_run, other_seeds, tmp_path, capsys):
    compare.main([seeded_run.uri, other_seeds.uri, "--page", str(tmp_path / "page.html"), "--images", "2"])
    page = (tmp_path / "page.html").read_text()
    assert re.findall(r"<strong>(\w+)</strong>", page) == ["scene_0005", "scene_0006"]
    assert "http" not in page
    assert "of the pixels differ on average, in the seeds of 14 images" in capsys.readouterr().out


def test_runs_without_common_labels_are_refused_for_a_page(seeded_run, finished_maps_run, tmp_path):
    with pytest.raises(ValueError, match="no labels are finished in all of these runs"):
        compare.main([seeded_run.uri, finished_maps_run.uri, "--page", str(tmp_path / "page.html")])


def test_a_number_of_images_needs_a_page(seeded_run):
    with pytest.raises(ValueError, match="needs --page"):
        compare.main([seeded_run.uri, seeded_run.uri, "--images", "3"])
    with pytest.raises(ValueError, match="needs --page"):
        compare.main([seeded_run.uri, seeded_run.uri, "--labels", "seeds"])
    with pytest.raises(ValueError, match="1 or more"):
        compare.main([seeded_run.uri, seeded_run.uri, "--page", "x.html", "--images", "0"])


def test_a_report_between_an_addition_and_the_maps_shows_the_finished_images(finished_maps_run):
    manifest = finished_maps_run.manifest()
    rows = [*manifest.iter_written_rows()]
    further = replace(rows[0], image_id="october")
    place = finished_maps_run.location / "manifest.parquet"
    write_manifest(place, [*rows, further], manifest.class_names, additions=[14])
    write_report(finished_maps_run, 3)
    with Path(finished_maps_run.uri, "report", "review.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 14  # also those of the unit that has grown


def test_labels_that_were_made_in_the_same_way_are_not_compared(seeded_run, tmp_path, capsys):
    with connect("in-process") as connection:
        launch_step(open_run(seeded_run.uri, None, ["pseudo_labels.refine=false"]), connection, "pseudo_labels")
        shutil.copytree(seeded_run.uri, tmp_path / "other")
        other = open_run(str(tmp_path / "other"), None, ["seeds.theta=0.9"])
        launch_step(other, connection, "seeds", restart=True)
    runs, numbers = [open_run(seeded_run.uri), open_run(other.uri)], {"most_compared": 100, "most_shown": 1}
    assert find_changes(runs, **numbers).step == "seeds"
    assert find_changes(runs, "pseudo_labels", **numbers).mean_share == 0
    assert find_changes([runs[0], runs[0]], **numbers).step == "pseudo_labels"
    assert find_changes(runs, "pseudo_labels", **numbers).others == ("seeds",)
    compare.main([seeded_run.uri, other.uri, "--page", str(tmp_path / "page.html"), "--labels", "pseudo_labels"])
    assert "The seeds were also made differently; --labels seeds compares these." in capsys.readouterr().out
