"""Images added to a finished run: only they are computed, and the results are those of a run that had them at once."""

import csv
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.connect import connect
from ficklenet.drawing import DRAWN_CLASS_NAMES
from jobs import export_labels, prepare_dataset, verify
from jobs.cli.estimate import estimate_of_records
from jobs.cli.launch import launch_step
from jobs.exports.image_names import ImageNames
from jobs.maps import pseudo_labels_job, unit_images
from jobs.predictions import prediction_stages
from jobs.preparation.prepare import prepare
from jobs.preparation.read_source import _with_chosen
from jobs.reporting.page import write_report
from jobs.reporting.run_status import run_status, status_lines
from jobs.run.directory import Run, open_run
from jobs.run.fingerprints import outdated_steps, step_id
from jobs.run.steps import BY_NAME
from jobs.steps.estimates import KeptEstimate, StepEstimate, write_estimates
from storage.errors import NotYet
from storage.location import Location
from storage.manifest import Manifest, ManifestRow, write_manifest
from storage.sources import SourceImage

UNIT_STEPS = ("maps", "seeds", "pseudo_labels", "predictions")
MODULES = (unit_images, pseudo_labels_job, prediction_stages)


@pytest.mark.parametrize("split", ["test", "valid"])
def test_added_images_for_tests_or_validation_are_not_trained_on(added, tmp_path, split):
    table = table_of(added[:2], tmp_path / "first.csv")
    prepare_dataset.main(["--run", str(tmp_path / "run"), "--csv", str(table)])
    Manifest.forget()
    with pytest.raises(ValueError, match=rf"^--add: the run would train on the split '{split}'"):
        add(open_run(str(tmp_path / "run")), [replace(image, split=split) for image in added[2:]])


@pytest.fixture
def added(drawn_images, tmp_path) -> list[SourceImage]:
    """Five further images: two of them fill the last unit of the run, which has 14 images in units of 4."""
    found = []
    for number in range(5):
        old = drawn_images[number]
        place = tmp_path / "october" / f"october_{number}.jpg"
        place.parent.mkdir(exist_ok=True)
        shutil.copy(old.uri, place)
        split = "val" if number in (0, 4) else "train"
        found.append(SourceImage(f"october_{number}", str(place), old.labels, split))
    return found


def table_of(images: list[SourceImage], place: Path) -> Path:
    with place.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "labels", "split"])
        writer.writerows([image.uri, ";".join(image.labels), image.split] for image in images)
    return place


def add(run: Run, images: list[SourceImage], *flags: str) -> None:
    table = table_of(images, Path(images[0].uri).parent / "added.csv")
    prepare_dataset.main(["--run", run.uri, "--csv", str(table), "--add", *flags])
    Manifest.forget()


def launch(run: Run, *names: str, **options: Any) -> None:
    with connect("in-process") as connection:
        for name in names:
            launch_step(open_run(run.uri), connection, name, **options)


@pytest.fixture
def finished(predicted_run) -> Run:
    launch(predicted_run, "pseudo_labels")
    return predicted_run


@pytest.fixture
def opened(monkeypatch) -> Iterator[dict[str, set[str]]]:
    """The names of the images that each step opens."""
    found: dict[str, set[str]] = {module.__name__.rsplit(".", 1)[1]: set() for module in MODULES}

    def watch(module):
        original, names = module.read_image, found[module.__name__.rsplit(".", 1)[1]]

        def read_image(uri, **limits):
            names.add(Path(uri).stem)
            return original(uri, **limits)

        monkeypatch.setattr(module, "read_image", read_image)

    for module in MODULES:
        watch(module)
    return found


def stored(run: Run) -> dict[str, bytes]:
    """All results of the unit steps: shards and label images."""
    places = [place for name in UNIT_STEPS for place in Path(run.uri, name).rglob("*")]
    return {
        str(place.relative_to(run.uri)): place.read_bytes()
        for place in places
        if place.is_file() and (place.suffix == ".png" or "/c/" in str(place))
    }


def test_only_the_added_images_are_computed(finished, added, opened):
    add(finished, added)
    launch(finished, *UNIT_STEPS)
    assert opened["unit_images"] == opened["pseudo_labels_job"] == {f"october_{number}" for number in range(5)}
    assert opened["prediction_stages"] == {"october_0", "october_4"}


