"""Predictions of a tiny trained run: what is stored, resume, refusals, and the figures beside those of the seeds."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.connect import connect
from jobs import (
    aggregate_seeds,
    contact_sheet,
    evaluate,
    export_labels,
    import_masks,
    predict_masks,
    prepare_dataset,
    run_pipeline,
    status,
    train_ficklenet,
    train_segmentation,
)
from jobs.cli.launch import launch_step
from jobs.evaluation.measuring import evaluate_labels
from jobs.notebook.trained_run import open_trained
from jobs.predictions.new_images import find_images
from jobs.predictions.prediction_stages import PredictionStages, Predictor
from jobs.run.directory import Run, open_run
from jobs.steps.networks import load_segmenter
from storage.errors import NotYet
from storage.images import read_mask
from storage.label_folder import encode_label_png
from storage.location import Location
from storage.units import Unit

VAL = ("scene_0012", "scene_0013")


def predict(run: Run, *assignments: str, restart: bool = False) -> Run:
    changed = open_run(run.uri, None, assignments)
    with connect("in-process") as connection:
        launch_step(changed, connection, "predictions", restart=restart)
    return changed


def files(run: Run, place: str = "labels") -> dict[str, bytes]:
    return {file.stem: file.read_bytes() for file in Path(run.data("predictions").uri, place).iterdir()}


def labels(run: Run, place: str, name: str) -> np.ndarray:
    return np.array(Image.open(run.labels("predictions", place).place(name).uri))


def test_validation_images_are_labelled_at_their_own_size_with_and_without_crf(segmented_run):
    predict(segmented_run)
    assert set(files(segmented_run)) == set(files(segmented_run, "unrefined")) == set(VAL)
    for place in ("labels", "unrefined"):
        found = labels(segmented_run, place, VAL[0])
        assert found.shape == (120, 160) and found.max() <= 5
    predict(segmented_run, "predictions.refine=false", restart=True)
    assert list(Path(segmented_run.data("predictions").uri).glob("unrefined")) == []
    assert set(files(segmented_run)) == set(VAL)


def summed_logits(run: Run, *assignments: str) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """Of the last unit: the shapes of the network's inputs, and what the actor makes of them."""
    predict(run, *assignments, restart=True)
    run = open_run(run.uri, None, assignments)
    job = PredictionStages(run, load_segmenter(run).spec, "cpu")
    read = job.read({"unit": Unit(3, 12, 14), "start_id": "", "skipped": ()})
    return [inputs.shape for inputs in read["inputs"]], Predictor(job)(read)["logits"]


def test_logits_of_scales_and_mirror_images_are_summed_on_the_finest_grid(segmented_run):
    shapes, plain = summed_logits(segmented_run)
    assert shapes == [(2, 3, 65, 65)] and plain.shape == (2, 6, 9, 9)
    shapes, scaled = summed_logits(segmented_run, "predictions.scales=0.75,1,1.25")
    assert shapes == [(2, 3, 49, 49), (2, 3, 65, 65), (2, 3, 81, 81)]
    _, mirrored = summed_logits(segmented_run, "predictions.mirror=true", "predictions.scales=1")
    assert scaled.shape == (2, 6, 11, 11) and mirrored.shape == plain.shape
    assert not np.allclose(mirrored, 2 * plain)


def test_other_splits_are_predicted_when_asked(segmented_run):
    predict(segmented_run, "predictions.splits=train,val")
    assert len(files(segmented_run)) == 14


def test_a_relaunch_predicts_only_what_is_missing_and_stores_the_same_bytes(segmented_run, capsys):
    everything = "predictions.splits=train,val"
    predict(segmented_run, everything)
    before = files(segmented_run)
    (segmented_run.location / "predictions" / "done" / "000002.json").delete()
    capsys.readouterr()
    predict(segmented_run, everything)
    assert "1 of 4 units to do (4 of 14 images)" in capsys.readouterr().out
    assert files(segmented_run) == before


def test_images_of_other_splits_in_the_same_unit_are_not_counted(segmented_run, capsys):
    predict(segmented_run, "unit_size=8")  # its last unit holds four training images beside the two of val
    printed = capsys.readouterr().out
    assert "1 of 1 unit to do (2 of 2 images)" in printed and "predictions: 2 images done, 0 skipped, 0 left" in printed


