"""The segmentation network on the report's page: its figures, its confusions, its worst images."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.connect import connect
from ficklenet.metrics import label_metrics
from jobs.evaluation.measuring import evaluate_labels
from jobs.evaluation.metrics import MeasuredLabels
from jobs.reporting.measured import Measured
from jobs.reporting.page import write_report
from jobs.reporting.segmentation import comparisons
from jobs.reporting.templates import NO_VALUE
from jobs.run.directory import Run, open_run
from jobs.run.training_record import read_complete
from storage.label_folder import encode_label_png
from storage.manifest import write_manifest


@pytest.fixture(scope="session")
def measured_folder(predicted_run_folder, tmp_path_factory) -> Path:
    """A run with predictions, figures of them, and a report."""
    folder = tmp_path_factory.mktemp("measured") / "run"
    shutil.copytree(predicted_run_folder, folder)
    run = open_run(str(folder))
    with connect("in-process") as connection:
        evaluate_labels(run, connection, ["val"], None, ("map", "image"), deterministic=False)
    write_report(run)
    return folder


@pytest.fixture
def measured_run(measured_folder, tmp_path) -> Run:
    shutil.copytree(measured_folder, tmp_path / "measured")
    return open_run(str(tmp_path / "measured"))


def figures_of(run: Run) -> dict[str, MeasuredLabels]:
    with connect("in-process") as connection:
        figures = evaluate_labels(run, connection, ["val"], None, ("image",), deterministic=False)
    return {figure.labels: figure for figure in figures}


def test_network_stands_beside_the_densified_seeds_class_by_class(measured_run, visit):
    page = visit(measured_run)
    found = figures_of(measured_run)
    shown = page.locator("#network .facts").inner_text()
    for name in ("predictions", "predictions without CRF", "densified seeds"):
        assert f"{label_metrics(found[name].matrix).mean_iou:.3f} mIoU of the {name}" in shown
    rows = page.locator("#network .by-class tbody tr")
    assert rows.count() == 6
    for number, values in enumerate(
        zip(*(label_metrics(found[name].matrix).iou for name in ("predictions", "densified seeds")), strict=True)
    ):
        written = [NO_VALUE if np.isnan(value) else f"{value:.3f}" for value in values]
        assert rows.nth(number).locator(".number").all_inner_texts() == written
        width = rows.nth(number).locator(".shares span").first.bounding_box()["width"]
        assert width == pytest.approx(np.nan_to_num(values[0]) * 200, abs=16)


def test_confusion_matrix_is_in_percent_of_the_true_pixels(measured_run, visit):
    page = visit(measured_run)
    matrix = figures_of(measured_run)["predictions"].matrix
    rows = page.locator("#network .confusion tbody tr")
    for number, counts in enumerate(matrix):
        written = rows.nth(number).locator("td").all_inner_texts()
        if counts.sum() == 0:
            assert written == ["no true pixels"]
        else:
            shares = 100 * counts[:-1] / counts.sum()
            assert written == [f"{share:.0f}" if share >= 0.5 else "" for share in shares]


def test_worst_predictions_come_first(predicted_run, visit):
    first, second = ("scene_0012", "scene_0013")
    folder = Path(predicted_run.uri, "predictions", "labels")
    truth = Image.open(predicted_run.manifest().rows(13, 14)[0].mask_uri)
    truth.save(folder / f"{second}.png")  # all right
    write_report(predicted_run)
    page = visit(predicted_run)
    assert page.locator("#examples h3").all_inner_texts() == [first, second]
    errors = page.eval_on_selector_all("#examples > .entry", "all => all.map((each) => Number(each.dataset.error))")
    assert errors[0] > errors[1] == 0
    assert page.locator("#examples .entry").first.locator("figcaption").all_inner_texts() == [
        "Image",
        "Seeds",
        "Prediction",
        "Truth",
    ]


def test_predictions_lie_on_the_whole_image(measured_run, visit):
    page = visit(measured_run)
    drawn = page.locator("#examples .prediction img").first.bounding_box()
    assert drawn == page.locator("#examples .prediction .frame").first.bounding_box()


@pytest.mark.parametrize("width", [360, 1300])
def test_page_fits_its_window(measured_run, visit, width):
    page = visit(measured_run)
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("img:not([alt]), img[alt='']").count() == 0


def test_predictions_not_measured_yet_name_the_command_where_there_are_masks(predicted_run, html_of):
    write_report(predicted_run)
    _, _, section = html_of(predicted_run).partition('id="network"')
    assert f"Not measured yet: <code>python jobs/evaluate.py --run {predicted_run.uri} --split=val</code>" in section


def test_a_network_that_labels_everything_alike_is_flagged(predicted_run, html_of):
    for number, place in enumerate(sorted(Path(predicted_run.uri, "predictions/labels").iterdir())):
        labels = np.zeros_like(np.asarray(Image.open(place)))
        labels[:3] = number
        place.write_bytes(encode_label_png(labels))
        (predicted_run.location / "predictions/unrefined" / place.name).write_bytes(encode_label_png(labels))
    write_report(predicted_run)
    assert "does not tell any classes apart" not in html_of(predicted_run)
    for place in Path(predicted_run.uri, "predictions/labels").iterdir():
        place.write_bytes(encode_label_png(np.zeros_like(np.asarray(Image.open(place)))))
    write_report(predicted_run)
    assert "does not tell any classes apart" not in html_of(predicted_run)  # only the CRF took the classes away
    for place in Path(predicted_run.uri, "predictions/unrefined").iterdir():
        place.write_bytes(encode_label_png(np.zeros_like(np.asarray(Image.open(place)))))
    write_report(predicted_run)
    flag = "Every pixel of the 2 compared images is predicted as background: the network does not tell any"
    assert flag in html_of(predicted_run)


def test_predictions_without_masks_are_shown(predicted_run, html_of):
    manifest = predicted_run.manifest()
    rows = [replace(row, mask_uri=None) for row in manifest.rows(0, manifest.num_images)]
    write_manifest(predicted_run.location / "manifest.parquet", rows, manifest.class_names)
    write_report(predicted_run)
    _, _, section = html_of(predicted_run).partition('id="network"')
    assert "Not measured, because no predicted image has a mask." in section
    assert "Some images" in section and section.count('<figure class="tile prediction">') == 2


def test_figures_and_images_of_an_earlier_network_say_so(measured_run, html_of):
    complete = measured_run.location / "segmenter" / "complete.json"
    complete.write_bytes(json.dumps(read_complete(complete.parent) | {"sha256": "0" * 64}).encode())
    write_report(measured_run)
    _, _, section = html_of(measured_run).partition('id="network"')
    assert "with an earlier network" in section
    assert "<figcaption>Prediction (outdated)</figcaption>" in section


def test_figures_of_earlier_masks_say_so_and_how_to_measure_again(measured_run, html_of):
    run, manifest = measured_run, measured_run.manifest()
    rows = [replace(row, mask_uri="corrected/1/a.png") for row in manifest.iter_rows()]
    write_manifest(run.location / "manifest.parquet", rows, manifest.class_names, manifest.class_values)
    again = (
        f"python jobs/evaluate.py --run {run.uri} --split=val && python jobs/evaluate.py --run {run.uri} --split=train"
    )
    assert write_report(run).figures.to_measure_again == f"{again} --part=all"  # masks of train were never measured
    assert "with earlier masks (masks were added or changed since)" in html_of(run)


def measured_over(num_labels: int, resolution: str, matrix: np.ndarray) -> Measured:
    iou = {f"class {number}": 0.5 for number in range(num_labels)}
    figure = {"labels": "predictions", "iou": iou, "mean_iou": 0.5, "confusion_matrix": matrix.tolist()}
    return Measured(("val",), "all", resolution, "", 1, {}, 0, (), (figure,), ("",))


def test_matrix_of_many_classes_becomes_a_list_of_the_largest_confusions():
    matrix = np.eye(81, 82, dtype=int) * 4
    matrix[7, 9], matrix[3, 81] = 12, 4  # of 16, and of 8 that are not labelled
    matrix[80] = 0
    [compared] = comparisons([measured_over(81, "image", matrix)])
    assert not compared.is_small
    found = [(each.true, each.predicted, each.share) for each in compared.confusions]
    assert found == [("class 7", "class 9", 0.75), ("class 3", "unlabelled", 0.5)]
    assert compared.matrix[80] == ()


def test_image_resolution_is_preferred_and_labels_without_predictions_are_left_out():
    matrix = np.eye(2, 3, dtype=int)
    of_seeds = measured_over(2, "image", matrix)
    of_seeds.metrics[0]["labels"] = "seeds"  # type: ignore[index]
    groups = [measured_over(2, "map", matrix), measured_over(2, "image", matrix), of_seeds]
    [compared] = comparisons(groups)
    assert compared.measured.resolution == "image"
    assert compared.columns == ("class 0", "class 1")