def test_a_run_with_added_images_stores_the_bytes_of_a_run_that_had_them_at_once(
    predicted_run, added, drawn_images, tmp_path
):
    steps = ("maps", "seeds", "predictions")
    add(predicted_run, added)
    launch(predicted_run, *steps)
    whole = open_run(str(tmp_path / "whole"), defaults=predicted_run.config.model_dump(mode="json"))
    prepare(whole, [*drawn_images, *added], DRAWN_CLASS_NAMES)
    for name in ("classifier", "segmenter"):
        shutil.copytree(Path(predicted_run.uri, name), tmp_path / "whole" / name)
    launch(whole, *steps)
    assert stored(predicted_run) == stored(whole)
    assert len(stored(whole)) == 25 + 8  # shards of five units, label images before and after the CRF


def test_networks_stay_and_nothing_is_outdated(finished, added, capsys):
    networks = [Path(finished.uri, name, "model.pt").read_bytes() for name in ("classifier", "segmenter")]
    add(finished, added)
    launch(finished, "classifier", "maps", "seeds", "segmenter")
    said = capsys.readouterr().out
    assert "classifier: trained before 5 images were added; its results stay valid" in said
    assert f"'python jobs/train_segmentation.py --run {finished.uri} --restart segmenter'" in said
    assert [Path(finished.uri, name, "model.pt").read_bytes() for name in ("classifier", "segmenter")] == networks
    assert outdated_steps(finished) == set()
    lines = "\n".join(status_lines(run_status(open_run(finished.uri))))
    assert "trained before 5 images were added" in lines
    assert f"'python jobs/train_ficklenet.py --run {finished.uri} --restart classifier'" in lines
    assert "pseudo-labels: partly done; 14 images done, 5 left" in lines


def test_the_report_compares_the_classifier_with_chance_on_the_images_of_its_own_validation(trained_run, added):
    def written() -> tuple[str, float | None]:
        figures = write_report(open_run(trained_run.uri), num_images=0).figures
        page = Path(trained_run.uri, "report", "index.html").read_text(encoding="utf-8")
        return next(line for line in page.splitlines() if "validation mAP" in line), figures.chance

    before = written()
    assert "on 2 images; random scores have 0." in before[0]
    add(trained_run, [replace(image, split="val", labels=added[0].labels) for image in added])
    assert written() == before


def test_the_report_of_what_is_finished_stays_the_same_until_the_added_images_are_computed(finished, added):
    figures = write_report(open_run(finished.uri)).figures
    review = Path(finished.uri, "report", "review.csv").read_text()
    done = {step.name: step.done for step in run_status(finished).steps if step.name != "evaluation"}
    assert figures.unrecognised is not None and figures.one_label and figures.has_pseudo_labels
    add(finished, added)
    run = open_run(finished.uri)
    without_masks = replace(figures.unmeasured, num_others=5)  # the added images; their pseudo-labels are missing
    assert write_report(run).figures == replace(figures, has_pseudo_labels=False, unmeasured=without_masks)
    assert Path(finished.uri, "report", "review.csv").read_text() == review
    steps = {step.name: step for step in run_status(run).steps if step.name != "evaluation"}
    assert {name: step.done for name, step in steps.items()} == done
    assert [steps[name].left for name in ("maps", "pseudo-labels", "predictions")] == [5, 5, 2]
    launch(run, "maps", shard=(1, 5))  # makes room for the added images, and computes none of them
    write_report(open_run(finished.uri))
    assert Path(finished.uri, "report", "review.csv").read_text() == review


def test_the_time_of_a_step_is_compared_with_an_estimate_of_the_same_images(finished_maps_run, added):
    def estimates() -> list[float | None]:
        return [step.estimated_seconds for step in run_status(open_run(finished_maps_run.uri)).steps[:2]]

    kept = {"classifier": StepEstimate(100, 1, num_images=14), "maps": StepEstimate(200, 1)}
    write_estimates(finished_maps_run, KeptEstimate(kept))
    add(finished_maps_run, added)
    assert estimates() == [100, 200]  # nothing was computed since
    launch(finished_maps_run, "maps")
    assert estimates() == [100, None]
    write_estimates(finished_maps_run, KeptEstimate(kept | {"maps": StepEstimate(300, 1, num_images=19)}))
    assert estimates() == [100, 300]


