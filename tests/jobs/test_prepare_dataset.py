"""The manifest's job: what it refuses before anything is frozen."""

import gc
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from PIL import Image

from cluster.connect import connect
from ficklenet.drawing import DRAWN_CLASS_NAMES
from jobs.cli.launch import launch_step
from jobs.preparation.manifest_summary import alike
from jobs.preparation.prepare import Options, next_step, prepare
from jobs.prepare_dataset import main
from jobs.run.directory import open_run
from storage.images import read_mask
from storage.voc import VOC_CLASSES


@pytest.fixture
def table(drawn_images, tmp_path) -> Path:
    lines = [f"{image.uri},{';'.join(image.labels)}" for image in drawn_images]
    (tmp_path / "labels.csv").write_text("\n".join(["image,labels", *lines]))
    return tmp_path / "labels.csv"


def test_table_becomes_a_manifest_with_the_classes_it_names(table, tmp_path, capsys):
    main(["--run", str(tmp_path / "run"), "--csv", str(table)])
    manifest = open_run(str(tmp_path / "run")).manifest()
    assert manifest.num_images == 14
    assert set(manifest.class_names) <= set(DRAWN_CLASS_NAMES)
    assert "14 images" in capsys.readouterr().out


def test_the_collector_works_as_before_after_a_preparation_and_after_a_refusal(table, tmp_path):
    usual = gc.get_threshold()
    main(["--run", str(tmp_path / "run"), "--csv", str(table)])
    with pytest.raises(FileNotFoundError):
        main(["--run", str(tmp_path / "run"), "--csv", str(tmp_path / "missing.csv")])
    assert gc.get_threshold() == usual


def test_parquet_table_becomes_the_same_manifest(table, tmp_path):
    pyarrow.parquet.write_table(pyarrow.csv.read_csv(table), tmp_path / "labels.parquet")
    main(["--run", str(tmp_path / "a"), "--csv", str(table)])
    main(["--run", str(tmp_path / "b"), "--parquet", str(tmp_path / "labels.parquet")])
    a, b = (open_run(str(tmp_path / run)).manifest() for run in "ab")
    assert list(a.iter_rows()) == list(b.iter_rows())


