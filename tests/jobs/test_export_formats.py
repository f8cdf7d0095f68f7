"""Each format on drawn labels, read back as its own tool reads it; what polygons lose; names and numbers of images."""

import io
import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw
from pycocotools import mask as run_lengths

from jobs.exports.format_table import FORMATS
from jobs.exports.formats import cityscapes, coco, cvat, label_studio, yolo
from jobs.exports.image_names import ImageNames
from jobs.exports.labelled_image import Classes, LabelledImage, WholeExport
from jobs.exports.regions import polygon, regions
from storage.label_folder import voc_palette
from storage.location import Location
from storage.manifest import Manifest, ManifestRow, write_manifest

CLASSES = Classes(("cat", 'a "dog" & co'), (8, 12))
SIZE = (23, 31)


def drawn_labels() -> np.ndarray:
    """A ring with a filled hole's island, two squares that touch at a corner, a single pixel, ignored pixels."""
    labels = np.zeros(SIZE, np.uint8)
    labels[2:14, 3:17] = 1
    labels[4:12, 5:15] = 0
    labels[6:9, 8:11] = 2
    labels[15:18, 20:23], labels[18:21, 23:26] = 2, 2
    labels[22, 30] = 1
    labels[0, :] = 255
    return labels


def labelled(shapes: str) -> LabelledImage:
    return LabelledImage(7, "a__b", "a/b.jpg", "/photos/a/b.jpg", "train", drawn_labels(), 255, CLASSES, shapes)


def whole(out: Location, records: list, shapes: str) -> WholeExport:
    return WholeExport(out, CLASSES, shapes, lambda: iter(records))


def without_ignored() -> np.ndarray:
    return np.where(drawn_labels() == 255, 0, drawn_labels())


