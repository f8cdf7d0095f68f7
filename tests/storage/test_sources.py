import io
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from storage.image_table import read_image_table, read_parquet_table
from storage.images import read_mask
from storage.label_file import read_label_file
from storage.location import Location
from storage.sources import SourceImage, label_names, manifest_rows
from storage.voc import VOC_CLASS_VALUES, VOC_CLASSES, read_voc, voc_class_values

ANIMALS = ["cat", "cow", "dog", "horse", "sheep"]


def multi_hot(*names: str) -> np.ndarray:
    return np.array([name in names for name in VOC_CLASSES], dtype=np.float32)


def put_text(location: Location, text: str) -> Location:
    location.write_bytes(text.encode())
    return location


def put_label_file(location: Location, labels: object, **options: object) -> Location:
    buffer = io.BytesIO()
    np.save(buffer, np.array(labels, dtype=object), **options)
    location.write_bytes(buffer.getvalue())
    return location


def annotation(*names: str) -> str:
    objects = "".join(f"<object><name>{name}</name></object>" for name in names)
    return f"<annotation><size><width>500</width><height>375</height></size>{objects}</annotation>"


# From a source's image to a manifest row


def test_names_become_ascending_class_numbers() -> None:
    (row,) = manifest_rows([SourceImage("a", "/a.jpg", ("sheep", "cat", "sheep"), "train")], ANIMALS)
    assert (row.labels, row.split, row.problem) == ((0, 4), "train", None)


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (SourceImage("../up", "/a.jpg", ("cat",)), "its id is not a plain name"),
        (SourceImage("", "/a.jpg", ("cat",)), "its id is not a plain name"),
        (SourceImage("a", "/a.jpg", ("cat", "zebra")), "label 'zebra' is not in the class list"),
        (SourceImage("first", "/a.jpg", ("cat",)), "its id is already taken by an earlier image"),
        (SourceImage("a", "/a.jpg", ("cat",), problem="known before"), "known before"),
    ],
)
def test_an_image_that_cannot_be_used_becomes_a_row_that_says_why(image: SourceImage, problem: str) -> None:
    first, row = manifest_rows([SourceImage("first", "/first.jpg"), image], ANIMALS)
    assert first.problem is None
    assert row.problem is not None and row.problem.startswith(problem)
    assert row.labels == () and row.image_id == image.image_id


# PASCAL VOC


