"""Every source goes through preparation, training and maps, from files that the tools' own packages wrote.

`storage/fixtures` has the scripts that wrote them; a table and a folder need no tool. The masks of `coco` are encoded
by pycocotools.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as run_lengths

from cluster.connect import connect
from jobs.cli.launch import launch_step
from jobs.prepare_dataset import main
from jobs.run.directory import open_run
from storage.images import read_mask

FIXTURES = Path(__file__).parents[1] / "storage/fixtures"
SETTINGS = ["--config", str(Path(__file__).parents[2] / "docs/examples/own_data_small.toml")]
TINY = ["classifier.epochs=1", "maps.num_samples=4", "images.input_size=65", "cluster.address=in-process"]
NAMES = ["cat", "dog", "cat", "dog", "cat", "dog"]


def draw(place: Path, name: str, number: int) -> np.ndarray:
    """A red or blue square on grey; its mask (48, 64)."""
    image, mask = np.full((48, 64, 3), 110, np.uint8), np.zeros((48, 64), np.uint8)
    box = slice(8 + number, 28 + number), slice(10, 40)
    image[box], mask[box] = ((220, 30, 30) if name == "cat" else (30, 30, 220)), 1
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(place)
    return mask


def folders(at: Path) -> list[str]:
    for number, name in enumerate(NAMES):
        draw(at / f"{'val' if number > 3 else 'train'}/{name}/{number // 2}.png", name, number)
    return ["--folders", str(at)]


def spreadsheet(at: Path) -> list[str]:
    """As Excel writes 'CSV UTF-8' in a country of semicolons, with an empty column and empty rows."""
    rows = ["filename;label;split;"]
    for number, name in enumerate(NAMES):
        draw(at / f"{number}.png", name, number)
        rows.append(f"{number}.png;{name};{'valid' if number > 3 else 'train'};")
    (at / "labels.csv").write_bytes("\r\n".join([*rows, ";;;", ";;;", ""]).encode("utf-8-sig"))
    return ["--csv", str(at / "labels.csv")]


def one_hot(at: Path) -> list[str]:
    rows = ["image,cat,dog"]
    for number, name in enumerate(NAMES):
        draw(at / f"{number}.png", name, number)
        rows.append(f"{number}.png,{int(name == 'cat')},{int(name == 'dog')}")
    (at / "labels.csv").write_text("\n".join(rows))
    return ["--csv", str(at / "labels.csv")]


def coco(at: Path) -> list[str]:
    """In COCO's layout, with categories from 0 and one that only groups the others."""
    (at / "annotations").mkdir()
    for split, numbers in (("train", range(4)), ("valid", range(4, 6))):
        images, annotations = [], []
        for number in numbers:
            mask = draw(at / f"{split}/{number}.png", NAMES[number], number)
            runs = run_lengths.encode(np.asfortranarray(mask))
            outline = {"size": list(runs["size"]), "counts": runs["counts"].decode()}
            images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 48})
            kind = 1 + number % 2
            annotations.append(
                {"id": number, "image_id": number, "category_id": kind, "segmentation": outline, "iscrowd": 0}
            )
        categories = [{"id": 0, "name": "pets", "supercategory": "none"}]
        categories += [{"id": n, "name": name, "supercategory": "pets"} for n, name in ((1, "cat"), (2, "dog"))]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (at / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return ["--coco", str(at)]


def excel(at: Path) -> list[str]:
    return ["--csv", str(FIXTURES / "workbook/labels.xlsx")]


def voc(at: Path) -> list[str]:
    return ["--voc", str(FIXTURES / "voc"), "--classes", "cat,dog"]


def roboflow(at: Path) -> list[str]:
    return ["--coco", str(FIXTURES / "roboflow")]


def fiftyone_coco(at: Path) -> list[str]:
    return ["--coco", str(FIXTURES / "fiftyone/coco"), "--val-fraction", "0.3"]


def fiftyone_voc(at: Path) -> list[str]:
    return ["--voc", str(FIXTURES / "fiftyone/voc"), "--classes", "cat,dog", "--val-fraction", "0.3"]


def fiftyone_folders(at: Path) -> list[str]:
    return ["--folders", str(FIXTURES / "fiftyone/folders"), "--val-fraction", "0.3"]


def labelme(at: Path) -> list[str]:
    return ["--labelme", str(FIXTURES / "labelme")]


def hugging_face(at: Path) -> list[str]:
    return ["--hugging-face", str(FIXTURES / "saved")]


FIFTYONE = [fiftyone_coco, fiftyone_voc, fiftyone_folders]
SOURCES = [folders, spreadsheet, excel, one_hot, voc, coco, roboflow, labelme, hugging_face, *FIFTYONE]


@pytest.mark.parametrize("make", SOURCES)
def test_a_source_goes_through_preparation_training_and_maps(make: Callable[[Path], list[str]], tmp_path, capsys):
    (tmp_path / "data").mkdir()
    settings = [part for setting in TINY for part in ("--set", setting)]
    main(["--run", str(tmp_path / "run"), *SETTINGS, *settings, *make(tmp_path / "data")])
    run = open_run(str(tmp_path / "run"))
    with connect("in-process") as connection:
        for step in ("classifier", "maps"):
            launch_step(run, connection, step)
    assert "6 images done, 0 skipped" in capsys.readouterr().out
    manifest, maps = run.manifest(), run.maps()
    rows = list(manifest.iter_rows())
    assert len(manifest.class_names) == 2 and all(len(row.labels) == 1 and row.height for row in rows)
    assert {row.labels for row in rows} == {(0,), (1,)}
    with_outlines = {coco, roboflow, labelme, fiftyone_coco}
    if make in with_outlines:
        masks = [read_mask(str(row.mask_uri), manifest.class_values) for row in rows]
        assert [np.unique(mask).tolist() for mask in masks] == [[0, row.labels[0] + 1] for row in rows]
        assert all(540 < int((mask > 0).sum()) <= 600 for mask in masks)  # supervision draws polygons half a pixel in
    assert [tuple(maps.read(number).classes.tolist()) for number in range(6)] == [row.labels for row in rows]
