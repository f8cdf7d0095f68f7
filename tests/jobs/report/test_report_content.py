"""What the report's page says."""

import csv
import json
import re
import shutil

import numpy as np
import pytest

from cluster.connect import connect
from jobs.cli.launch import launch_step
from jobs.evaluation.measuring import evaluate_labels
from jobs.evaluation.metrics import MEANINGS, SUMMARY
from jobs.report import main
from jobs.reporting.page import write_report
from jobs.reporting.review import Doubt, trust_of
from jobs.run.directory import open_run
from jobs.run.training_record import read_complete
from storage.location import Location
from storage.manifest import ManifestRow
from storage.records import read_json
from storage.steps import Skipped


def test_report_is_one_command(finished_run, tmp_path, capsys, html_of):
    shutil.copytree(finished_run.uri, tmp_path / "run")

    main(["--run", str(tmp_path / "run"), "--images", "3"])

    assert f"{tmp_path}/run/report/index.html" in capsys.readouterr().out
    assert "A sample: 3 of the 14 images with maps" in html_of(open_run(str(tmp_path / "run")))


def test_page_shows_the_figures_of_the_evaluation(finished_run, html_of):
    with connect("in-process") as connection:
        figures = evaluate_labels(finished_run, connection, [], "all", ("map",), deterministic=False)

    record = figures[0].record(finished_run.manifest().class_names)
    for value in (record["mean_iou"], record["coverage"], record["iou"]["ring"]):
        assert f">{value:.3f}<" in html_of(finished_run)


def test_page_says_which_measured_images_an_earlier_step_skipped(finished_run, tmp_path, html_of):
    shutil.copytree(finished_run.uri, tmp_path / "run")
    run = open_run(str(tmp_path / "run"))
    with connect("in-process") as connection:
        evaluate_labels(run, connection, [], "all", ("map",), deterministic=False)
    write_report(run)
    assert "skipped by an earlier step" not in html_of(run)
    place = run.location / "evaluation" / "metrics.json"
    record = read_json(place, "metrics")
    for figure in record["metrics"]:
        figure["skipped"] = {"empty file": 2}
    place.write_bytes(json.dumps(record).encode())
    write_report(run)
    assert "2 images were skipped by an earlier step (empty file): all their pixels count as misses<" in html_of(run)
    record["metrics"][0]["skipped"] = {"empty file": 3}
    place.write_bytes(json.dumps(record).encode())
    write_report(run)
    sentence = "3 images were skipped by an earlier step (empty file): all their pixels count as misses in seeds;"
    assert sentence in html_of(run)


def test_page_tells_of_masks_of_other_values_and_has_the_figures_of_now_first(finished_run, tmp_path, html_of):
    shutil.copytree(finished_run.uri, tmp_path / "run")
    with connect("in-process") as connection:
        run = open_run(str(tmp_path / "run"))
        (run.location / "evaluation" / "metrics.json").delete()
        evaluate_labels(run, connection, [], "all", ("map",), deterministic=False)
        changed = open_run(run.uri, None, ["seeds.theta=0.5"])
        launch_step(changed, connection, "seeds", restart=True)
        evaluate_labels(changed, connection, [], "all", ("map",), deterministic=False)
    place = run.location / "evaluation" / "metrics.json"
    record = read_json(place, "metrics")
    assert {figure["settings"]["seeds"]["theta"] for figure in record["metrics"]} == {0.35, 0.5}
    record["metrics"][0]["num_foreign"] = 2
    place.write_bytes(json.dumps(record).encode())
    write_report(changed)
    _, _, table = html_of(changed).partition('<table class="measured">')
    assert "; 2 masks without a pixel of any of the image's classes" in table.partition("</caption>")[0]
    heading = table.partition("</thead>")[0]
    assert heading.index("seeds</th>") < heading.index("seeds.theta = 0.35")


