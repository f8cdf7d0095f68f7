"""Inputs as people have them, two and more for each kind of trouble that docs/contributing.md lists."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.prepare_dataset import main
from jobs.run.directory import Run, open_run
from storage.images import read_image, read_mask, read_saliency
from storage.manifest import ManifestRow

SQUARE = np.zeros((24, 32), np.uint8)
SQUARE[2:12, 4:20] = 1  # upper left


def picture(place: Path, size: tuple[int, int] = (32, 24), orientation: int = 1) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 90, 90)).save(place, exif=exif)


def table(folder: Path, *rows: str, header: str = "image,labels") -> list[str]:
    (folder / "labels.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return ["--csv", str(folder / "labels.csv")]


def prepared(folder: Path, *arguments: str) -> Run:
    main(["--run", str(folder / "run"), *arguments])
    return open_run(str(folder / "run"))


def rows(run: Run) -> dict[str, ManifestRow]:
    return {row.image_id: row for row in run.manifest().iter_rows()}


def names(run: Run) -> dict[str, list[str]]:
    classes = run.manifest().class_names
    return {image_id: [classes[label] for label in row.labels] for image_id, row in rows(run).items()}


# Nobody's labels are dropped


def test_rows_that_write_one_path_differently_are_one_image(tmp_path):
    picture(tmp_path / "sub/0.jpg")
    paths = ("sub/0.jpg", "./sub/0.jpg", "sub\\0.jpg", "sub/x/../0.jpg")
    run = prepared(tmp_path, *table(tmp_path, *map("{},{}".format, paths, ("cat", "dog", "cow", "ox"))))
    assert list(names(run).values()) == [["cat", "cow", "dog", "ox"]]


@pytest.mark.parametrize("other", ["IMG_1.JPG", "img_1", "img_1.Jpg"])
def test_rows_that_mean_one_file_by_two_names_are_refused(other, tmp_path):
    picture(tmp_path / "img_1.jpg")
    with pytest.raises(ValueError, match=r"are the same file, .*img_1\.jpg: its name is written in two ways"):
        prepared(tmp_path, *table(tmp_path, "img_1.jpg,cat", f"{other},dog"))


# Splits named test are not trained on


@pytest.mark.parametrize(
    ("folders", "train", "val"),
    [
        (("training", "validation", "testing"), ("training",), ("validation",)),
        (("Train", "Valid", "Test"), ("Train",), ("Valid",)),
    ],
)
def test_folders_named_test_are_not_trained_on(folders, train, val, tmp_path):
    for split in folders:
        for name in ("cat", "dog"):
            picture(tmp_path / f"data/{split}/{name}/0.jpg")
    run = prepared(tmp_path, "--folders", str(tmp_path / "data"))
    assert (run.config.data.train_splits, run.config.data.val_splits) == (train, val)
    assert run.config.predicted_splits == val


# Numbers from XML or JSON are checked against the picture's header


def test_sizes_that_a_voc_file_has_swapped_are_those_of_the_picture(tmp_path, capsys):
    size = "<size><width>24</width><height>32</height></size>"
    for image_id in "ab":
        picture(tmp_path / f"voc/{image_id}.jpg")
        xml = f"<annotation>{size}<object><name>crack {image_id}</name></object></annotation>"
        (tmp_path / f"voc/{image_id}.xml").write_text(xml)
    run = prepared(tmp_path, "--voc", str(tmp_path / "voc"))
    assert {(row.height, row.width) for row in rows(run).values()} == {(24, 32)}
    printed = capsys.readouterr().out
    assert "2 images with another size in the annotations than the picture has (first: 'a', 24 x 32" in printed


def labelme(folder: Path, *shapes: dict[str, Any]) -> list[str]:
    content = {"shapes": shapes, "imagePath": "a.jpg", "imageHeight": 24, "imageWidth": 32}
    (folder / "photos/a.json").write_text(json.dumps(content))
    return ["--labelme", str(folder / "photos")]


OUTLINE = {"label": "cat", "points": [[4, 2], [20, 2], [20, 12], [4, 12]], "shape_type": "polygon"}


def test_labelmes_outlines_are_turned_with_a_picture_that_exif_turns(tmp_path):
    picture(tmp_path / "photos/a.jpg", orientation=6)
    run = prepared(tmp_path, *labelme(tmp_path, OUTLINE))
    found = read_mask(str(rows(run)["a"].mask_uri), [1])
    np.testing.assert_array_equal(found, np.rot90(SQUARE, -1))


def test_labelmes_painted_masks_are_drawn_and_those_beyond_the_picture_cost_the_mask(tmp_path):
    picture(tmp_path / "photos/a.jpg")
    buffer = io.BytesIO()
    Image.fromarray(np.ones((10, 16), bool)).save(buffer, "PNG")
    shape = {"label": "cat", "shape_type": "mask", "mask": base64.b64encode(buffer.getvalue()).decode()}
    run = prepared(tmp_path, *labelme(tmp_path, {**shape, "points": [[4, 2], [19, 11]]}))
    np.testing.assert_array_equal(read_mask(str(rows(run)["a"].mask_uri), [1]), SQUARE)
    run = prepared(tmp_path, *labelme(tmp_path, {**shape, "points": [[30, 2], [45, 11]]}))
    assert (names(run)["a"], rows(run)["a"].mask_uri) == (["cat"], None)


# Mask values are looked at


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (SQUARE.astype(bool), "1 have a class that is not a label of their image (first: 'dog'"),
        (SQUARE.astype(np.uint16) * 65535, "65535 in 2. These pixels count as unknown. If they are classes: --ma"),
        (np.dstack([SQUARE * 38] * 3), "38 in 2. These pixels count as unknown"),
    ],
)
def test_masks_of_other_values_are_told_in_every_kind_of_file(mask, sentence, tmp_path, capsys):
    for name in ("cat", "dog"):
        picture(tmp_path / f"{name}.jpg")
        Image.fromarray(mask).save(tmp_path / f"{name}.png")
    prepared(tmp_path, *table(tmp_path, "cat.jpg,cat,cat.png", "dog.jpg,dog,dog.png", header="image,labels,mask"))
    assert sentence in capsys.readouterr().out


def test_pictures_and_saliency_maps_of_12_bits_in_16_are_not_black(tmp_path):
    for name in ("cat", "dog"):
        Image.fromarray(SQUARE.astype(np.uint16) * 4095).save(tmp_path / f"{name}.png")
    header = "image,labels,saliency"
    run = prepared(tmp_path, *table(tmp_path, "cat.png,cat,cat.png", "dog.png,dog,dog.png", header=header))
    np.testing.assert_array_equal(read_saliency(str(rows(run)["cat"].saliency_uri)), SQUARE)
    np.testing.assert_array_equal(read_image(rows(run)["cat"].uri)[..., 0], SQUARE * 255)


# Ids and names


def test_the_same_name_in_two_folders_and_letters_in_two_forms_are_told_apart(tmp_path):
    for folder in ("Käse", "Brot"):
        picture(tmp_path / f"{folder}/a b.jpg")
    address = (tmp_path / "Brot/a b.jpg").as_uri()  # a%20b
    run = prepared(tmp_path, *table(tmp_path, "Ka\u0308se/a b.jpg,Ka\u0308se", f"{address},Käse", "Brot/c.jpg,Brot"))
    assert names(run) == {"Käse__a b": ["Käse"], "a b": ["Käse"], "Brot__c": ["Brot"]}
    assert all(rows(run)[image_id].height for image_id in ("Käse__a b", "a b"))


def coco(folder: Path, categories: list[dict[str, Any]], encoding: str = "utf-8", **image: Any) -> list[str]:
    picture(folder / "a.jpg")
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 32, "height": 24, **image}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": categories[0]["id"], "bbox": [4, 2, 16, 10]}],
        "categories": categories,
    }
    (folder / "instances.json").write_bytes(json.dumps(content, ensure_ascii=False).encode(encoding))
    return ["--coco", str(folder / "instances.json")]


def test_two_categories_whose_names_look_the_same_are_refused(tmp_path):
    categories = [{"id": 1, "name": "Käse"}, {"id": 2, "name": " Ka\u0308se"}]
    with pytest.raises(ValueError, match="two categories have the name 'Käse'"):
        prepared(tmp_path, *coco(tmp_path, categories))


# Texts as programs write them


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_json_and_lists_of_classes_are_read_with_a_mark_and_as_utf_16(encoding, tmp_path):
    arguments = coco(tmp_path, [{"id": 1, "name": "Käse"}, {"id": 2, "name": "dog"}], encoding)
    (tmp_path / "names.txt").write_bytes("Käse\r\ndog\r\n\r\n".encode(encoding))
    run = prepared(tmp_path, *arguments, "--classes", str(tmp_path / "names.txt"))
    assert run.manifest().class_names == ("Käse", "dog") and names(run) == {"a": ["Käse"]}


@pytest.mark.parametrize(
    "text",
    [
        b"sep=\t\r\nimage\tlabels\r\n0.jpg\tcat;dog\r\n1.jpg\tcat\r\n",
        b'\xef\xbb\xbf"image";"labels";\r\n"0.jpg";"cat|dog";\r\n"1.jpg";"cat";\r\n;;\r\n',
        b"image,labels\r0.jpg,cat;dog\r1.jpg,cat\r",  # an old Mac
        b'image,labels\n0.jpg,"[""cat"", ""dog""]"\n1.jpg,{\'cat\'}\n',
    ],
)
def test_tables_of_other_programs_are_one_table(text, tmp_path):
    for number in range(2):
        picture(tmp_path / f"{number}.jpg")
    (tmp_path / "labels.csv").write_bytes(text)
    assert names(prepared(tmp_path, "--csv", str(tmp_path / "labels.csv"))) == {"0": ["cat", "dog"], "1": ["cat"]}


def test_reasons_hold_no_line_numbers_so_they_are_counted_together(tmp_path, capsys):
    picture(tmp_path / "0.jpg")
    broken = [f"{number}.jpg,['cat" for number in range(1, 4)] + [f"{number}.jpg,a,b" for number in range(4, 6)]
    prepared(tmp_path, *table(tmp_path, "0.jpg,cat", *(line + "]" * ("[" in line) for line in broken)))
    printed = [line for line in capsys.readouterr().out.splitlines() if "skipped by every step" in line]
    assert [line.split("(")[0] for line in printed] == [f"  skipped by every step: {count} " for count in (3, 2)]


# Nothing usable is refused


def broken_pictures(folder: Path) -> list[str]:
    pictures = [{"bytes": b"no picture", "path": f"{number}.jpg"} for number in range(2)]
    pq.write_table(pa.table({"image": pictures, "label": ["cat", "dog"]}), folder / "train.parquet")
    return ["--hugging-face", str(folder / "train.parquet")]


def lists_without_files(folder: Path) -> list[str]:
    (folder / "ImageSets/Main").mkdir(parents=True)
    (folder / "ImageSets/Main/train.txt").write_text("a\nb\n")
    return ["--voc", str(folder)]


def saliency_that_is_away(folder: Path) -> list[str]:
    picture(folder / "0.jpg")
    return table(folder, "0.jpg,cat,away.png", header="image,labels,saliency")


def web_pages(folder: Path) -> list[str]:
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        (folder / name / "0.jpg").write_text("<!DOCTYPE html><html>403</html>")
    return ["--folders", str(folder)]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (broken_pictures, "none of the 2 images can be opened .*not an image"),
        (lists_without_files, "none of the 2 images can be used: 2 of them because it has no file in Annotations"),
        (saliency_that_is_away, "none of the 1 saliency map can be opened .*missing: no such file"),
        (web_pages, "none of the 2 images can be opened .*a web page, not a picture; download"),
    ],
)
def test_a_source_of_which_nothing_can_be_used_is_refused_with_the_first_reason(make, reason, tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(ValueError, match=reason) as refusal:
        prepared(tmp_path, *make(tmp_path / "data"))
    assert "\n" not in str(refusal.value) and not (tmp_path / "run/manifest.parquet").exists()


# Masks and pictures that are named are there; without splits all is predicted


def test_a_list_without_splits_predicts_all_or_sets_a_part_aside(tmp_path):
    for number in range(20):
        picture(tmp_path / f"{number}.jpg")
    arguments = table(tmp_path, *(f"{number}.jpg,{'cat' if number % 2 else 'dog'}" for number in range(20)))
    assert prepared(tmp_path, *arguments).config.predicted_splits == ("",)
    config = prepared(tmp_path, *arguments, "--val-fraction", "0.3").config
    assert (config.predicted_splits, config.data.val_splits) == (("val",), ("val",))


def test_masks_of_folders_that_lack_some_are_counted(tmp_path, capsys):
    for name in ("cat/0", "cat/1", "dog/0"):
        picture(tmp_path / f"data/{name}.jpg")
    (tmp_path / "masks/cat").mkdir(parents=True)
    Image.fromarray(SQUARE).save(tmp_path / "masks/cat/0.png")
    run = prepared(tmp_path, "--folders", str(tmp_path / "data"), "--masks", str(tmp_path / "masks"))
    assert [bool(row.mask_uri) for row in rows(run).values()] == [True, False, False]
    assert "  with:    a mask 1\n" in capsys.readouterr().out