@pytest.mark.parametrize(("classes", "names"), [([], ("cat", "dog")), (["--classes", "dog,cat"], ("dog", "cat"))])
def test_masks_of_a_table_number_its_classes_from_one(classes, names, tmp_path):
    """In the order of --classes, else of the sorted names; every other value is ignored."""
    Image.new("RGB", (5, 1)).save(tmp_path / "a.jpg")
    Image.fromarray(np.array([[0, 1, 2, 3, 255]], np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("image,labels,mask\na.jpg,dog|cat,a.png\n")
    main(["--run", str(tmp_path / "run"), "--csv", str(tmp_path / "labels.csv"), *classes])
    manifest = open_run(str(tmp_path / "run")).manifest()
    (row,) = manifest.iter_rows()
    assert manifest.class_names == names
    assert read_mask(row.mask_uri, manifest.class_values).tolist() == [[0, 1, 2, 255, 255]]


def test_coco_becomes_a_manifest_with_masks_in_the_run(coco_folder, drawn_images, tmp_path, capsys):
    arguments = ["--run", str(tmp_path / "run"), "--coco", str(coco_folder), "--split", "train", "--split", "val"]
    main([*arguments, "--dry-run"])
    assert "13 masks to write" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()

    main(arguments)
    manifest = open_run(str(tmp_path / "run")).manifest()
    assert (manifest.class_names, manifest.class_values) == (tuple(DRAWN_CLASS_NAMES), (10, 20, 30, 40, 50))
    rows = list(manifest.iter_rows())
    assert [row.split for row in rows] == ["train"] * 12 + ["val"] * 2
    assert (rows[11].labels, rows[11].mask_uri) == ((), None)
    for row, image in zip(rows[:11] + rows[12:], drawn_images[:11] + drawn_images[12:], strict=True):
        assert row.mask_uri.startswith(str(tmp_path / "run" / "masks"))
        truth = read_mask(image.mask_uri, range(1, 6))
        assert np.array_equal(read_mask(row.mask_uri, manifest.class_values), np.where(truth == 255, 0, truth))


def test_preparing_coco_again_draws_the_missing_masks_alone(coco_folder, tmp_path):
    arguments = ["--run", str(tmp_path / "run"), "--coco", str(coco_folder), "--split", "train"]
    main(arguments)
    masks = sorted((tmp_path / "run" / "masks").rglob("*.png"))
    before = {mask: mask.stat().st_mtime_ns for mask in masks}
    masks[3].unlink()
    main(arguments)
    assert [mask for mask in masks if mask.stat().st_mtime_ns != before[mask]] == [masks[3]]


def test_one_instances_file_goes_with_a_folder_of_images(coco_folder, tmp_path):
    file = str(coco_folder / "annotations" / "instances_val.json")
    main(["--run", str(tmp_path / "run"), "--coco", file, "--images", str(coco_folder / "val")])
    assert open_run(str(tmp_path / "run")).manifest().num_images == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--split", "test"], "no annotations/instances_test.json .*there are the splits train, val"),
        (["--coco", "/tmp"], r"no annotations/instances_<split>\.json .*give the folder with annotations/"),
        (
            ["--split", "train", "--masks", "masks"],
            "--masks does not go with --coco. Allowed with it: --saliency, --images, --crowds-are-objects",
        ),
        (["--split", "train", "--images", "/nowhere"], r"none of the 12 images can be opened \(first: /nowhere/"),
        (["--split", "train", "--classes", "moom"], "class 'moom': not among .* Did you mean 'moon'"),
    ],
)
def test_coco_folder_with_a_slip_is_refused(coco_folder, tmp_path, arguments, sentence):
    folder = [] if "--coco" in arguments else ["--coco", str(coco_folder)]
    with pytest.raises(ValueError, match=sentence):
        main(["--run", str(tmp_path / "run"), *folder, *arguments])


def test_table_without_a_usable_row_says_why(table, tmp_path):
    rows = table.read_text().splitlines()
    lost = [f"{rows[0]},mask", *(f"{row},../../../mask.png" for row in rows[1:])]
    (tmp_path / "lost.csv").write_text("\n".join(lost))
    arguments = ["--run", str(tmp_path / "run"), "--csv", str(tmp_path / "lost.csv"), "--images", str(table.parent)]
    for more in ([], ["--classes", "moon"]):
        with pytest.raises(
            ValueError, match=rf"none of the {len(rows) - 1} images can be used: 14 of them because .* leads out of"
        ):
            main([*arguments, *more])


def test_setting_of_a_started_step_is_not_dropped_without_a_word(drawn_images, trained_run, capsys):
    run = open_run(trained_run.uri, None, ["classifier.epochs=9", "maps.num_samples=9"])
    prepare(run, drawn_images, DRAWN_CLASS_NAMES)
    command = run.step_command("classifier", "--restart", "classifier")
    assert (
        "classifier.epochs: the run keeps 1, because the step classifier was started with it. "
        f"To change it to 9: '{command}'."
    ) in capsys.readouterr().out
    assert "--set classifier.epochs=9 " in command and f"--run {run.uri} " in command
    config = open_run(trained_run.uri).config
    assert (config.classifier.epochs, config.maps.num_samples) == (1, 9)