def test_another_network_or_setting_is_refused(segmented_run):
    predict(segmented_run)
    with pytest.raises(ValueError, match=r"predictions\.mirror: False -> True.*--restart predictions"):
        predict(segmented_run, "predictions.mirror=true")
    with connect("in-process") as connection:
        launch_step(open_run(segmented_run.uri, None, ["segmenter.epochs=1"]), connection, "segmenter", restart=True)
    with pytest.raises(ValueError, match=r"its segmenter changed since.*--restart predictions"):
        predict(segmented_run)


def test_an_image_that_cannot_be_read_is_skipped_and_counted(segmented_run, drawn_images, monkeypatch, capsys):
    from jobs.predictions import prediction_stages

    original = prediction_stages.read_image

    def read(uri, **limits):
        if VAL[0] in uri:
            raise prediction_stages.BadImage("cut off")
        return original(uri, **limits)

    monkeypatch.setattr(prediction_stages, "read_image", read)
    predict(segmented_run)
    assert set(files(segmented_run)) == {VAL[1]}
    assert "1 skipped" in capsys.readouterr().out


def test_what_is_missing_is_named(seeded_run, segmented_run):
    with pytest.raises(ValueError, match=r"predict_masks: .* no trained segmentation network.*train_segmentation"):
        predict(seeded_run)
    with pytest.raises(ValueError, match=r"of the split gold, .* has the splits train, val\. .*splits=train,val"):
        predict(segmented_run, "predictions.splits=gold")


def test_figures_stand_beside_those_of_densified_seeds_on_the_same_images(segmented_run):
    predict(segmented_run)
    with connect("in-process") as connection:
        figures = evaluate_labels(segmented_run, connection, ["val"], None, ("image",), deterministic=False)
        by_name = {figure.labels: figure for figure in figures}
        assert {"densified seeds", "predictions", "predictions without CRF"} <= by_name.keys()
        assert {figure.num_images for figure in figures} == {2}
        assert by_name["predictions"].matrix.sum() == by_name["densified seeds"].matrix.sum()
        assert "predictions" in by_name["predictions"].settings and "predictions" not in by_name["seeds"].settings
        of_train = evaluate_labels(segmented_run, connection, ["train"], "all", ("image",), deterministic=False)
    assert all("predictions" not in figure.labels for figure in of_train)


def test_a_run_on_s3_gets_the_same_masks_as_a_local_one(segmented_run, s3_environment):
    remote = Location.parse("s3://test-bucket/predictions/run")
    for file in Path(segmented_run.uri).rglob("*"):
        if file.is_file():
            (remote / file.relative_to(segmented_run.uri).as_posix()).write_bytes(file.read_bytes())
    predict(segmented_run)
    predict(open_run(remote.uri))
    for name, content in files(segmented_run).items():
        assert (remote / "predictions" / "labels" / f"{name}.png").read_bytes() == content


@pytest.mark.parametrize(("favoured", "is_told"), [((0, 0), True), ((0, 3), False)])
def test_a_network_that_labels_everything_alike_is_told(favoured, is_told, segmented_run, monkeypatch, capsys):
    labels = iter(favoured)  # of one image after the other

    def predict_one(self: Predictor, inputs: list[np.ndarray]) -> np.ndarray:
        return np.eye(6, dtype=np.float32)[[next(labels)]][:, :, None, None].repeat(9, 2).repeat(9, 3)

    monkeypatch.setattr(Predictor, "predict", predict_one)
    predict(segmented_run, "predictions.refine=false", restart=True)
    printed = capsys.readouterr().out
    assert ("predictions: every pixel is background. The tiny network of a trial often does that" in printed) == is_told
    assert "predictions/labels; values: 0 background, 1 star, 2 ring, 3 cross, 4 stripes, 5 moon\n" in printed


def test_one_picture_is_a_new_image_too_and_a_folder_that_is_missing_is_named(drawn_images, tmp_path):
    ([found], _) = find_images(Location(drawn_images[0].uri))
    assert (found.image_id, found.uri) == ("scene_0000", drawn_images[0].uri)
    with pytest.raises(ValueError, match=r"nowhere: no such folder. Give an image, a folder"):
        find_images(Location(str(tmp_path / "nowhere")))


# New images


@pytest.fixture
def new_images(drawn_images, tmp_path) -> Path:
    """The two validation images, in folders, under one name; and a file that is no image."""
    for number, image in enumerate(drawn_images[-2:]):
        place = tmp_path / "october" / f"day{number}" / f"photo{Path(image.uri).suffix}"
        place.parent.mkdir(parents=True)
        place.write_bytes(Path(image.uri).read_bytes())
    (tmp_path / "october" / "notes.txt").write_text("no image")
    return tmp_path / "october"


