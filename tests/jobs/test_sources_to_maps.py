"""Every source goes through preparation, training and maps, from files as the tools write them."""

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


def voc(at: Path) -> list[str]:
    for number, name in enumerate(["helmet", "vest"] * 3):
        draw(at / f"JPEGImages/{number}.png", "cat" if name == "helmet" else "dog", number)
        (at / "Annotations").mkdir(exist_ok=True)
        (at / f"Annotations/{number}.xml").write_text(f"<annotation><object><name>{name}</name></object></annotation>")
    (at / "ImageSets/Main").mkdir(parents=True)
    (at / "ImageSets/Main/train.txt").write_text("0\n1\n2\n3\n")
    (at / "ImageSets/Main/val.txt").write_text("4\n5\n")
    return ["--voc", str(at)]


def roboflow(at: Path) -> list[str]:
    """With the unused root category, categories from 0, and pycocotools' own run lengths."""
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
        (at / split / "_annotations.coco.json").write_text(json.dumps(content))
    return ["--coco", str(at)]


def labelme(at: Path) -> list[str]:
    for number, name in enumerate(NAMES):
        draw(at / f"{number}.png", name, number)
        points = [[10, 8 + number], [40, 8 + number], [40, 28 + number], [10, 28 + number]]
        shape = {"label": name, "points": points, "shape_type": "polygon"}
        content = {"shapes": [shape], "imagePath": f"{number}.png", "imageHeight": 48, "imageWidth": 64}
        (at / f"{number}.json").write_text(json.dumps(content))
    return ["--labelme", str(at)]


def hugging_face(at: Path) -> list[str]:
    return ["--hugging-face", str(Path(__file__).parents[1] / "storage/fixtures/saved")]


@pytest.mark.parametrize("make", [folders, spreadsheet, one_hot, voc, roboflow, labelme, hugging_face])
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
    assert [tuple(maps.read(number).classes.tolist()) for number in range(6)] == [row.labels for row in rows]