def test_a_file_with_other_settings_than_started_steps_have_is_refused_and_changes_nothing(
    drawn_images, trained_run, tmp_path
):
    other = tmp_path / "other.toml"
    other.write_text("[classifier]\nepochs = 9\n[segmenter]\nepochs = 7\n")
    run = open_run(trained_run.uri, str(other))
    before = (run.location / "run.json").read_bytes()
    with pytest.raises(
        ValueError, match=r"other.toml: has other .*\(classifier.epochs: 9, not 1\).* another --run; or"
    ):
        prepare(run, drawn_images, DRAWN_CLASS_NAMES)
    assert (run.location / "run.json").read_bytes() == before

    other.write_text("[segmenter]\nepochs = 7\n")  # of a step that was not started
    prepare(open_run(trained_run.uri, str(other), ["classifier.epochs=9"]), drawn_images, DRAWN_CLASS_NAMES)
    assert open_run(trained_run.uri).config.segmenter.epochs == 7


def test_settings_that_another_file_leaves_as_they_are_are_named(table, tmp_path, capsys):
    small, other = tmp_path / "small.toml", tmp_path / "other.toml"
    small.write_text("unit_size = 3\n[classifier]\nepochs = 2\nweights = 'none'\n[images]\ninput_size = 129\n")
    other.write_text("[classifier]\nepochs = 7\n")
    arguments = ["--run", str(tmp_path / "run"), "--csv", str(table), "--config"]
    for _ in range(2):  # again, with the same file
        main([*arguments, str(small)])
        assert "settings: " not in capsys.readouterr().out
    main([*arguments, str(other)])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("settings: "))
    for kept in ("unit_size = 3", "images.input_size = 129", 'classifier.weights = "none"'):
        assert kept in line
    assert "epochs" not in line and line.endswith("other.toml alone, prepare another run.")

    other.write_text("[classifier]\nfrozen_stages = 'all'\n")  # not with the weights of the first file
    with pytest.raises(ValueError, match=r"Some settings are those of the run. To use .* alone, prepare another run"):
        main([*arguments, str(other)])


def test_misspelt_class_is_refused_with_a_suggestion(table, tmp_path):
    with pytest.raises(ValueError, match=r"no image has the label 'mon'\. Did you mean 'moon'"):
        main(["--run", str(tmp_path / "run"), "--csv", str(table), "--classes", "mon,star"])


@pytest.mark.parametrize(("classes", "fault"), [("moon,star,moon", "'moon' is given twice"), ("moon,,", "is empty")])
def test_class_list_with_a_slip_is_refused(table, tmp_path, classes, fault):
    with pytest.raises(ValueError, match=f"--classes {classes}: .*{fault}"):
        main(["--run", str(tmp_path / "run"), "--csv", str(table), "--classes", classes])


def test_images_that_cannot_be_opened_are_counted_and_named(drawn_images, tmp_path, capsys):
    gone = [replace(image, uri=f"/nowhere{image.uri}") for image in drawn_images[:2]]
    prepare(open_run(str(tmp_path / "run")), [*gone, *drawn_images[2:]], DRAWN_CLASS_NAMES)
    first = ", ".join(f"{image.uri}: missing: no such file" for image in gone)
    assert f"cannot be opened now: 2 images (first: {first})" in capsys.readouterr().out


def test_folder_without_any_of_the_images_is_refused(drawn_images, tmp_path):
    gone = [replace(image, uri=f"/nowhere{image.uri}") for image in drawn_images]
    run = open_run(str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"none of the 14 images can be opened \(first: /nowhere"):
        prepare(run, gone, DRAWN_CLASS_NAMES)
    assert not (run.location / "manifest.parquet").exists()


def test_manifest_may_be_made_anew_until_a_step_starts(drawn_images, trained_run, tmp_path):
    run = open_run(str(tmp_path / "new"))
    prepare(run, drawn_images[:3], DRAWN_CLASS_NAMES)
    prepare(run, drawn_images[:5], DRAWN_CLASS_NAMES)
    assert run.manifest().num_images == 5
    with pytest.raises(ValueError, match="cannot change any more, because steps were started with it"):
        prepare(trained_run, drawn_images[:3], DRAWN_CLASS_NAMES)