def predict_new(run: Run, images: Path, out: Path, *flags: str) -> dict[str, bytes]:
    """The output's label images by name."""
    predict_masks.main(["--run", run.uri, "--images", str(images), "--out", str(out), *flags])
    return {
        file.stem: file.read_bytes() for file in Path(open_run(str(out)).labels("predictions").location.uri).iterdir()
    }


def test_new_images_get_the_same_masks_as_in_the_run_and_the_output_names_the_network(
    decided_run, new_images, tmp_path
):
    found = predict_new(decided_run, new_images, tmp_path / "out")
    expected = files(decided_run)
    assert len(np.unique(labels(decided_run, "labels", VAL[0]))) > 2
    assert found == {"day0__photo": expected[VAL[0]], "day1__photo": expected[VAL[1]]}
    origin = json.loads((tmp_path / "out" / "origin.json").read_text())
    complete = json.loads(Path(decided_run.uri, "segmenter", "complete.json").read_text())
    assert origin["run"] == decided_run.uri and origin["sha256"] == complete["sha256"]
    record = json.loads((tmp_path / "out" / "predictions" / "step.json").read_text())
    assert record["fingerprint"]["upstream"] == {"segmenter": complete["sha256"]}


def test_new_images_come_with_a_warning_of_other_classes(predicted_run, new_images, tmp_path, capsys):
    predict_new(predicted_run, new_images, tmp_path / "out")
    printed = capsys.readouterr().out
    assert printed.count("an object of another class gets one of the run's classes (star, ring, cross, ") == 1


def test_a_table_of_new_images_needs_no_labels(predicted_run, new_images, tmp_path):
    (new_images / "list.csv").write_text("image\nday1/photo.png\n")
    assert set(predict_new(predicted_run, new_images / "list.csv", tmp_path / "out")) == {"day1__photo"}


def test_new_images_are_continued_by_the_same_command_and_refused_with_others(
    predicted_run, new_images, tmp_path, capsys
):
    out = tmp_path / "out"
    before = predict_new(predicted_run, new_images, out)
    next((out / "predictions" / "done").iterdir()).unlink()
    capsys.readouterr()
    assert predict_new(predicted_run, new_images, out) == before
    assert "1 of 1 unit to do (2 of 2 images)" in capsys.readouterr().out
    (new_images / "day0" / "photo.png").rename(new_images / "day0" / "other.png")
    with pytest.raises(ValueError, match=r"was started with 2 images, but .*october has other images now"):
        predict_new(predicted_run, new_images, out)
    assert "day0__other" in predict_new(predicted_run, new_images, out, "--restart", "predictions")


@pytest.mark.parametrize("inside", ["", "day0/masks"])
def test_masks_are_not_written_among_the_new_images(predicted_run, new_images, inside):
    before = set(new_images.rglob("*"))
    with pytest.raises(ValueError, match=r"--out .*is in the folder of --images.*, such as .*october-masks\.$"):
        predict_new(predicted_run, new_images, new_images / inside)
    assert set(new_images.rglob("*")) == before


@pytest.mark.parametrize("inside", ["predictions", "maps/maps.zarr"])
def test_outputs_are_not_written_into_the_folder_of_a_step(predicted_run, new_images, inside, capsys):
    place = Path(predicted_run.uri, inside)
    refusal = rf"--\w+ .*{inside}.*: is in the folder of the step {inside[:4]}\w* of the run .*outside the run\.$"
    with pytest.raises(ValueError, match=refusal):
        predict_new(predicted_run, new_images, place)
    with pytest.raises(ValueError, match=refusal):
        export_labels.main(["--run", predicted_run.uri, "--format", "png", "--out", f"{place}/png"])
    with pytest.raises(ValueError, match=refusal):
        prepare_dataset.main(["--run", f"{place}/run", "--folders", str(new_images)])


def test_the_printed_place_of_the_masks_is_right_after_a_restart(predicted_run, capsys):
    predict(predicted_run, restart=True)
    (place,) = re.findall(r"masks are in (\S+);", capsys.readouterr().out)
    assert "/start-" in place and sorted(file.stem for file in Path(place).iterdir()) == list(VAL)