def test_a_training_on_all_images_makes_the_maps_outdated_as_ever(finished, added):
    add(finished, added)
    launch(finished, "classifier", restart=True)
    assert {"maps", "seeds"} <= outdated_steps(finished)
    fingerprint = finished.step("classifier").fingerprint()
    assert len(fingerprint["added"]) == 1


def test_a_training_that_is_not_finished_does_not_go_on_with_other_images(trained_run, added):
    Path(trained_run.uri, "classifier", "complete.json").unlink()
    add(trained_run, added)
    with pytest.raises(ValueError, match="images were added to the manifest since this training began"):
        launch(trained_run, "classifier")


def test_a_second_addition_comes_behind_the_first(finished_maps_run, added, opened):
    add(finished_maps_run, added[:1])
    launch(finished_maps_run, "maps")
    add(finished_maps_run, added)  # the first of them is there already
    opened["unit_images"].clear()
    launch(finished_maps_run, "maps", "seeds")
    assert opened["unit_images"] == {f"october_{number}" for number in range(1, 5)}
    assert open_run(finished_maps_run.uri).manifest().parts == [(0, 14), (14, 15), (15, 19)]


def test_an_addition_that_is_repeated_adds_nothing(trained_run, added, capsys):
    add(trained_run, added)
    before = Path(trained_run.uri, "manifest.parquet").read_bytes()
    add(trained_run, added)
    assert "nothing to add: all images of the source are in" in capsys.readouterr().out
    assert Path(trained_run.uri, "manifest.parquet").read_bytes() == before


def folder_per_class(drawn_images, place: Path, **labels: int) -> Path:
    for name, number in labels.items():
        (place / name).mkdir(parents=True)
        shutil.copy(drawn_images[number].uri, place / name / f"{name}_{number}.png")
    return place


def test_images_of_other_classes_are_named_and_not_said_to_be_in_the_run(trained_run, drawn_images, tmp_path, capsys):
    near = DRAWN_CLASS_NAMES[0] + "s"
    folder = folder_per_class(drawn_images, tmp_path / "more", dogs=0, **{near: 1})
    prepare_dataset.main(["--run", trained_run.uri, "--folders", str(folder), "--val-fraction", "0.5", "--add"])
    printed = capsys.readouterr().out
    assert "nothing to add: no image of the source has a class of the run." in printed
    assert f"2 images left out (none of the chosen classes; other labels: dogs, {near})" in printed
    assert f"Did you mean {DRAWN_CLASS_NAMES[0]!r} by {near!r}?" in printed
    assert open_run(trained_run.uri).manifest().num_images == 14


@pytest.mark.parametrize(
    ("label", "name", "is_other_spelling"),
    [
        ("cat", "cats", True),
        ("Cats", "cats", True),
        ("hores", "horse", True),
        ("foxes", "fox", True),
        ("goats", "cats", False),
        ("house", "horse", False),
    ],
)
def test_only_other_spellings_of_a_class_are_suggested(label, name, is_other_spelling):
    images = [SourceImage("a", "a.png", (label,))]
    _, (note,) = _with_chosen(images, [name], None)
    assert (f"Did you mean {name!r} by {label!r}?" in note) == is_other_spelling


def test_images_without_a_split_are_refused_where_all_others_have_one(trained_run, drawn_images, tmp_path, capsys):
    folder = folder_per_class(drawn_images, tmp_path / "more", **{DRAWN_CLASS_NAMES[0]: 0})
    add = ["--run", trained_run.uri, "--folders", str(folder), "--add"]
    with pytest.raises(ValueError, match=r"no added image has a split.* Give the --val-fraction of the preparation"):
        prepare_dataset.main(add)
    prepare_dataset.main([*add, "--val-fraction", "0.2"])
    Manifest.forget()
    assert open_run(trained_run.uri).manifest().num_images == 15
    assert f"next:    'python jobs/run_pipeline.py --run {trained_run.uri}'" in capsys.readouterr().out