def test_a_started_run_with_more_images_is_told_to_add_them(drawn_images, trained_run, tmp_path):
    more = str(shutil.copy(drawn_images[0].uri, tmp_path / "more.png"))
    command = Options(command="python jobs/prepare_dataset.py --run R --folders F")
    extra = replace(drawn_images[0], image_id="more", uri=more, mask_uri=None)
    words = r"manifest.parquet: 1 image is new \(first: 'more'\), and steps were started with the others"
    with pytest.raises(ValueError, match=words) as told:
        prepare(trained_run, [*drawn_images, extra], DRAWN_CLASS_NAMES, options=command)
    assert str(told.value).endswith("Add it with 'python jobs/prepare_dataset.py --run R --folders F --add'.")
    bird = [*drawn_images, replace(extra, labels=("bird",))]
    words = r"1 image is new .* and so is the class 'bird', .* prepare another run"
    with pytest.raises(ValueError, match=words) as told:
        prepare(trained_run, bird, [*DRAWN_CLASS_NAMES, "bird"], options=command)
    assert str(told.value).endswith("to this run: 'python jobs/prepare_dataset.py --run R --folders F --add'.")
    with pytest.raises(ValueError, match="differs in more than the masks"):  # others are missing
        prepare(trained_run, [*drawn_images[1:], extra], DRAWN_CLASS_NAMES, options=command)


def test_a_list_without_validation_images_is_told(drawn_images, tmp_path, capsys):
    training = [replace(image, split="train") for image in drawn_images]
    prepare(open_run(str(tmp_path / "run")), training, DRAWN_CLASS_NAMES)
    told = "  no validation: no image is in the split val. All images are used for training, and masks are predicted "
    assert (
        f"{told}for all. If one of the splits is for validation, give --set data.val_splits=" in capsys.readouterr().out
    )
    named = open_run(str(tmp_path / "other"), None, ["data.val_splits=train"])
    prepare(named, training, DRAWN_CLASS_NAMES)
    assert "no validation" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["shep", "cat", "sheep"], [("shep", "sheep")]),
        (["horse", "hrose", "dog", "dgo"], [("horse", "hrose"), ("dog", "dgo")]),
        (["cat", "cats", "bus", "catz"], [("cat", "cats")]),
        (["horse", "hirse"], [("horse", "hirse")]),
        (["horse", "house_2", "herso", "!", "?"], []),
        (["Dog", "dog", "potted plant", "potted_plant"], [("Dog", "dog"), ("potted plant", "potted_plant")]),
        (["cat", "bat", "car", "cart", "class 1", "class 2", "class 10", *VOC_CLASSES], []),
    ],
)
def test_class_names_that_may_be_one_misspelt_are_told(names, pairs):
    assert alike(list(dict.fromkeys(names))) == pairs


def test_alike_classes_are_told_where_the_list_is_made_of_the_labels(drawn_images, tmp_path, capsys):
    table = tmp_path / "labels.csv"
    table.write_text(
        "\n".join(["image,labels", *(f"{drawn_images[n].uri},{'cross' if n else 'corss'}" for n in range(3))])
    )
    main(["--run", str(tmp_path / "run"), "--csv", str(table)])
    assert "or one misspelt? 'corss' 1, 'cross' 2. If it is one class, correct its labels" in capsys.readouterr().out
    main(["--run", str(tmp_path / "run"), "--csv", str(table), "--classes", "cross,corss"])
    assert "misspelt" not in capsys.readouterr().out


def test_labels_separated_by_commas_and_images_without_any_are_told(drawn_images, tmp_path, capsys):
    table = tmp_path / "labels.csv"
    rows = [f"{drawn_images[0].uri},star", f'{drawn_images[1].uri},"star, ring"', f"{drawn_images[2].uri},"]
    table.write_text("\n".join(["image,labels", *rows]))
    main(["--run", str(tmp_path / "run"), "--csv", str(table)])
    printed = capsys.readouterr().out
    assert "  without a label: 1; not used for training" in printed
    assert (
        "  one class, or several? 'star, ring' 1; labels are separated by ';' or '|', or give --label-separator ','\n"
        in printed
    )