def test_page_says_what_every_figure_means(finished_run, html_of):
    page = html_of(finished_run)
    assert MEANINGS.keys() == SUMMARY.keys()
    for name, title in SUMMARY.items():
        assert f"<dt>{title}</dt><dd>{MEANINGS[name]}</dd>" in page


def test_same_run_gives_the_same_page(finished_run, html_of):
    before = html_of(finished_run)

    write_report(finished_run)

    assert html_of(finished_run) == before


def test_run_without_maps_says_which_commands_come_next(location, handmade_run, html_of):
    rows = [ManifestRow(f"image_{n}", f"/nowhere/{n}.jpg", (0,), split="train") for n in range(3)]
    run = handmade_run(location, rows, ["cat"], with_maps=False)

    write_report(run)

    page = html_of(run)
    for job in ("train_ficklenet", "generate_maps", "aggregate_seeds", "make_pseudo_labels"):
        assert f"python jobs/{job}.py --run {run.uri}" in page
    assert "none of the images to measure has a mask" in page and "evaluate.py" not in page
    assert 'id="gallery"' not in page


def test_refused_images_are_counted_apart_from_unlabelled_ones(location, handmade_run, html_of):
    rows = [ManifestRow("good", "/nowhere/0.jpg", (0,)), ManifestRow("plain", "/nowhere/1.jpg", ())]
    rows += [ManifestRow(f"bad_{n}", "/nowhere/2.jpg", (), problem="label 'cow' is not in the list") for n in range(3)]
    run = handmade_run(location, rows, ["cat"], with_maps=False)

    write_report(run)

    row = '<th scope="row">{}</th><td class="number">{}</td>'
    assert row.format("without a label", 1) in html_of(run) and row.format("not usable", 3) in html_of(run)


def test_seeds_of_maps_made_anew_since_are_outdated(finished_run, tmp_path, html_of):
    shutil.copytree(finished_run.uri, tmp_path / "run")
    changed = open_run(str(tmp_path / "run"), None, ["maps.num_samples=3"])
    with connect("in-process") as connection:
        launch_step(changed, connection, "maps", restart=True)
    write_report(changed)
    page = html_of(changed)
    assert '<span class="state outdated">outdated</span>' in page
    assert f"python jobs/aggregate_seeds.py --run {changed.uri} --restart seeds" in page
    assert "with maps.num_samples = " in page  # how the figures were measured


def test_maps_of_an_earlier_classifier_are_outdated_and_so_is_what_was_made_of_them(finished_run, tmp_path, html_of):
    shutil.copytree(finished_run.uri, tmp_path / "run")
    complete = tmp_path / "run" / "classifier" / "complete.json"
    complete.write_text(json.dumps(read_complete(Location(str(complete.parent))) | {"sha256": "of another"}))
    run = open_run(str(tmp_path / "run"))
    write_report(run)
    assert html_of(run).count('<span class="state outdated">') == 3  # maps, seeds, evaluation
    assert "with an earlier classifier" in html_of(run)
    for caption in ("Maximum", "Mean", "Seeds", "Doubt"):
        assert f"<figcaption>{caption} (outdated)</figcaption>" in html_of(run)
    assert "(outdated)" not in html_of(finished_run)