def filled(corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A polygon as pycocotools fills it."""
    flat = corners.astype(float).reshape(-1).tolist()
    return run_lengths.decode(run_lengths.merge(run_lengths.frPyObjects([flat], *size))).astype(bool)


# Regions


def test_components_touch_by_corners_and_belong_to_one_class():
    found = list(regions(drawn_labels(), 2))
    assert [(each.class_number, each.left, each.top, each.width, each.height, each.area) for each in found] == [
        (0, 3, 2, 14, 12, 14 * 12 - 10 * 8),
        (0, 30, 22, 1, 1, 1),
        (1, 8, 6, 3, 3, 9),
        (1, 20, 15, 6, 6, 18),
    ]


@settings(max_examples=60, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 2)))
def test_a_polygon_filled_by_pixel_centres_is_the_component(labels):
    for region in regions(labels, 2):
        corners = polygon(region)
        x, y = corners.T
        assert abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2 == region.area
        np.testing.assert_array_equal(filled(corners, labels.shape), region.in_image(labels.shape))


def test_the_known_loss_of_a_polygon_whose_border_is_painted_too():
    """Tools that also paint the pixels that the outline touches make objects larger, by half a pixel or one."""
    disc = (np.hypot(*np.mgrid[-60:61, -60:61]) < 50).astype(np.uint8)
    (region,) = regions(disc, 1)
    canvas = Image.new("1", disc.shape[::-1])
    ImageDraw.Draw(canvas).polygon([(int(x), int(y)) for x, y in polygon(region)], fill=1)
    painted = np.array(canvas)
    iou = (painted & (disc > 0)).sum() / (painted | (disc > 0)).sum()
    assert 0.95 < iou < 0.99
    assert (filled(polygon(region), disc.shape) == (disc > 0)).all()


# Formats


@pytest.mark.parametrize("shapes", ["masks", "polygons"])
def test_coco_has_an_annotation_per_component(shapes, tmp_path):
    record = coco.export_image(labelled(shapes)).record
    coco.finish(whole(Location(str(tmp_path)), [record], shapes))
    content = json.loads((tmp_path / "annotations.json").read_text())
    assert content["images"] == [{"id": 7, "file_name": "a/b.jpg", "height": 23, "width": 31}]
    assert [each["id"] for each in content["annotations"]] == [1, 2, 3, 4]
    assert content["annotations"][0]["bbox"] == [3, 2, 14, 12] and content["annotations"][0]["area"] == 88
    found = np.zeros(SIZE, np.uint8)
    for each in content["annotations"]:
        outline = each["segmentation"]
        if shapes == "polygons":
            assert all(isinstance(ring, list) for ring in outline)
            outline = run_lengths.merge(run_lengths.frPyObjects(outline, *SIZE))
        found[run_lengths.decode(outline) > 0] = CLASSES.values.index(each["category_id"]) + 1
    np.testing.assert_array_equal(found, without_ignored())


def test_yolo_has_polygons_by_parts_of_the_image(tmp_path):
    exported = yolo.export_image(labelled("polygons"))
    (name, content), found = next(iter(exported.files.items())), np.zeros(SIZE, np.uint8)
    assert name == "labels/a/b.txt"
    for line in content.decode().splitlines():
        number, *numbers = line.split()
        assert all(0 <= float(value) <= 1 for value in numbers)
        corners = np.array(numbers, float).reshape(-1, 2) * (SIZE[1], SIZE[0])
        found[filled(corners, SIZE)] = int(number) + 1
    np.testing.assert_array_equal(found, without_ignored())
    yolo.finish(whole(Location(str(tmp_path)), [exported.record], "polygons"))
    assert '  1: "a \\"dog\\" & co"' in (tmp_path / "data.yaml").read_text().splitlines()


def test_yolo_s_validation_images_are_not_its_training_images(tmp_path):
    records = [
        yolo.export_image(replace(labelled("boxes"), file_name=f"{role}/{number}.jpg", role=role)).record
        for number, role in enumerate(["train", "val", "train", "test"])
    ]
    sentence = yolo.finish(whole(Location(str(tmp_path)), records, "boxes"))
    data = yaml.safe_load((tmp_path / "data.yaml").read_text())
    lists = {role: (tmp_path / data[role]).read_text().splitlines() for role in ("train", "val", "test")}
    assert lists == {
        "train": ["./images/train/0.jpg", "./images/train/2.jpg"],
        "val": ["./images/val/1.jpg"],
        "test": ["./images/test/3.jpg"],
    }
    assert "path" not in data  # Ultralytics then takes the folder of data.yaml, also on another computer
    assert "2 images for training, 1 image for validation" in sentence and "WARNING" not in sentence
    sentence = yolo.finish(whole(Location(str(tmp_path)), records[:1], "boxes"))
    data = yaml.safe_load((tmp_path / "data.yaml").read_text())
    assert data.keys() == {"train", "names"} and not (tmp_path / "val.txt").exists()
    assert "WARNING: there is no validation set" in sentence


def test_yolo_has_boxes_of_centre_and_size():
    lines = next(iter(yolo.export_image(labelled("boxes")).files.values())).decode().splitlines()
    assert [line.split()[0] for line in lines] == ["0", "0", "1", "1"]
    x, y, width, height = (float(value) for value in lines[3].split()[1:])
    assert np.allclose([x * 31, y * 23, width * 31, height * 23], [23, 18, 6, 6], atol=1e-3)


@pytest.mark.parametrize("shapes", ["masks", "polygons"])
def test_cvat_reads_the_same_labels(shapes, tmp_path):
    cvat.finish(whole(Location(str(tmp_path)), [cvat.export_image(labelled(shapes)).record], shapes))
    root = ElementTree.parse(tmp_path / "annotations.xml").getroot()
    assert [label.findtext("name") for label in root.iter("label")] == list(CLASSES.names)
    image = root.find("image")
    assert image.attrib == {"id": "7", "name": "a/b.jpg", "width": "31", "height": "23"}
    found = np.zeros(SIZE, np.uint8)
    for shape in image:
        label = CLASSES.names.index(shape.get("label")) + 1
        if shape.tag == "polygon":
            corners = np.array([pair.split(",") for pair in shape.get("points").split(";")], float)
            found[filled(corners, SIZE)] = label
        else:  # as datumaro's reader does: runs within the box, row by row, the first outside
            runs = [int(run) for run in shape.get("rle").split(",")]
            left, top, width, height = (int(shape.get(name)) for name in ("left", "top", "width", "height"))
            flat = np.repeat(np.arange(len(runs)) % 2, runs)
            found[top : top + height, left : left + width][flat.reshape(height, width) > 0] = label
    np.testing.assert_array_equal(found, without_ignored())


def decode_brush(data: bytes) -> np.ndarray:
    """Label Studio's decoder, after label_studio_converter.brush.decode_rle."""
    bits, place = "".join(f"{byte:08b}" for byte in data), 0

    def read(size: int) -> int:
        nonlocal place
        place += size
        return int(bits[place - size : place], 2)

    num, word_size = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    out, start = np.zeros(num, np.uint8), 0
    while start < num:
        is_run = read(1)
        stop = start + 1 + read(sizes[read(2)])
        for index in range(start, stop) if not is_run else ():
            out[index] = read(word_size)
        if is_run:
            out[start:stop] = read(word_size)
        start = stop
    return out


def test_label_studio_reads_the_same_brush_masks(tmp_path):
    record = label_studio.export_image(labelled("masks")).record
    label_studio.finish(whole(Location(str(tmp_path)), [record], "masks"))
    (task,) = json.loads((tmp_path / "tasks.json").read_text())
    assert task["data"] == {"image": "/data/local-files/?d=images/a/b.jpg"}
    found = np.zeros(SIZE, np.uint8)
    for result in task["annotations"][0]["result"]:
        assert (result["original_height"], result["original_width"]) == SIZE and result["value"]["format"] == "rle"
        pixels = decode_brush(bytes(result["value"]["rle"])).reshape(*SIZE, 4)
        assert set(np.unique(pixels)) == {0, 255} and (pixels[..., 0] == pixels[..., 3]).all()
        found[pixels[..., 3] > 0] = CLASSES.names.index(result["value"]["brushlabels"][0]) + 1
    np.testing.assert_array_equal(found, without_ignored())
    config = ElementTree.parse(tmp_path / "label_config.xml")
    assert [label.get("value") for label in config.iter("Label")] == list(CLASSES.names)


def test_a_brush_run_longer_than_its_longest_code_is_cut_into_several():
    mask = np.ones((300, 300), bool)
    mask[0, 0] = False
    np.testing.assert_array_equal(decode_brush(label_studio.encode_brush(mask)).reshape(300, 300, 4)[..., 3] > 0, mask)


def test_label_studio_has_polygons_in_percent():
    found = np.zeros(SIZE, np.uint8)
    for result in label_studio.export_image(labelled("polygons")).record["annotations"][0]["result"]:
        corners = np.array(result["value"]["points"]) * (SIZE[1], SIZE[0]) / 100
        found[filled(corners, SIZE)] = CLASSES.names.index(result["value"]["polygonlabels"][0]) + 1
    np.testing.assert_array_equal(found, without_ignored())


def test_cityscapes_has_pairs_of_label_numbers_and_colours(tmp_path):
    files = cityscapes.export_image(labelled("")).files
    ids, colours = (Image.open(io.BytesIO(content)) for content in files.values())
    assert list(files) == [f"gtFine/train/all/a__b_gtFine_{kind}.png" for kind in ("labelIds", "color")]
    assert ids.mode == "L" and colours.mode == "RGB"
    np.testing.assert_array_equal(np.array(ids), drawn_labels())
    np.testing.assert_array_equal(np.array(colours), voc_palette()[drawn_labels()])
    cityscapes.finish(whole(Location(str(tmp_path)), [], ""))
    assert (tmp_path / "labels.txt").read_text().splitlines()[1:3] == ["1 cat", '2 a "dog" & co']


def test_an_image_without_objects_is_there_without_annotations():
    empty = replace(labelled("masks"), labels=np.zeros(SIZE, np.uint8))
    assert coco.export_image(empty).record["annotations"] == []
    assert list(yolo.export_image(empty).files.values()) == [b""]
    assert ElementTree.fromstring(cvat.export_image(empty).record).attrib["name"] == "a/b.jpg"


def test_every_format_of_the_table_has_a_module():
    from importlib import import_module

    for name, row in FORMATS.items():
        module = import_module(f"jobs.exports.formats.{row.module}")
        assert not row.has_labels or (module.export_image and module.finish), name


# Names


def names_of(tmp_path, rows: list[tuple]) -> tuple[ImageNames, list[str], list[int]]:
    place = Location(str(tmp_path / "manifest.parquet"))
    write_manifest(
        place, [ManifestRow(row[0], row[1], source_number=row[2] if len(row) > 2 else None) for row in rows], ["cat"]
    )
    manifest = Manifest.open(place)
    names, entries = ImageNames.of(manifest), manifest.rows(0, len(rows))
    numbers = [names.number(entry, row) for row, entry in enumerate(entries)]
    return names, [names.file_name(entry) for entry in entries], numbers


def test_39_images_in_folders_keep_39_names(tmp_path):
    paths = [f"{day}/{hour}/{number:02d}.jpg" for day in "abc" for hour in ("1", "2") for number in range(7)][:39]
    rows = [(path[:-4].replace("/", "__"), f"s3://bucket/photos/{path}") for path in paths]
    names, found, numbers = names_of(tmp_path, rows)
    assert (
        names.rule == "source"
        and names.folder == "s3://bucket/photos"
        and found == paths
        and numbers == list(range(1, 40))
    )


def test_images_with_ids_of_their_own_are_named_below_their_common_folder(tmp_path):
    rows = [("5", "s3://bucket/photos/a/x.jpg"), ("0012", "s3://bucket/photos/b/x.jpg")]
    names, found, numbers = names_of(tmp_path, rows)
    assert found == ["a/x.jpg", "b/x.jpg"] and names.folder == "s3://bucket/photos"
    assert numbers == [5, 12]


@pytest.mark.parametrize(
    ("rows", "rule", "found"),
    [
        ([("1", "/d/old/1.jpg"), ("d__1", "/d/1.jpg")], "folder", ["d/old/1.jpg", "d/1.jpg"]),
        ([("1", "/d/old/1.jpg"), ("new__1", "s3://b/new/1.jpg")], "folder", ["d/old/1.jpg", "s3/b/new/1.jpg"]),
        ([("1", "s3://b/1.jpg"), ("c__1", "s3://c/1.jpg")], "folder", ["s3/b/1.jpg", "s3/c/1.jpg"]),
        (
            [("a__1", "/d/a/1.jpg"), ("b__1", "/d/b/1.jpg"), ("2", "/d/b/2.jpg")],
            "source",
            ["a/1.jpg", "b/1.jpg", "2.jpg"],
        ),
        ([("1.jpg", "/d/1.jpg"), ("1.png", "/d/1.png")], "id", ["1.jpg.jpg", "1.png.png"]),
        ([("1", "/d/1.jpg"), ("more__1", "/d/more/1.jpg")], "source", ["1.jpg", "more/1.jpg"]),
    ],
)
def test_no_name_means_two_images(tmp_path, rows, rule, found):
    names, files, _ = names_of(tmp_path, rows)
    assert (names.rule, files) == (rule, found)


def test_numbers_that_are_not_all_different_are_places_in_the_manifest(tmp_path):
    assert names_of(tmp_path, [("5", "/a/5.jpg"), ("05", "/a/05.jpg")])[2] == [1, 2]
    assert names_of(tmp_path, [("5", "/a/5.jpg"), ("x", "/a/x.jpg")])[2] == [1, 2]


def test_numbers_of_the_source_come_back(tmp_path):
    assert names_of(tmp_path, [("a", "/a/a.jpg", 90210), ("b", "/a/b.jpg", 0)])[2] == [90210, 0]
    assert names_of(tmp_path, [("a", "/a/a.jpg", 5), ("b", "/a/b.jpg", 5)])[2] == [1, 2]