def test_no_images_are_added_to_a_run_of_new_images(predicted_run, new_images, tmp_path):
    predict_new(predicted_run, new_images, tmp_path / "out")
    with pytest.raises(ValueError, match=r"^--add: .* has only masks of new.*give predict_masks.py another --out"):
        prepare_dataset.main(["--run", str(tmp_path / "out"), "--folders", str(new_images), "--add"])


def test_masks_that_lie_among_the_new_images_are_no_photographs(predicted_run, new_images, tmp_path):
    predict_new(predicted_run, new_images, tmp_path / "out")
    (tmp_path / "out").rename(new_images / "masks")
    with pytest.raises(ValueError, match="october: has a run in it, masks/, and its masks would be taken for"):
        predict_new(predicted_run, new_images, tmp_path / "again")
    assert not (tmp_path / "again").exists()
    table = tmp_path / "october" / "new.csv"  # a table names its images, so its folder may hold anything
    table.write_text("image\nday0/photo.png\n")
    assert len(predict_new(predicted_run, table, new_images / "of_table")) == 1


def test_new_images_are_not_mixed_from_two_networks(predicted_run, new_images, tmp_path):
    predict_new(predicted_run, new_images, tmp_path / "out")
    with connect("in-process") as connection:
        launch_step(open_run(predicted_run.uri, None, ["segmenter.epochs=1"]), connection, "segmenter", restart=True)
    with pytest.raises(ValueError, match=r"was started with the segmenter \w{8}, but .* has \w{8} now"):
        predict_new(predicted_run, new_images, tmp_path / "out")


def test_a_run_of_new_images_says_that_it_has_only_masks(predicted_run, new_images, tmp_path, capsys):
    predict_new(predicted_run, new_images, tmp_path / "out")
    place = str(tmp_path / "out")
    capsys.readouterr()
    status.main(["--run", place])
    origin, *steps = capsys.readouterr().out.splitlines()[1:]
    assert origin == f"it has only masks of new images, made with the network of {predicted_run.uri}"
    assert [line.partition(":")[0] for line in steps if line[0] != " "] == [
        *("segmenter", "predictions", "log of the latest launch")
    ]
    only_masks = f"only masks of new images. For everything else use the run that made them, {predicted_run.uri}."
    run = open_trained(place)
    assert run.stored_labels("day0__photo").shape == run.predict(run.image("day0__photo")).shape
    for read in (
        lambda: run.localize(run.image("day0__photo"), run.class_names[:1]),
        lambda: run.stored_maps("day0__photo"),
        lambda: run.path("maps"),
    ):
        with pytest.raises(NotYet, match=f"{only_masks}$"):
            read()
    with pytest.raises(NotYet, match=f"^classifier: {place} has {only_masks}$"):
        _ = run.classifier
    with pytest.raises(NotYet, match=f"^the step evaluation has no results yet. {place} has {only_masks}$"):
        run.path("evaluation")
    for script in (train_ficklenet, run_pipeline, aggregate_seeds):
        for flags in ([], ["--dry-run"]):
            with pytest.raises(
                ValueError, match=f"^{script.__name__.removeprefix('jobs.')}: {place} has {only_masks}$"
            ):
                script.main(["--run", place, *flags])


def printed_commands(line: str) -> list[list[str]]:
    return [shlex.split(command) for command in re.findall(r"'python jobs/(.+?)'(?:, then|\.?$| now)", line)]