def test_page_begins_with_photographs_masks_and_doubt(predicted_run, finished_run, html_of):
    write_report(predicted_run)
    for run, mask in ((predicted_run, "Mask: predictions"), (finished_run, "Mask: seeds")):
        page = html_of(run)
        lead = page[page.index('<section id="lead"') : page.index('<section id="overview"')]
        assert page.index("<section") == page.index('<section id="lead"')
        captions = re.findall("<figcaption>(.*?)</figcaption>", lead)
        assert len(captions) > 3 and captions == ["Photograph", mask, "Doubt"] * (len(captions) // 3)


def test_quality_without_masks_is_of_all_images(tmp_path, handmade_run, write_picture, html_of):
    place = Location(str(tmp_path))
    rows = [ManifestRow(f"{n}", write_picture(place / f"{n}.jpg"), (0, 1), split="train") for n in range(8)]
    run = handmade_run(place / "run", rows, ["cat", "dog"])  # the scores are -2, -1, 0, ...
    write_report(run, num_images=2)
    assert "<strong>25 %</strong> not recognised" in html_of(run)
    trust = trust_of([Doubt("a", "train", "cat", doubt, 3.0, lowest, 0) for doubt, lowest in ((0.2, 1), (0.6, -1))])
    assert trust is not None and (trust.unrecognised, trust.disagreement) == (0.5, pytest.approx(0.4))


def test_the_most_doubtful_of_all_images_are_in_the_sample(finished_run, tmp_path, html_of):
    shutil.copytree(finished_run.uri, tmp_path / "run")
    run = open_run(str(tmp_path / "run"))
    write_report(run, num_images=4)
    with open(tmp_path / "run/report/review.csv") as file:
        worst = [row["image_id"] for row in csv.DictReader(file)][:2]
    shown = set(re.findall(r'<span class="id">(.*?)</span>', html_of(run)))
    assert set(worst) <= shown and len(shown) == 4
    assert "the 2 most doubtful of all, and others spread evenly" in html_of(run)


def test_report_of_a_run_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"does not exist.*prepare_dataset"):
        write_report(open_run(str(tmp_path / "run")))


def test_negative_number_of_images_is_refused(finished_run):
    with pytest.raises(ValueError, match="--images -1"):
        write_report(finished_run, -1)


def test_image_that_several_steps_skip_is_listed_once_with_its_reason(tmp_path, handmade_run, write_picture, html_of):
    place = Location(str(tmp_path))
    rows = [ManifestRow(f"image_{n}", write_picture(place / f"{n}.jpg"), (0,)) for n in range(5)]
    run = handmade_run(place / "run", rows, ["cat"], skipped=[Skipped("image_3", "empty file")])

    write_report(run)

    _, _, section = html_of(run).partition('id="skipped"')
    assert section.count("image_3") == 1
    assert "empty file" in section
    assert "maps, seeds" in section
    assert 'data-row="3"' not in html_of(run)


def test_image_that_is_gone_keeps_its_place_and_says_so(tmp_path, handmade_run, write_picture, html_of):
    place = Location(str(tmp_path))
    mask = write_picture(place / "mask.jpg")  # three channels: no mask
    rows = [ManifestRow("gone", str(tmp_path / "gone.jpg"), (0,), mask_uri=mask)]
    run = handmade_run(place / "run", rows, ["cat"])

    write_report(run)

    assert "The image is not readable any more: missing: no such file." in html_of(run)
    assert "The mask cannot be read: mask is a JPEG" in html_of(run)


@pytest.mark.cluster
def test_ten_thousand_images_give_a_sample_of_a_few_megabytes(tmp_path, visit, handmade_run, write_picture):
    """3.3 MB with these photographs of noise and two classes each; 200 of VOC's, with 209 classes, gave 2.7 MB."""
    place = Location(str(tmp_path))
    uris = [write_picture(place / f"{n}.jpg", (500, 375), texture=n + 1) for n in range(8)]
    rows = [ManifestRow(f"image_{n:05d}", uris[n % 8], (n % 3, 3), split="train") for n in range(10_000)]
    run = handmade_run(place / "run", rows, ["a", "b", "c", "d"], grid=(41, 41), unit_size=1000)

    num_bytes = write_report(run).num_bytes
    page = visit(run)

    assert num_bytes < 5e6
    assert "A sample: 200 of the 10,000 images with maps" in page.locator("#gallery").inner_text()
    assert page.locator("#entries > .entry").count() == 400
    assert page.locator("#entries > .entry:visible").count() == 24
    sampled = sorted(
        {int(row) for row in page.locator("#entries").evaluate("e => [...e.children].map(c => c.dataset.row)")}
    )
    assert (sampled[0], sampled[-1]) == (0, 9999)
    assert max(np.diff(sampled)) <= 102  # half of the sample