def test_a_dry_run_adds_nothing(trained_run, added, capsys):
    before = Path(trained_run.uri, "manifest.parquet").read_bytes()
    add(trained_run, added, "--dry-run")
    assert "added:   5 images behind the 14 of the run (val 2, train 3)" in capsys.readouterr().out
    assert Path(trained_run.uri, "manifest.parquet").read_bytes() == before


def test_where_kept_maps_are_damaged_the_whole_unit_is_computed_again(finished_maps_run, added, opened):
    wanted = finished_maps_run.maps().read(12)
    shard = Path(finished_maps_run.uri, "maps", "maps.zarr", "max", "c", "3", "0", "0", "0")
    data = bytearray(shard.read_bytes())
    data[20] ^= 1
    shard.write_bytes(data)
    add(finished_maps_run, added)
    launch(finished_maps_run, "maps")
    assert {"scene_0012", "scene_0013"} < opened["unit_images"]
    assert np.array_equal(open_run(finished_maps_run.uri).maps().read(12).max, wanted.max)


def test_kept_images_that_were_skipped_stay_skipped_until_they_are_tried_again(finished_maps_run, added, drawn_images):
    image = Path(drawn_images[12].uri)
    data = image.read_bytes()
    try:
        image.write_bytes(b"no image")
        launch(finished_maps_run, "maps", restart=True)
    finally:
        image.write_bytes(data)
    add(finished_maps_run, added)
    launch(finished_maps_run, "maps")

    def skipped() -> list[str]:
        return [skip.image_id for receipt in run.step("maps").receipts().values() for skip in receipt.skipped]

    run = open_run(finished_maps_run.uri)
    assert skipped() == ["scene_0012"]
    launch(run, "maps", retry_skipped=True)
    assert skipped() == []


def test_missing_images_of_a_unit_that_has_grown_are_tried_when_they_are_back(finished_maps_run, added, drawn_images):
    image, away = Path(drawn_images[12].uri), Path(drawn_images[12].uri + ".away")
    image.rename(away)
    try:
        launch(finished_maps_run, "maps", restart=True)
    finally:
        away.rename(image)
    add(finished_maps_run, added)
    lines = "\n".join(status_lines(run_status(open_run(finished_maps_run.uri))))
    assert "maps: partly done; 13 images done, 1 skipped, 5 left" in lines
    launch(finished_maps_run, "maps")
    receipts = open_run(finished_maps_run.uri).step("maps").receipts().values()
    assert [skip for receipt in receipts for skip in receipt.skipped] == []


def test_the_estimate_leaves_out_images_whose_results_are_copied(finished_maps_run, added):
    add(finished_maps_run, added)
    run = open_run(finished_maps_run.uri)
    with connect("in-process") as connection:
        found = estimate_of_records(run, connection, BY_NAME["maps"])
    receipts = run.step("maps").receipts().values()
    assert found is not None
    assert found.seconds == pytest.approx(sum(receipt.seconds for receipt in receipts) / 14 * 5)


def test_the_manifest_of_before_is_refused_by_steps_that_have_the_added_images(finished_maps_run, added):
    place = Path(finished_maps_run.uri, "manifest.parquet")
    before = place.read_bytes()
    add(finished_maps_run, added)
    launch(finished_maps_run, "maps")
    place.write_bytes(before)
    Manifest.forget()
    with pytest.raises(ValueError, match="lists of added images: 1 -> absent"):
        launch(finished_maps_run, "maps")
    with pytest.raises(ValueError, match="was made for other images or classes"):
        launch(finished_maps_run, "seeds")


def test_other_added_images_in_the_place_of_computed_ones_are_refused(finished_maps_run, added):
    place = Path(finished_maps_run.uri, "manifest.parquet")
    before = place.read_bytes()
    add(finished_maps_run, added)
    launch(finished_maps_run, "maps")
    place.write_bytes(before)
    Manifest.forget()
    with pytest.raises(ValueError, match="was made for other images or classes"):
        add(finished_maps_run, added[::-1])