def test_corrected_masks_of_new_images_are_added_to_the_run_that_made_them(
    decided_run, new_images, drawn_images, tmp_path, capsys
):
    out, hand = tmp_path / "out", tmp_path / "hand"
    predict_new(decided_run, new_images, out)
    hand.mkdir()
    (hand / "day0__photo.png").write_bytes(Path(drawn_images[-2].mask_uri).read_bytes())
    (hand / "day1__photo.png").write_bytes(encode_label_png(np.zeros((120, 160), np.uint8)))
    importing = ["--run", str(out), "--masks", str(hand), "--empty-is-background"]
    capsys.readouterr()
    import_masks.main([*importing, "--table", str(tmp_path / "table.csv")])
    add = ["prepare_dataset.py", "--run", decided_run.uri, "--csv", str(tmp_path / "table.csv")]
    printed = capsys.readouterr().out.splitlines()[-1]
    assert printed_commands(printed)[0] == [*add, "--add", "--unlabelled-are-negative"]
    import_masks.main(importing)
    measure, following = capsys.readouterr().out.splitlines()[-2:]
    assert printed_commands(measure) == [["evaluate.py", "--run", str(out), "--split=new", "--part=all"]]
    evaluate.main(printed_commands(measure)[0][1:])
    add, compute, train, _ = printed_commands(following)
    assert (add[0], compute[0], train[0]) == ("prepare_dataset.py", "run_pipeline.py", "train_segmentation.py")
    prepare_dataset.main(add[1:])
    manifest = open_run(decided_run.uri).manifest()
    first, second = manifest.rows(14, 16)
    expected = manifest.index_of(VAL[0])
    assert first.labels == manifest.rows(expected, expected + 1)[0].labels and second.negative
    assert {first.split, second.split} == {"train"}  # data.train_splits does not have the split "corrected"
    assert first.mask_uri and second.mask_uri
    np.testing.assert_array_equal(
        read_mask(first.mask_uri, manifest.class_values), np.array(Image.open(hand / "day0__photo.png"))
    )
    with connect("in-process") as connection:
        for step in ("maps", "seeds"):  # as the pipeline does
            launch_step(open_run(decided_run.uri), connection, step)
    train_segmentation.main(train[1:])


def test_if_the_run_that_made_the_masks_is_gone_its_commands_are_not_printed(
    decided_run, new_images, drawn_images, tmp_path, capsys
):
    out, hand = tmp_path / "out", tmp_path / "hand"
    predict_new(decided_run, new_images, out)
    hand.mkdir()
    (hand / "day0__photo.png").write_bytes(Path(drawn_images[-2].mask_uri).read_bytes())
    shutil.move(decided_run.uri, tmp_path / "elsewhere")
    capsys.readouterr()
    import_masks.main(["--run", str(out), "--masks", str(hand)])
    measure, following = capsys.readouterr().out.splitlines()[-2:]
    assert "evaluate.py" in measure and f"{decided_run.uri}, is not there any more" in following
    assert [command[2] for command in printed_commands(following)] == ["OTHER_RUN"]


def test_imported_masks_of_new_images_stay_when_they_are_predicted_again(
    predicted_run, new_images, drawn_images, tmp_path, capsys
):
    out, hand = tmp_path / "out", tmp_path / "hand"
    predict_new(predicted_run, new_images, out)
    hand.mkdir()
    (hand / "day1__photo.png").write_bytes(Path(drawn_images[-1].mask_uri).read_bytes())
    import_masks.main(["--run", str(out), "--masks", str(hand)])
    shutil.rmtree(new_images / "day0")
    predict_new(predicted_run, new_images, out, "--restart", "predictions")
    assert (
        "predict: 1 imported mask stays in the run. They do not measure a network that was" in capsys.readouterr().out
    )
    manifest = open_run(str(out)).manifest()
    (row,) = manifest.iter_rows()
    assert row.mask_uri and row.mask_uri.startswith(f"{out}/corrected/")
    np.testing.assert_array_equal(
        read_mask(row.mask_uri, manifest.class_values), np.array(Image.open(hand / "day1__photo.png"))
    )


def test_no_command_of_another_step_is_printed_for_a_run_of_new_images(predicted_run, new_images, tmp_path):
    out = tmp_path / "out"
    predict_new(predicted_run, new_images, out)
    only_masks = f"only masks of new images. For everything else use the run that made them, {predicted_run.uri}."
    for job, flags in ((contact_sheet, []), (export_labels, ["--format", "coco", "--labels", "seeds"])):
        with pytest.raises(ValueError, match=only_masks):
            job.main(["--run", str(out), *flags])
    next((out / "predictions" / "done").iterdir()).unlink()
    command = f"python jobs/predict_masks.py --run {out}"
    with pytest.raises(NotYet, match=f"the masks of {out} are not finished. Run '{command}' first"):
        export_labels.main(["--run", str(out), "--format", "coco"])
    predict_masks.main(shlex.split(command)[2:])
    export_labels.main(["--run", str(out), "--format", "coco"])


def test_flags_of_new_images_go_together(predicted_run, tmp_path):
    with pytest.raises(ValueError, match="--images and --out go together"):
        predict_masks.main(["--run", predicted_run.uri, "--images", str(tmp_path)])
    with pytest.raises(ValueError, match=r"--images .*: no such folder\. Give an image, a folder"):
        predict_masks.main(["--run", predicted_run.uri, "--images", str(tmp_path / "none"), "--out", str(tmp_path)])