def test_both_split_formats_name_the_same_images(location: Location) -> None:
    ids = ["2007_000032", "2007_000039"]
    put_label_file(location / "cls_labels.npy", {name: multi_hot("cat") for name in ids})
    put_text(location / "ImageSets/Segmentation/plain.txt", "\n".join(ids) + "\n\n")
    pairs = [f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png" for name in ids]
    put_text(location / "ImageSets/Segmentation/pairs.txt", "\r\n".join(pairs))
    plain = read_voc(location, ["plain"]).images
    pairs_ = read_voc(location, ["pairs"]).images
    assert [image.image_id for image in plain] == [image.image_id for image in pairs_] == ids
    assert plain[0].uri == pairs_[0].uri == (location / "JPEGImages/2007_000032.jpg").uri
    assert plain[0].mask_uri is None
    assert pairs_[0].mask_uri == (location / "SegmentationClassAug/2007_000032.png").uri
    assert {image.split for image in plain} == {"plain"}


def test_a_class_subset_drops_other_labels_and_counts_images_left_out(location: Location) -> None:
    labels = {"a": multi_hot("cat", "person"), "b": multi_hot("person"), "c": multi_hot("sheep", "cow")}
    put_label_file(location / "cls_labels.npy", labels)
    put_text(location / "ImageSets/Segmentation/train.txt", "a\nb\nc\nd\n")
    found = read_voc(location, ["train"], ANIMALS)
    assert [(image.image_id, image.labels) for image in found.images[:2]] == [("a", ("cat",)), ("c", ("cow", "sheep"))]
    assert found.num_left_out == 1
    assert found.images[2].problem == "it has no labels in cls_labels.npy"
    assert [row.labels for row in manifest_rows(found.images, ANIMALS)] == [(0,), (1, 4), ()]


def test_the_pixels_of_dropped_classes_are_ignored(tmp_path: Path) -> None:
    values = np.array([[0, 8, 15, 17, 255]], dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "mask.png")
    mask = read_mask(str(tmp_path / "mask.png"), voc_class_values(ANIMALS))
    np.testing.assert_array_equal(mask, [[0, 1, 255, 5, 255]])


def test_annotations_give_labels_and_sizes(location: Location) -> None:
    put_text(location / "ImageSets/Main/train.txt", "a\nb\nc\nd\ne\n")
    put_text(location / "Annotations/a.xml", annotation("person", "cat", "cat"))
    put_text(location / "Annotations/b.xml", annotation("zebra"))
    put_text(location / "Annotations/c.xml", "<annotation><object>")
    put_text(location / "Annotations/e.xml", '<!DOCTYPE a [<!ENTITY x "ha">]>' + annotation("&x;"))
    images = read_voc(location, ["train"], ANIMALS).images
    assert (images[0].labels, images[0].height, images[0].width) == (("cat",), 375, 500)
    problems = [row.problem for row in manifest_rows(images, ANIMALS)]
    assert problems[:2] == [None, "label 'zebra' is not in the class list"]
    assert problems[2] is not None and problems[2].startswith("its file in Annotations is not readable: not XML")
    assert problems[3:] == [
        "it has no file in Annotations",
        "its file in Annotations is not readable: it declares a document type",
    ]


@pytest.mark.parametrize(
    "line", ["../../etc/passwd", "/JPEGImages/../../x.jpg /SegmentationClassAug/x.png", "/a//b.jpg /c"]
)
def test_a_line_that_leads_out_of_the_devkit_is_a_problem(line: str, location: Location) -> None:
    put_label_file(location / "cls_labels.npy", {"a": multi_hot("cat"), "x": multi_hot("cat")})
    put_text(location / "ImageSets/Segmentation/train.txt", line)
    (row,) = manifest_rows(read_voc(location, ["train"]).images, VOC_CLASSES)
    assert row.problem is not None and row.uri == "" and row.labels == ()


def test_mask_and_saliency_folders_are_matched_by_id(location: Location) -> None:
    put_label_file(location / "cls_labels.npy", {"a": multi_hot("cat"), "b": multi_hot("dog")})
    put_text(location / "ImageSets/Segmentation/train.txt", "a\nb\n")
    for name in ("masks/a.png", "saliency/a.jpg", "saliency/b.png", "saliency/.c.partial"):
        (location / name).write_bytes(b"1")
    a, b = read_voc(location, ["train"], masks=location / "masks", saliency=location / "saliency").images
    assert (a.mask_uri, b.mask_uri) == ((location / "masks/a.png").uri, None)
    assert (a.saliency_uri, b.saliency_uri) == ((location / "saliency/a.jpg").uri, (location / "saliency/b.png").uri)


def test_an_unknown_list_class_or_line_is_refused_with_what_is_there(location: Location) -> None:
    put_label_file(location / "cls_labels.npy", {"a": multi_hot("cat")})
    put_text(location / "ImageSets/Segmentation/train.txt", "a 1 2\n")
    with pytest.raises(ValueError, match=r"no list 'val' in ImageSets; there are train\."):
        read_voc(location, ["val"])
    with pytest.raises(ValueError, match=r"class 'sheeps': not one of VOC's 20 classes. Did you mean 'sheep'"):
        read_voc(location, ["train"], ["sheeps"])
    with pytest.raises(ValueError, match=r"line 'a 1 2': expected '2007_000032' or"):
        read_voc(location, ["train"])
    with pytest.raises(ValueError, match="expected the name of a list"):
        read_voc(location, ["../train"])


def test_voc_values_are_the_devkits() -> None:
    assert len(VOC_CLASSES) == 20
    assert [VOC_CLASS_VALUES[name] for name in ("aeroplane", "cat", "person", "tvmonitor")] == [1, 8, 15, 20]


# cls_labels.npy


@pytest.mark.parametrize("key", ["2007_000032", 2007000032, np.int64(2007000032)])
@pytest.mark.parametrize("row", [multi_hot("cat"), multi_hot("cat").astype(np.int64), multi_hot("cat").astype(">f8")])
def test_label_files_with_text_and_integer_keys_are_read(key: object, row: np.ndarray, tmp_path: Path) -> None:
    place = put_label_file(Location.parse(str(tmp_path / "l.npy")), {key: row, "2008_000001": multi_hot()})
    found = read_label_file(place)
    assert list(found) == ["2007_000032", "2008_000001"]
    assert np.flatnonzero(found["2007_000032"]).tolist() == [7] and not found["2008_000001"].any()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_label_files_of_every_age_are_read(protocol: int, tmp_path: Path) -> None:
    place = Location.parse(str(tmp_path / "l.npy"))
    put_label_file(place, {})
    array = np.array({"a": multi_hot("dog"), 2007000032: multi_hot("cat")}, dtype=object)
    header = place.read_bytes()[:128]  # np.save's own; numpy chooses the protocol after it
    body = pickle.dumps(array, protocol=protocol)
    # Before numpy 2 the module had another name; later protocols state a name's length, so only these are edited.
    older = [body.replace(b"numpy._core", b"numpy.core")] if protocol < 4 else []
    for each in (body, *older):
        place.write_bytes(header + each)
        assert np.flatnonzero(read_label_file(place)["2007_000032"]).tolist() == [7]


class _Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_a_label_file_never_runs_what_it_names(tmp_path: Path) -> None:
    place = put_label_file(Location.parse(str(tmp_path / "l.npy")), {"a": _Hostile(tmp_path / "ran")})
    with pytest.raises(ValueError, match=r"it names posix.system; only arrays, numbers and text are read"):
        read_label_file(place)
    assert not (tmp_path / "ran").exists()


class _ForgedState:
    """numpy's own pickle of an object array, whose contents are raw bytes to be taken for pointers."""

    def __reduce__(self) -> tuple[object, ...]:
        construct, arguments, _ = np.array([None]).__reduce__()
        dtype = np.dtype("O")
        return construct, arguments, (1, (1,), dtype, False, b"\x41" * 8)


@pytest.mark.parametrize(
    "labels",
    [
        {"a": _ForgedState()},
        {"a": [1, 0]},
        {"a": np.array([0.5, 1])},
        {"a": np.zeros((2, 2))},
        {"a": np.zeros(3), "b": np.zeros(4)},
        {"a": np.array(["x"], dtype=object)},
        {"a": np.array(["text"])},
        {1.5: np.zeros(3)},
        {12: np.zeros(3)},
        {"2007_000032": np.zeros(3), 2007000032: np.zeros(3)},
        {},
        [1, 2],
        7,
    ],
)
def test_other_contents_are_refused(labels: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"l\.npy: "):
        read_label_file(put_label_file(Location.parse(str(tmp_path / "l.npy")), labels))


def test_other_files_are_not_taken_for_labels(tmp_path: Path) -> None:
    place = put_label_file(Location.parse(str(tmp_path / "l.npy")), {"a": multi_hot("cat")})
    whole = place.read_bytes()
    for data in (b"", b"text", whole[:60], whole[:150], whole[:-20]):
        place.write_bytes(data)
        with pytest.raises(ValueError, match="not a dictionary of image labels"):
            read_label_file(place)
    np.save(tmp_path / "l.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"an array of float64 \(3,\), not a dictionary"):
        read_label_file(place)


# A folder and a table


def test_a_table_gives_labels_paths_and_ids(location: Location) -> None:
    table = put_text(
        location / "labels.csv",
        "\ufeffimage,labels,split,mask,saliency,photographer\n"
        "a.jpg,cat;potted plant,train,masks/a.png,,Ann\n"
        'sub/b.jpeg,"dog | cat",train,,s3://bucket/b.png,\n'
        "./c.v2.png,,extra,,,\n"
        "\n"
        "s3://bucket/photos/d.jpg,sheep,train,,,\n",
    )
    a, b, c, d = read_image_table(table, location / "photos")
    assert a == SourceImage(
        "a", (location / "photos/a.jpg").uri, ("cat", "potted plant"), "train", (location / "photos/masks/a.png").uri
    )
    assert (b.image_id, b.labels, b.saliency_uri) == ("sub__b", ("dog", "cat"), "s3://bucket/b.png")
    assert (c.image_id, c.labels, c.uri) == ("c.v2", (), (location / "photos/c.v2.png").uri)
    assert (d.image_id, d.uri) == ("d", "s3://bucket/photos/d.jpg")
    assert label_names([a, b, c, d]) == ["cat", "dog", "potted plant", "sheep"]


def test_a_row_that_cannot_be_used_is_an_image_with_a_problem(location: Location) -> None:
    rows = ["../up.jpg,cat,", "b.jpg,cat", ",cat,", "d.jpg,cat,../../d", "e.jpg,cat,x", "e2.jpg,cat,x", "g.jpg,zebra,"]
    table = put_text(location / "labels.csv", "\n".join(["image,labels,id", *rows]))
    found = [row.problem for row in manifest_rows(read_image_table(table, location), ["cat"])]
    assert found == [
        "the path of its image leads out of the folder; write it absolute",
        "its row (line 3) has 2 fields, the first line has 3",
        "its row (line 4) names no image",
        "its id is not a plain name: 1 to 200 printable characters, no slash or backslash, no leading dot",
        None,
        "its id is already taken by an earlier image",
        "label 'zebra' is not in the class list",
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("image,label\na,b\n", r"column 'label': unknown. Did you mean 'labels'\?"),
        ("Image,labels\na,b\n", r"column 'Image': unknown. Did you mean 'image'\?"),
        ("image,tags\na,b\n", "no column 'labels'"),
        ("image,labels,image\na,b,c\n", "a column repeats"),
        ("", "no column 'image'"),
        (
            "image;labels;split\na;b;c\n",
            r"columns are separated by ';'; save it with commas, as in 'image,labels,split'",
        ),
        ('image,labels\n"a,b\n', "line 2: not CSV text in UTF-8"),
    ],
)
def test_a_table_without_its_columns_is_refused(text: str, sentence: str, location: Location) -> None:
    with pytest.raises(ValueError, match=sentence):
        list(read_image_table(put_text(location / "labels.csv", text), location))


def test_a_table_that_is_not_text_is_refused(location: Location) -> None:
    (location / "labels.csv").write_bytes(b"image,labels\n\xff\xfe,cat\n")
    with pytest.raises(ValueError, match="not CSV text in UTF-8"):
        list(read_image_table(location / "labels.csv", location))


def put_parquet(place: Location, **columns: object) -> Location:
    with place.open_output() as file:
        pq.write_table(pa.table(columns), file)
    return place


@pytest.mark.parametrize("labels", [["cat;potted plant", None], [["cat", "potted plant"], []]])
def test_a_parquet_table_says_the_same_as_csv(labels: list[object], location: Location) -> None:
    columns = {"image": ["a.jpg", "s3://bucket/b.jpg"], "labels": labels, "split": ["train", "extra"], "rank": [1, 2]}
    table = put_parquet(location / "labels.parquet", **columns)
    text = put_text(
        location / "labels.csv",
        "image,labels,split,rank\na.jpg,cat;potted plant,train,1\ns3://bucket/b.jpg,,extra,2\n",
    )
    assert list(read_parquet_table(table, location)) == list(read_image_table(text, location))


def test_a_parquet_row_that_cannot_be_used_is_an_image_with_a_problem(location: Location) -> None:
    table = put_parquet(location / "labels.parquet", image=["../up.jpg", None], labels=["cat", "cat"])
    problems = [row.problem for row in manifest_rows(read_parquet_table(table, location), ["cat"])]
    assert problems == [
        "the path of its image leads out of the folder; write it absolute",
        "its row (row 2) names no image",
    ]


def test_a_parquet_table_without_its_columns_is_refused(location: Location) -> None:
    place = location / "labels.parquet"
    for columns, sentence in (
        ({"image": ["a"], "tags": ["b"]}, "no column 'labels'"),
        ({"image": ["a"], "label": ["b"]}, "Did you mean 'labels'"),
        ({"image": [1], "labels": ["b"]}, "column 'image' is int64, expected text"),
        ({"image": ["a"], "labels": [[1]]}, "column 'labels' is list<.*int64>, expected text or lists of text"),
    ):
        with pytest.raises(ValueError, match=sentence):
            list(read_parquet_table(put_parquet(place, **columns), location))
    with pytest.raises(ValueError, match="not a Parquet file"):
        list(read_parquet_table(put_text(place, "image,labels"), location))