def test_an_image_of_the_same_name_in_another_folder_gets_a_longer_id(trained_run, drawn_images, tmp_path):
    name = Path(drawn_images[0].uri).name
    (tmp_path / "october").mkdir()
    shutil.copy(drawn_images[1].uri, tmp_path / "october" / name)
    add(trained_run, [SourceImage("", str(tmp_path / "october" / name), drawn_images[1].labels, "train")])
    assert open_run(trained_run.uri).manifest().rows(14, 15)[0].image_id == f"october__{Path(name).stem}"


def test_an_image_with_more_labels_than_the_maps_have_room_for_is_refused(finished_maps_run, added):
    crowded = [SourceImage("crowded", added[0].uri, tuple(DRAWN_CLASS_NAMES), "train")]
    with pytest.raises(ValueError, match="has 5 labels, and the run's maps have room for"):
        add(finished_maps_run, crowded)


@pytest.mark.parametrize("flags", [["--classes", "cat"], ["--hugging-face", "beans"]])
def test_flags_that_do_not_go_with_an_addition_are_refused(trained_run, added, flags):
    table = table_of(added, Path(added[0].uri).parent / "added.csv")
    source = [] if "--hugging-face" in flags else ["--csv", str(table)]
    with pytest.raises(ValueError, match=r"(--add|--classes) does not go with"):
        prepare_dataset.main(["--run", trained_run.uri, *source, "--add", *flags])


def test_an_addition_without_a_source_is_refused(trained_run):
    with pytest.raises(ValueError, match="no source of labels"):
        prepare_dataset.main(["--run", trained_run.uri, "--images", "/data/october", "--add"])


def test_an_export_holds_the_added_images_too(finished_maps_run, added, tmp_path):
    launch(finished_maps_run, "seeds")
    command = ["--run", finished_maps_run.uri, "--format", "coco", "--labels", "seeds", "--out", str(tmp_path / "coco")]
    export_labels.main(command)
    add(finished_maps_run, added)
    launch(finished_maps_run, "maps", "seeds")
    export_labels.main(command)
    continued = (tmp_path / "coco" / "annotations.json").read_bytes()
    assert len({image["file_name"] for image in json.loads(continued)["images"]}) == 19
    export_labels.main([*command, "--restart", "ficklenet_export"])
    assert (tmp_path / "coco" / "annotations.json").read_bytes() == continued


def test_an_export_whose_images_would_get_other_names_is_known(drawn_images, added, tmp_path):
    rows = [ManifestRow(f"own {number}", image.uri, (0,)) for number, image in enumerate(drawn_images)]

    def names(rows: list[ManifestRow]) -> list[str | int]:
        write_manifest(Location(str(tmp_path / "manifest.parquet")), rows, DRAWN_CLASS_NAMES)
        manifest = Manifest.open(Location(str(tmp_path / "manifest.parquet")))
        return ImageNames.of(manifest).fingerprint(manifest)

    in_another_folder = ManifestRow("own 14", added[0].uri, (0,))
    assert names(rows) == names(rows[:5])
    assert names(rows) != names([*rows, in_another_folder])


def test_the_network_of_cells_stays_until_it_learns_again_and_then_its_maps_are_outdated(finished_maps_run, added):
    launch(finished_maps_run, "cells", "refined")
    before = step_id(finished_maps_run, "cells")
    add(finished_maps_run, added)
    launch(finished_maps_run, "maps")
    with pytest.raises(NotYet, match="cells are complete"):
        launch(finished_maps_run, "refined")
    launch(finished_maps_run, "cells", "refined")
    assert step_id(finished_maps_run, "cells") == before and not outdated_steps(finished_maps_run)
    launch(finished_maps_run, "cells", restart=True)
    assert step_id(finished_maps_run, "cells") != before and outdated_steps(finished_maps_run) == {"refined"}


def test_units_of_added_images_are_not_missing_until_a_later_step_has_them(finished, added, capsys):
    add(finished, added)
    verify.main(["--run", finished.uri])
    assert "maps: 3 finished units checked, sound; 2 of 5 units are not computed yet." in capsys.readouterr().out
    launch(finished, "maps", "seeds")
    (Path(finished.data("maps").uri) / "done" / "000004.json").unlink()
    with pytest.raises(ValueError, match="verify: the run is damaged"):
        verify.main(["--run", finished.uri])
    assert "maps: 4 finished units checked, 1 of 5 units is missing, although later steps read it" in (
        capsys.readouterr().out
    )