@pytest.mark.parametrize("split", ["val", "train"])
def test_the_next_command_is_one_that_goes_on(split, drawn_images, tmp_path, capsys):
    table, run = tmp_path / "labels.csv", tmp_path / "run"
    rows = [f"{image.uri},star,{name}" for image, name in zip(drawn_images, ("train", split), strict=False)]
    table.write_text("\n".join(["image,labels,split", *rows]))
    main(["--run", str(run), "--csv", str(table)])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"  next:    'python jobs/run_pipeline.py --run {run}'")
    assert open_run(str(run)).config.predicted_splits == (split,)


@pytest.mark.parametrize(
    ("given", "is_noted"),
    [
        ([], True),
        (["--set", "seeds.theta=0.5"], True),
        (["--config", "docs/examples/own_data.toml"], False),
        (["--set", "classifier.backbone=small"], False),
    ],
)
def test_a_preparation_without_a_config_names_the_settings_for_a_machine_without_a_gpu(
    given, is_noted, table, tmp_path, capsys
):
    main(["--run", str(tmp_path / "run"), "--csv", str(table), *given])
    note = (
        "  settings: those of the paper (vgg16, for a GPU). On a machine without a GPU, give --config "
        "docs/examples/own_data.toml.\n"
    )
    assert (note in capsys.readouterr().out) == is_noted


def test_masks_that_come_after_the_last_step_are_for_measuring(drawn_images, predicted_run):
    assert next_step(predicted_run).startswith("'python jobs/evaluate.py --run ")
    prepare(predicted_run, [replace(image, mask_uri=None) for image in drawn_images], DRAWN_CLASS_NAMES)
    assert next_step(predicted_run).startswith("'python jobs/run_pipeline.py --run ")


def test_masks_may_be_named_after_steps_were_started(drawn_images, trained_run, map_images, capsys):
    run = map_images([replace(image, mask_uri=None) for image in drawn_images])
    prepare(run, drawn_images, DRAWN_CLASS_NAMES)
    assert "  with:    a mask 14\n" in capsys.readouterr().out
    with connect("in-process") as connection:
        launch_step(run, connection, "maps")  # nothing that the maps are made of has changed
        assert "0 of 4 units to do" in capsys.readouterr().out
    with pytest.raises(ValueError, match="differs in more than the masks"):
        prepare(run, drawn_images[:-1], DRAWN_CLASS_NAMES)


def test_a_preparation_with_other_flags_is_refused_with_the_first_difference(drawn_images, trained_run):
    names = list(DRAWN_CLASS_NAMES)
    other = sorted(set(names) - set(drawn_images[0].labels))[0]
    label = replace(drawn_images[0], labels=(other,))
    for images, classes, difference in (
        (
            [replace(image, split="") for image in drawn_images],
            names,
            "14 images have another split (first: 'scene_0000', before train, now none)",
        ),
        ([label, *drawn_images[1:]], names, f"another list of labels (first: 'scene_0000', before .*, now {other})"),
        (drawn_images[:-1], names, "1 image is missing (first: 'scene_0013')"),
        ([*drawn_images, replace(drawn_images[0], image_id="other")], names, "1 image is new (first: 'other')"),
        (drawn_images[::-1], names, "the images have another order (first: 'scene_0000')"),
        (drawn_images, names[::-1], "the classes have another order (moon, "),
        (drawn_images, [*names, "cat"], "the class 'cat' is new"),
        (
            [replace(drawn_images[0], saliency_uri=drawn_images[0].mask_uri), *drawn_images[1:]],
            names,
            "another saliency map (first",
        ),
    ):
        sentence = re.escape(difference).replace(r"\.\*", ".*")
        with pytest.raises(ValueError, match=f"folder: .*{sentence}.*Give the flags of the first preparation"):
            prepare(trained_run, images, classes)
