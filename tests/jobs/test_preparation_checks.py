"""What the preparation finds out about pictures, masks, saliency maps and splits before anything is frozen."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.preparation import pictures
from jobs.preparation.split_roles import with_roles
from jobs.prepare_dataset import main
from jobs.run.config_keys import Config
from jobs.run.directory import Run, open_run, preparations, record_run
from storage.images import read_mask, read_saliency
from storage.manifest import Manifest, ManifestRow

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
SQUARE = np.zeros((24, 32), np.uint8)
SQUARE[2:12, 4:20] = 1  # upper left
OUTLINE = [[4, 2, 20, 2, 20, 12, 4, 12]]


def put_picture(place: Path, orientation: int = 1, size: tuple[int, int] = (32, 24)) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 90, 90)).save(place, exif=exif)


def put_table(folder: Path, *rows: str, header: str = "image,labels,split") -> list[str]:
    (folder / "labels.csv").write_text("\n".join([header, *rows]) + "\n")
    return ["--csv", str(folder / "labels.csv")]


def prepared(folder: Path, *arguments: str) -> Run:
    main(["--run", str(folder / "run"), *arguments])
    return open_run(str(folder / "run"))


def rows_of(run: Run) -> dict[str, ManifestRow]:
    return {row.image_id: row for row in run.manifest().iter_rows()}


def truth(run: Run, image_id: str) -> np.ndarray:
    return read_mask(str(rows_of(run)[image_id].mask_uri), run.manifest().class_values)


# Sizes


def coco(folder: Path, width: int, height: int) -> list[str]:
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": width, "height": height}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": OUTLINE, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return ["--coco", str(folder / "instances.json")]


def test_outlines_drawn_before_a_picture_was_turned_are_turned_with_it(tmp_path, capsys):
    put_picture(tmp_path / "a.jpg", orientation=6)
    run = prepared(tmp_path, *coco(tmp_path, 32, 24))
    assert (rows_of(run)["a"].height, rows_of(run)["a"].width) == (32, 24)
    np.testing.assert_array_equal(truth(run, "a"), np.rot90(SQUARE, -1))
    assert "1 image with another size in the annotations than the picture has" in capsys.readouterr().out


def test_outlines_drawn_on_the_upright_picture_stay(tmp_path, capsys):
    put_picture(tmp_path / "a.jpg", orientation=6, size=(24, 32))
    run = prepared(tmp_path, *coco(tmp_path, 32, 24))
    np.testing.assert_array_equal(truth(run, "a"), SQUARE)
    assert "note:" not in capsys.readouterr().out


def test_outlines_of_a_picture_that_was_shrunk_are_scaled(tmp_path):
    put_picture(tmp_path / "a.jpg", size=(16, 12))
    run = prepared(tmp_path, *coco(tmp_path, 32, 24))
    assert (rows_of(run)["a"].height, rows_of(run)["a"].width) == (12, 16)
    np.testing.assert_array_equal(truth(run, "a"), SQUARE[::2, ::2])


def test_outlines_of_another_picture_make_no_mask(tmp_path, capsys):
    put_picture(tmp_path / "a.jpg", size=(24, 32))
    run = prepared(tmp_path, *coco(tmp_path, 32, 24))
    assert (rows_of(run)["a"].labels, rows_of(run)["a"].mask_uri) == ((0,), None)
    assert "without a mask, because the outlines were drawn on a picture with another" in capsys.readouterr().out


def test_a_mask_file_is_turned_with_its_picture(tmp_path):
    put_picture(tmp_path / "a.jpg", orientation=8)
    put_picture(tmp_path / "b.jpg")
    for name in "ab":
        Image.fromarray(SQUARE).save(tmp_path / f"{name}.png")
    table = put_table(tmp_path, "a.jpg,cat,a.png", "b.jpg,cat,b.png", header="image,labels,mask")
    run = prepared(tmp_path, *table)
    np.testing.assert_array_equal(truth(run, "a"), np.rot90(SQUARE))
    assert rows_of(run)["b"].mask_uri == str(tmp_path / "b.png")  # it fits as it is


def test_a_mask_file_of_a_smaller_or_larger_copy_is_scaled_to_its_picture(tmp_path):
    put_picture(tmp_path / "a.jpg")
    put_picture(tmp_path / "b.jpg")
    Image.fromarray(SQUARE[::2, ::2]).save(tmp_path / "a.png")
    Image.fromarray(np.repeat(np.repeat(SQUARE, 2, 0), 2, 1)).save(tmp_path / "b.png")
    run = prepared(tmp_path, *put_table(tmp_path, "a.jpg,cat,a.png", "b.jpg,cat,b.png", header="image,labels,mask"))
    np.testing.assert_array_equal(truth(run, "a"), np.repeat(np.repeat(SQUARE[::2, ::2], 2, 0), 2, 1))
    np.testing.assert_array_equal(truth(run, "b"), SQUARE)


# Masks and saliency maps


def test_masks_that_are_missing_or_of_another_shape_are_left_out_and_told(tmp_path, capsys):
    for name in "abc":
        put_picture(tmp_path / f"{name}.jpg")
    Image.fromarray(SQUARE).save(tmp_path / "a.png")
    Image.fromarray(SQUARE[:, :24]).save(tmp_path / "b.png")
    table = put_table(tmp_path, *(f"{name}.jpg,cat,{name}.png" for name in "abc"), header="image,labels,mask")
    run = prepared(tmp_path, *table)
    assert [bool(row.mask_uri) for row in rows_of(run).values()] == [True, False, False]
    printed = capsys.readouterr().out
    assert "  with:    a mask 1\n" in printed
    assert f"1 mask cannot be opened and is left out (first: {tmp_path}/c.png: missing: no such file)" in printed
    assert f"1 mask left out, because the aspect ratio differs from the picture's (first: {tmp_path}/b.png)" in printed


@pytest.mark.parametrize(
    ("convert", "suffix", "values"),
    [
        (lambda mask: np.where(mask, 255, 0), "png", "255=label"),
        (lambda mask: np.where(mask, 255, 0), "jpg", "255=label"),
        (lambda mask: mask, "png", "1=label"),
        (lambda mask: np.where(mask, 0, 255), "png", "0=label,255=background"),
        (lambda mask: np.dstack([mask * 128, mask * 0, mask * 0]), "png", "#800000=label"),
    ],
)
def test_masks_of_another_kind_are_translated_into_the_run(convert, suffix, values, tmp_path):
    for name in ("cat", "dog"):
        put_picture(tmp_path / f"{name}.jpg")
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(convert(SQUARE).astype(np.uint8)).save(tmp_path / f"masks/{name}.{suffix}")
    rows = [f"{name}.jpg,{name},masks/{name}.{suffix}" for name in ("cat", "dog")]
    run = prepared(tmp_path, *put_table(tmp_path, *rows, header="image,labels,mask"), "--mask-values", values)
    for number, name in enumerate(("cat", "dog"), start=1):
        assert str(rows_of(run)[name].mask_uri).startswith(f"{run.uri}/masks/")
        found = truth(run, name)
        assert (found == SQUARE * number).mean() > (0.98 if suffix == "jpg" else 0.9999)


def test_a_mask_that_cannot_be_translated_is_dropped_with_its_reason(tmp_path, capsys):
    for name in "ab":
        put_picture(tmp_path / f"{name}.jpg")
        Image.fromarray(SQUARE * 255).save(tmp_path / f"{name}.png")
    table = put_table(tmp_path, "a.jpg,cat;dog,a.png", "b.jpg,dog,b.png", header="image,labels,mask")
    run = prepared(tmp_path, *table, "--mask-values", "255=label")
    assert [bool(row.mask_uri) for row in rows_of(run).values()] == [False, True]
    assert "the image has 2 labels" in capsys.readouterr().out


def test_masks_whose_classes_are_not_their_images_are_told(tmp_path, capsys):
    for name in ("cat", "dog"):
        put_picture(tmp_path / f"{name}.jpg")
        Image.fromarray(SQUARE).save(tmp_path / f"{name}.png")
    prepared(tmp_path, *put_table(tmp_path, "cat.jpg,cat,cat.png", "dog.jpg,dog,dog.png", header="image,labels,mask"))
    assert "1 have a class that is not a label of their image (first: 'dog', labelled dog)" in capsys.readouterr().out


def test_masks_of_the_documented_kind_need_no_word(tmp_path, capsys):
    put_picture(tmp_path / "a.jpg")
    mask = SQUARE.copy()
    mask[0] = 255
    Image.fromarray(mask).save(tmp_path / "a.png")
    prepared(tmp_path, *put_table(tmp_path, "a.jpg,cat,a.png", header="image,labels,mask"))
    assert "note:" not in capsys.readouterr().out


def test_saliency_of_zero_and_one_is_copied_with_white_for_one(tmp_path, capsys):
    for name in "ab":
        put_picture(tmp_path / f"{name}.jpg")
        Image.fromarray(SQUARE).save(tmp_path / f"{name}.png")
    table = put_table(tmp_path, "a.jpg,cat,a.png", "b.jpg,dog,b.png", header="image,labels,saliency")
    run = prepared(tmp_path, *table)
    np.testing.assert_array_equal(read_saliency(str(rows_of(run)["a"].saliency_uri)), SQUARE)
    printed = capsys.readouterr().out
    assert "saliency maps have only values up to 1" in printed and "does not use" not in printed


def test_saliency_maps_that_the_configuration_does_not_use_are_counted(tmp_path, capsys):
    for name in "ab":
        put_picture(tmp_path / f"{name}.jpg")
        Image.fromarray(255 * SQUARE).save(tmp_path / f"{name}.png")
    table = put_table(tmp_path, "a.jpg,cat,a.png", "b.jpg,dog,b.png", header="image,labels,saliency")
    prepared(tmp_path, *table, "--config", str(EXAMPLES / "own_data_small.toml"))
    assert (
        "  saliency: 2 images have saliency maps, and seeds.background_cue=evidence does not use them. To use them, "
        "give --set seeds.background_cue=saliency\n"
    ) in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["masks", "saliency"])
def test_a_folder_of_label_files_without_a_file_for_any_image_is_refused(flag, tmp_path, capsys):
    for name in ("cats/0", "dogs/0"):
        put_picture(tmp_path / f"photos/{name}.jpg")
    (tmp_path / "files").mkdir()
    given = ["--folders", str(tmp_path / "photos"), f"--{flag}"]
    for folder, fault in (("nothing", "no such folder"), ("files", "there is no file in this folder")):
        with pytest.raises(ValueError, match=f"^--{flag} {tmp_path / folder}: {fault}"):
            prepared(tmp_path, *given, str(tmp_path / folder))
    Image.fromarray(SQUARE).save(tmp_path / "files/cats_0.png")
    with pytest.raises(ValueError, match=r"none of the 2 images .* such as cats__0\.png; there is cats_0\.png"):
        prepared(tmp_path, *given, str(tmp_path / "files"))
    assert not (tmp_path / "run").exists()
    Image.fromarray(SQUARE).save(tmp_path / "files/cats__0.png")
    prepared(tmp_path, *given, str(tmp_path / "files"))
    assert "1 of 2 images have a file there (first one missing: dogs__0.png)" in capsys.readouterr().out


# Names


def test_a_long_list_whose_first_images_are_all_missing_is_told_early(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pictures, "HEADERS_AT_ONCE", 4)
    rows = [f"{number}.jpg,{'cat' if number % 2 else 'dog'}" for number in range(8)]
    (tmp_path / "labels.csv").write_text("\n".join(["image,labels", *rows]))
    Image.new("RGB", (32, 24)).save(tmp_path / "7.jpg")
    main(["--run", str(tmp_path / "run"), "--csv", str(tmp_path / "labels.csv"), "--dry-run"])
    told = [line for line in capsys.readouterr().out.splitlines() if "WARNING" in line]
    assert len(told) == 1 and "none of the first 4 images can be opened" in told[0] and "0.jpg: missing" in told[0]


def test_an_image_spelt_differently_is_found_and_told(tmp_path, capsys):
    put_picture(tmp_path / "IMG_1.JPG")
    put_picture(tmp_path / "b.jpg")
    run = prepared(tmp_path, *put_table(tmp_path, "img_1.jpg,cat,train", "b,dog,train"))
    assert [row.height for row in rows_of(run).values()] == [24, 24]
    assert "2 images found under a different spelling" in capsys.readouterr().out


# Splits


@pytest.mark.parametrize(
    ("splits", "train", "val", "predicted"),
    [
        (("train", "val"), (), ("val",), ("val",)),
        (("train", "val", "test"), ("train",), ("val",), ("val",)),
        (("train", "valid", "test"), ("train",), ("valid",), ("valid",)),
        (("train2017", "val2017"), (), ("val2017",), ("val2017",)),
        (("Train", "Validation"), (), ("Validation",), ("Validation",)),
        (("", "test"), ("",), ("val",), ("", "test")),
        (("",), (), ("val",), ("",)),
        (("test",), (), ("val",), ("test",)),
        (("latest", "values"), (), ("val",), ("latest", "values")),
        (("training", "validation", "testing"), ("training",), ("validation",), ("validation",)),
        (("train", "val2017", "test-dev2017"), ("train",), ("val2017",), ("val2017",)),
    ],
)
def test_what_splits_are_for_follows_from_their_names(splits, train, val, predicted):
    config = with_roles(Config(), splits)
    assert (config.data.train_splits, config.data.val_splits, config.predicted_splits) == (train, val, predicted)
    assert with_roles(config, splits, splits) == config


@pytest.mark.parametrize(
    ("splits", "predicted"),
    [
        (("train", "val", "test"), ("train", "val")),
        (("train", "valid"), ("train", "valid")),
        (("Train", "Val"), ("Train", "Val")),
        (("train2017", "val2017", "test2017"), ("train2017", "val2017")),
        (("", "val"), ("", "val")),
        (("train", "", "validation"), ("train", "", "validation")),
        (("cats", "dogs", "valid"), ("cats", "dogs", "valid")),
        (("train",), ("train", "val")),  # images of val may be added
        (("",), ("", "val")),
        (("test",), ("test", "val")),
    ],
)
def test_a_usual_name_of_a_predicted_split_stands_for_the_splits_of_its_kind(splits, predicted):
    """As in own_data.toml, whose masks are for every image that is not held out for tests."""
    asked = Config.model_validate({"predictions": {"splits": ["train", "val"]}})
    config = with_roles(asked, splits)
    assert config.predictions.splits == predicted
    assert with_roles(config, splits, splits) == config


def test_images_of_a_split_without_predicted_masks_are_told(tmp_path, capsys):
    for number in range(4):
        put_picture(tmp_path / f"{number}.jpg")
    table = put_table(tmp_path, "0.jpg,cat,train", "1.jpg,dog,Train", "2.jpg,cat,valid", "3.jpg,dog,test")
    prepared(tmp_path, *table, "--set", "predictions.splits=train,val")
    printed = capsys.readouterr().out
    assert "no predicted masks for 2 images of Train, test, because predictions.splits is train, valid." in printed
    assert "For masks of all images: '--set predictions.splits=train,Train,valid,test'." in printed


def test_what_was_asked_for_holds_and_what_was_derived_is_derived_again():
    asked = Config.model_validate({"data": {"train_splits": ["train", "test"], "val_splits": ["dev"]}})
    assert with_roles(asked, ("train", "test", "dev", "val")) == asked
    earlier = with_roles(Config(), ("",))
    assert with_roles(earlier, ("train", "val"), ("",)) == Config()


def test_test_images_are_told_and_kept_out_of_the_training(tmp_path, capsys):
    for number in range(4):
        put_picture(tmp_path / f"{number}.jpg")
    table = put_table(tmp_path, "0.jpg,cat,train", "1.jpg,dog,train", "2.jpg,cat,valid", "3.jpg,dog,test")
    run = prepared(tmp_path, *table)
    assert (run.config.data.train_splits, run.config.data.val_splits) == (("train",), ("valid",))
    printed = capsys.readouterr().out
    assert "  for training: train; for validation: valid.\n" in printed and "not used for training: test." in printed
    only = prepared(tmp_path, *table, "--split", "train", "--split", "valid")
    assert only.manifest().num_images == 3


def test_a_table_that_is_prepared_again_with_other_splits_gets_their_roles(tmp_path, capsys):
    for number in range(3):
        put_picture(tmp_path / f"{number}.jpg")
    first = prepared(tmp_path, *put_table(tmp_path, "0.jpg,cat,train", "1.jpg,dog,train", "2.jpg,cat,test"))
    assert first.config.data.train_splits == ("train",)
    second = prepared(
        tmp_path,
        *put_table(tmp_path, "0.jpg,cat,Training", "1.jpg,dog,Training", "2.jpg,cat,valid"),
        *("--set", "predictions.splits=train,val"),
    )
    assert (second.config.data.train_splits, second.config.data.val_splits) == ((), ("valid",))
    assert second.config.predictions.splits == ("Training", "valid")


def test_values_that_follow_from_the_splits_are_not_said_to_be_kept(tmp_path, capsys):
    for number in range(3):
        put_picture(tmp_path / f"{number}.jpg")
    config = ["--config", str(EXAMPLES / "own_data.toml")]
    prepared(tmp_path, *put_table(tmp_path, "0.jpg,cat,train", "1.jpg,dog,", "2.jpg,cat,test"), *config)
    run = prepared(tmp_path, *put_table(tmp_path, "0.jpg,cat,train", "1.jpg,dog,train", "2.jpg,cat,test"), *config)
    assert run.config.data.train_splits == ("train",)
    assert "the run keeps" not in capsys.readouterr().out


def test_a_split_that_is_nearly_a_usual_one_is_asked_about(tmp_path, capsys):
    for number in range(4):
        put_picture(tmp_path / f"{number}.jpg")
    prepared(tmp_path, *put_table(tmp_path, "0.jpg,cat,train", "1.jpg,dog,train", "2.jpg,cat,vaild", "3.jpg,dog,valid"))
    sentence = "WARNING: is the split 'vaild' misspelt? 'valid' is similar, and 'vaild' is used for training (1 image)."
    assert sentence in capsys.readouterr().out
    prepared(tmp_path, *put_table(tmp_path, "0.jpg,cat,train", "1.jpg,dog,dev", "2.jpg,cat,fold2", "3.jpg,dog,val2017"))
    assert "misspelt" not in capsys.readouterr().out


def test_test_images_that_are_trained_on_are_a_warning(tmp_path, capsys):
    for number in range(3):
        put_picture(tmp_path / f"{number}.jpg")
    prepared(tmp_path, *put_table(tmp_path, "0.jpg,cat,test", "1.jpg,dog,test", "2.jpg,cat,valid"))
    assert "WARNING: the test images are trained on, because no image is in another split" in capsys.readouterr().out


def test_a_misspelt_split_of_a_table_gets_the_nearest_one(tmp_path):
    put_picture(tmp_path / "0.jpg")
    table = put_table(tmp_path, "0.jpg,cat,Training")
    with pytest.raises(ValueError, match=r"no row has the split 'Trainig'\. Did you mean 'Training'\?"):
        prepared(tmp_path, *table, "--split", "Trainig")
    with pytest.raises(ValueError, match=r"no row has the split 'x'\. The table has Training\."):
        prepared(tmp_path, *table, "--split", "x")


def test_without_a_validation_split_the_test_images_are_not_said_to_be_trained_on(tmp_path, capsys):
    for number in range(3):
        put_picture(tmp_path / f"{number}.jpg")
    prepared(tmp_path, *put_table(tmp_path, "0.jpg,cat,train", "1.jpg,dog,train", "2.jpg,cat,test"))
    printed = capsys.readouterr().out
    assert "not used for training: test." in printed and "Those of train are used for training" in printed
    assert "All images are used for training" not in printed


def test_a_lost_manifest_is_made_again_only_as_it_was(trained_run, tmp_path):
    place = Path(trained_run.uri, "manifest.parquet")
    names = trained_run.manifest().class_names
    for_table = [
        (row.uri, ";".join(names[n] for n in row.labels), row.split) for row in trained_run.manifest().iter_rows()
    ]
    source = [*put_table(tmp_path, *map(",".join, for_table)), "--classes", ",".join(names)]
    place.unlink()
    Manifest.forget()
    other = tmp_path / "other.csv"
    other.write_text((tmp_path / "labels.csv").read_text().replace(",val", ",train", 1))
    with pytest.raises(ValueError, match=r"classifier was started with other images, labels or splits. Give the flags"):
        main(["--run", trained_run.uri, *source[2:], "--csv", str(other)])
    assert not place.exists()
    main(["--run", trained_run.uri, *source])
    Manifest.forget()
    assert [row.split for row in trained_run.manifest().iter_rows()] == [split for _, _, split in for_table]


def test_the_run_keeps_the_commands_of_its_preparations(tmp_path):
    put_picture(tmp_path / "0.jpg")
    put_picture(tmp_path / "1.jpg")
    run = prepared(tmp_path, *put_table(tmp_path, "0.jpg,cat,train", "1.jpg,dog,val"))
    record_run(run)  # as a step does
    (command,) = preparations(run)
    assert shlex.split(command) == [
        *("python", "jobs/prepare_dataset.py", "--run", run.uri, "--csv", str(tmp_path / "labels.csv"))
    ]


def test_classes_with_few_validation_images_are_told(tmp_path, capsys):
    for number in range(4):
        for name in ("cats", "dogs", "horses")[: 3 if number else 2]:
            put_picture(tmp_path / f"a/{'train' if number == 3 else 'val'}/{name}/{name}{number}.jpg")
    prepared(tmp_path, "--folders", str(tmp_path / "a"))
    sentence = "  validation: cats 3, dogs 3, horses 2; the figures of a class with fewer than 3 images say little\n"
    assert sentence in capsys.readouterr().out


def test_a_share_of_the_images_is_set_aside_the_same_way_always(tmp_path, capsys):
    for number in range(40):
        put_picture(tmp_path / f"a/{'cats' if number % 2 else 'dogs'}/{number}.jpg")
    found = []
    for _ in range(2):
        run = prepared(tmp_path, "--folders", str(tmp_path / "a"), "--val-fraction", "0.25")
        found.append([row.split for row in run.manifest().iter_rows()])
    assert found[0] == found[1] and set(found[0]) == {"train", "val"} and 4 <= found[0].count("val") <= 17
    assert "  validation: " not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        prepared(tmp_path, "--folders", str(tmp_path / "a"), "--val-fraction", "2")
    put_picture(tmp_path / "b/val/cats/0.jpg")
    put_picture(tmp_path / "b/train/dogs/0.jpg")
    with pytest.raises(ValueError, match="have a validation split already, 'val'"):
        prepared(tmp_path, "--folders", str(tmp_path / "b"), "--val-fraction", "0.2")


# Negative images


@pytest.mark.parametrize(
    ("rows", "flags"),
    [
        (["0.jpg,crack", "1.jpg,normal", "2.jpg,crack", "3.jpg,"], ["--negative-label", "normal"]),
        (["0.jpg,crack", "1.jpg,", "2.jpg,crack", "3.jpg,crack"], ["--unlabelled-are-negative"]),
    ],
)
def test_negative_images_are_in_the_manifest_and_told(rows, flags, tmp_path, capsys):
    for number in range(4):
        put_picture(tmp_path / f"{number}.jpg")
    run = prepared(tmp_path, *put_table(tmp_path, *rows, header="image,labels"), *flags)
    assert run.manifest().class_names == ("crack",)
    assert [row.negative for row in rows_of(run).values()] == [False, True, False, False]
    printed = capsys.readouterr().out
    assert "  negative: 1; used for training as images that show none of the classes" in printed
    assert "nothing to tell it apart" not in printed


def test_a_folder_can_hold_the_negative_images(tmp_path):
    put_picture(tmp_path / "a/crack/0.jpg")
    put_picture(tmp_path / "a/good/0.jpg")
    run = prepared(tmp_path, "--folders", str(tmp_path / "a"), "--negative-label", "good")
    assert [(row.labels, row.negative) for row in run.manifest().iter_rows()] == [((0,), False), ((), True)]
    with pytest.raises(ValueError, match=r"--negative-label god: no image has this label. Did you mean 'good'"):
        prepared(tmp_path, "--folders", str(tmp_path / "a"), "--negative-label", "god")


# Moved images


def started(run: Run) -> str:
    """The run after a step was begun on it; the hash of what its steps read."""
    (run.location / "maps/step.json").write_bytes(b"{}")
    return run.manifest().column_hash(["image_id", "uri", "labels"])


def move(tmp_path: Path) -> tuple[Run, list[str], Path]:
    for number in range(3):
        put_picture(tmp_path / f"old/sub/{number}.jpg", size=(32 + number, 24))
    table = put_table(tmp_path, *(f"sub/{number}.jpg,cat,train" for number in range(3)))
    run = prepared(tmp_path, *table, "--images", str(tmp_path / "old"))
    return run, table, tmp_path / "new"


@pytest.mark.parametrize("level", ["", "sub"])
def test_images_may_be_named_at_their_new_place(level, tmp_path, capsys):
    run, _, new = move(tmp_path)
    before = started(run)
    (tmp_path / "old").rename(new)
    main(["--run", run.uri, "--images", str(new / level)])
    assert f"3 images of the run are read in {new}" in capsys.readouterr().out
    manifest = open_run(run.uri).manifest()
    assert [row.uri for row in manifest.iter_rows()] == [str(new / f"sub/{number}.jpg") for number in range(3)]
    assert manifest.column_hash(["image_id", "uri", "labels"]) == before


def test_other_images_are_not_taken_for_moved_ones(tmp_path):
    run, _, new = move(tmp_path)
    with pytest.raises(ValueError, match=r"none of the run's images is there \(tried 0.jpg and 2 others\)"):
        main(["--run", run.uri, "--images", str(tmp_path / "nowhere")])
    for number in range(3):
        put_picture(new / f"sub/{number}.jpg", size=(32, 24))
    with pytest.raises(ValueError, match=r"sub/1.jpg has 32 x 24 pixels, but the run's image 'sub__1' has 33 x 24"):
        main(["--run", run.uri, "--images", str(new)])


def test_a_started_run_accepts_its_source_at_a_new_place_and_nothing_else(tmp_path, capsys):
    run, table, new = move(tmp_path)
    before = started(run)
    (tmp_path / "old").rename(new)
    run = prepared(tmp_path, *table, "--images", str(new))
    assert f"  moved:   images are read in {new} instead of {tmp_path}/old" in capsys.readouterr().out
    assert run.manifest().column_hash(["image_id", "uri", "labels"]) == before
    assert next(run.manifest().iter_rows()).uri == str(new / "sub/0.jpg")
    new.rename(tmp_path / "old")  # and back
    run = prepared(tmp_path, *table, "--images", str(tmp_path / "old"))
    assert next(run.manifest().iter_rows()).uri == str(tmp_path / "old/sub/0.jpg")
    put_table(tmp_path, *(f"sub/{number}.jpg,dog,train" for number in range(3)))
    with pytest.raises(ValueError, match="differs in more than the masks and the images' folder"):
        prepared(tmp_path, *table, "--images", str(tmp_path / "old"))


# Pictures inside a source


def test_a_dry_run_of_a_source_with_pictures_writes_nothing(tmp_path, capsys):
    saved = Path(__file__).parents[1] / "storage/fixtures/saved"
    arguments: list[Any] = ["--run", str(tmp_path / "run"), "--hugging-face", str(saved)]
    main([*arguments, "--dry-run"])
    assert "6 images in the run" in capsys.readouterr().out and not (tmp_path / "run").exists()
    main(arguments)
    rows = list(open_run(str(tmp_path / "run")).manifest().iter_rows())
    assert all(Path(row.uri).is_file() and row.height == 16 for row in rows)
    (tmp_path / "run").rename(tmp_path / "moved")
    rows = list(open_run(str(tmp_path / "moved")).manifest().iter_rows())
    assert all(Path(row.uri).is_file() for row in rows)
