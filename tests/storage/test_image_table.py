"""Tables of images and labels, as people, spreadsheets, pandas and other programs write them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from storage.image_table import TableOptions, read_image_table, read_parquet_table
from storage.location import Location
from storage.sources import Source, SourceImage, join_images, label_names, manifest_rows


@pytest.fixture
def folder(tmp_path: Path) -> Location:
    return Location(str(tmp_path))


def read(place: Location, content: str | bytes, **options: object) -> Source:
    """What a table of this content says, its images being beside it."""
    table = place / "labels.csv"
    table.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_image_table(table, place, TableOptions(**options))  # type: ignore[arg-type]


def put_parquet(place: Location, **columns: object) -> Location:
    with place.open_output() as file:
        pq.write_table(pa.table(columns), file)
    return place


def labels(source: Source) -> list[tuple[str, ...]]:
    return [image.labels for image in source.images]


# The documented table


def test_a_table_gives_labels_paths_and_ids(location: Location) -> None:
    table = location / "labels.csv"
    table.write_bytes(
        "\ufeffimage,labels,split,mask,saliency,photographer\n"
        "a.jpg,cat;potted plant,train,masks/a.png,,Ann\n"
        'sub/b.jpeg,"dog | cat",train,,s3://bucket/b.png,\n'
        "./c.v2.png,,extra,,,\n"
        "\n"
        "s3://bucket/photos/d.jpg,sheep,train,,,\n".encode()
    )
    source = read_image_table(table, location / "photos")
    a, b, c, d = source.images
    assert a == SourceImage(
        "a", (location / "photos/a.jpg").uri, ("cat", "potted plant"), "train", (location / "photos/masks/a.png").uri
    )
    assert (b.image_id, b.labels, b.saliency_uri) == ("sub__b", ("dog", "cat"), "s3://bucket/b.png")
    assert (c.image_id, c.labels, c.uri) == ("c.v2", (), (location / "photos/c.v2.png").uri)
    assert (d.image_id, d.uri) == ("d", "s3://bucket/photos/d.jpg")
    assert label_names(source.images) == ["cat", "dog", "potted plant", "sheep"]
    assert source.notes == () and source.class_names is None


def test_a_row_that_cannot_be_used_is_an_image_with_a_problem(folder: Location) -> None:
    """A reason holds no line number, so that rows of one reason are told as one."""
    rows = ["../up.jpg,cat,", "b.jpg,cat,b,c", ",cat,x", "d.jpg,cat,../../d", "e.jpg,cat,e", "g.jpg,zebra,", "h.jpg"]
    source = read(folder, "\n".join(["image,labels,id", *rows]))
    images, _ = join_images(source.images)
    assert [row.problem for row in manifest_rows(images, ["cat"])] == [
        "the path of its image leads out of the folder; write an absolute path",
        "its row has 4 fields, but the first line has 3; put labels with commas in quotes, or separate them by ';'",
        "its row names no image",
        "its id is not a plain name: 1 to 200 printable characters, no slash or backslash, no leading dot",
        None,
        "label 'zebra' is not in the class list",
        "its row has 1 fields, but the first line has 3; a cell is missing",
    ]


def test_empty_cells_at_the_end_may_be_left_out(folder: Location) -> None:
    source = read(folder, "image,labels,split,mask\na.jpg,cat,train\nb.jpg,dog\n")
    assert labels(source) == [("cat",), ("dog",)] and not any(image.problem for image in source.images)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("image,lables\na,b\n", r"column 'lables': unknown. Did you mean 'labels'\? Then rename it, or give"),
        ("imagee,labels\na,b\n", r"column 'imagee': unknown. Did you mean 'image'\?"),
        ("image,labels,spilt\na,b,c\n", r"column 'spilt': unknown. Did you mean 'split'\? Then rename it\."),
        ("image,breed\na,b\n", r"no column 'labels', and no columns of 0 and 1; .* as in --label-column breed"),
        ("picture_nr,labels\na,b\n", r"no column 'image'; it has picture_nr, labels. Say .*--image-column picture_nr"),
        ("My picture,labels\na,b\n", r"no column 'image'; it has My picture, .*--image-column 'My picture'"),
        ("image,labels,image\na,b,c\n", "two columns are called 'image'; rename one of them"),
        ("image,label,class\na,b,c\n", "columns 'label' and 'class' may both be the labels. .*--label-column label"),
        ("0.jpg,cat\n1.jpg,dog\n", "its first line does not have the names of the columns; add a line such as"),
        ("", "the table is empty; its first line must name the columns"),
        ('image,labels\n"a,b\n', "line 2: not CSV text"),
    ],
)
def test_a_table_without_its_columns_is_refused(text: str, sentence: str, folder: Location) -> None:
    with pytest.raises(ValueError, match=sentence) as refusal:
        read(folder, text)
    assert str(refusal.value).startswith(f"{folder}/labels.csv: ") and "\n" not in str(refusal.value)


# Texts as programs write them


def test_what_excel_leaves_is_no_image_and_no_column(folder: Location) -> None:
    rows = ["image,labels,split,,", "0.jpg,cat,train,,", "1.jpg,dog,val,,", ",,,,", ",,,,"]
    source = read(folder, "\r\n".join(rows) + "\r\n")
    assert [(image.image_id, image.labels, image.split) for image in source.images] == [
        ("0", ("cat",), "train"),
        ("1", ("dog",), "val"),
    ]


@pytest.mark.parametrize(
    "content",
    [
        "image;labels;split\r\n0.jpg;Käse;train\r\n".encode("utf-8-sig"),
        "image\tlabels\tsplit\r\n0.jpg\tKäse\ttrain\r\n".encode("utf-16"),
        'sep=;\r\n"image";"labels";"split"\r\n"0.jpg";"Käse";"train"\r\n'.encode(),
        "image,labels,split\r\n0.jpg,Käse,train\r\n".encode("cp1252"),
        " Image , LABELS ,Split\n0.jpg,Ka\u0308se,train\n".encode(),
    ],
)
def test_one_table_in_many_spellings_is_one_table(content: bytes, folder: Location) -> None:
    encoding = "cp1252" if b"K\xe4se" in content and content[:2] != b"\xff\xfe" else None
    source = read(folder, content, encoding=encoding)
    assert [(image.image_id, image.labels, image.split) for image in source.images] == [("0", ("Käse",), "train")]
    assert source.notes == (("labels.csv: read as UTF-16.",) if content[:2] == b"\xff\xfe" else ())


def test_lists_of_python_and_json_are_lists_and_it_is_told(folder: Location) -> None:
    source = read(folder, 'image,labels\n0.jpg,"[\'cat\', \'dog\']"\n1.jpg,"[""cat""]"\n2.jpg,[]\n3.jpg,dog\n')
    assert labels(source) == [("cat", "dog"), ("cat",), (), ("dog",)]
    assert source.notes == ("labels.csv: the labels of 3 rows are read as lists, such as ['cat', 'dog'].",)


def test_a_separator_of_labels_can_be_named(folder: Location) -> None:
    assert labels(read(folder, 'image,labels\n0.jpg,"cat, dog"\n', label_separators=",")) == [("cat", "dog")]
    assert labels(read(folder, "image,labels\n0.jpg,haze primary\n", label_separators=" ")) == [("haze", "primary")]


def test_a_table_that_is_not_text_is_refused(folder: Location) -> None:
    with pytest.raises(ValueError, match="not CSV text in UTF-8"):
        read(folder, b"image,labels\n\xff\xfe,cat\n")


# Columns by other names


@pytest.mark.parametrize("header", ["filename,label", "file_name,class", "IMAGE_PATH,tags", "path,category"])
def test_usual_names_of_columns_are_known_and_told(header: str, folder: Location) -> None:
    source = read(folder, f"{header}\na.jpg,cat;dog\n")
    assert (source.images[0].image_id, source.images[0].labels) == ("a", ("cat", "dog"))
    assert source.notes == (
        f"labels.csv: column {header.split(',')[0]!r} is read as the image, column {header.split(',')[1]!r} is read as "
        "the labels.",
    )


def test_columns_can_be_named(folder: Location) -> None:
    text = "id,breed,image\na.jpg,cat,unused\n"
    source = read(folder, text, columns={"image": "id", "labels": "breed"})
    assert (source.images[0].uri, source.images[0].labels) == ((folder / "a.jpg").uri, ("cat",))
    with pytest.raises(ValueError, match=r"--label-column bred: no such column; did you mean 'breed'\?"):
        read(folder, text, columns={"labels": "bred"})


# One column per class


@pytest.mark.parametrize("image_column", ["image", "filename"])
def test_columns_of_zero_and_one_are_classes(image_column: str, folder: Location) -> None:
    source = read(
        folder, f"{image_column},dog,cat,width,note\n0.jpg,1,0,640,x\n1.jpg,1.0,1,0,y\n2.jpg,0,0,1,\n3.jpg,,,2,\n"
    )
    assert source.class_names == ("dog", "cat")
    assert labels(source) == [("dog",), ("dog", "cat"), (), ()]
    assert [image.is_negative for image in source.images] == [False, False, True, False]  # empty: nobody knows
    assert source.notes[-1] == "labels.csv: one column per class, with 0 and 1: dog, cat; not read: width, note."


def test_row_numbers_of_pandas_are_no_class(folder: Location) -> None:
    assert read(folder, ",image,cat\n0,a.jpg,1\n1,b.jpg,0\n").class_names == ("cat",)
    assert read(folder, "Unnamed: 0,image,cat\n0,a.jpg,1\n1,b.jpg,0\n").class_names == ("cat",)


def test_minus_one_without_zero_means_absent(folder: Location) -> None:
    """CelebA's attributes."""
    source = read(folder, "image,cat,dog\n0.jpg,1,-1\n1.jpg,-1,-1\n")
    assert labels(source) == [("cat",), ()] and source.images[1].is_negative


def test_minus_one_beside_zero_is_asked_about(folder: Location) -> None:
    """Uncertain in CheXpert, absent in VOC's lists."""
    text = "image,cat,dog\n0.jpg,1,0\n1.jpg,-1,1\n2.jpg,-1,0\n"
    with pytest.raises(ValueError, match="Say which: --minus-one absent, --minus-one present, or --minus-one skip"):
        read(folder, text)
    assert labels(read(folder, text, minus_one="absent")) == [("cat",), ("dog",), ()]
    assert labels(read(folder, text, minus_one="present")) == [("cat",), ("cat", "dog"), ("cat",)]
    skipped = read(folder, text, minus_one="skip")
    assert labels(skipped) == [("cat",)] and skipped.notes[-1] == "labels.csv: 2 rows with -1 are left out."


def test_chosen_classes_take_their_columns_alone(folder: Location) -> None:
    source = read(folder, "image,cat,dog\n0.jpg,0,1\n1.jpg,1,1\n", class_names=("cat",))
    assert (source.class_names, labels(source)) == (("cat",), [(), ("cat",)])
    assert source.images[0].is_negative


# Paths


def test_paths_that_cannot_be_read_have_their_true_reason(folder: Location) -> None:
    paths = {
        "https://example.org/1.jpg": "is a web address; download the image and name the file",
        "gs://bucket/2.jpg": "begins with gs://; only folders and s3:// are read",
        "C:\\Users\\me\\3.jpg": "is a Windows path; write it with slashes",
        "\\\\server\\share\\4.jpg": "is a Windows path",
        "a/../../5.jpg": "leads out of the folder",
        "s3://b/../6.jpg": "is not an s3:// address",
    }
    source = read(folder, "\n".join(["image,labels", *(f"{path},cat" for path in paths)]))
    for image, reason in zip(source.images, paths.values(), strict=True):
        assert image.problem is not None and image.problem.startswith(f"the path of its image {reason}")
    assert [image.image_id for image in source.images[:4]] == ["1", "2", "3", "4"]


def test_paths_of_other_forms_are_read(folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    paths = ["sub\\b.jpg", f"file://{folder}/my%20photo.jpg", "~/c.jpg", "./d//e.jpg", "/mnt/f.jpg"]
    source = read(folder, "\n".join(["image,labels", *(f"{path},cat" for path in paths)]))
    assert [(image.image_id, image.uri) for image in source.images] == [
        ("sub__b", f"{folder}/sub/b.jpg"),
        ("my photo", f"{folder}/my photo.jpg"),
        ("c", "/home/me/c.jpg"),
        ("d__e", f"{folder}/d/e.jpg"),
        ("f", "/mnt/f.jpg"),
    ]


# Splits


def test_splits_can_be_chosen(folder: Location) -> None:
    text = "image,labels,split\n0.jpg,cat,train\n1.jpg,cat,test\n"
    assert [image.image_id for image in read(folder, text, splits=("train",)).images] == ["0"]
    with pytest.raises(ValueError, match="no row has the split 'val'"):
        read(folder, text, splits=("val",))


# Parquet


@pytest.mark.parametrize("labels_", [["cat;potted plant", None], [["cat", "potted plant"], []]])
def test_a_parquet_table_says_the_same_as_csv(labels_: list[object], location: Location) -> None:
    columns = {"image": ["a.jpg", "s3://bucket/b.jpg"], "labels": labels_, "split": ["train", "extra"], "rank": [1, 2]}
    table = put_parquet(location / "labels.parquet", **columns)
    text = location / "labels.csv"
    text.write_bytes(b"image,labels,split,rank\na.jpg,cat;potted plant,train,1\ns3://bucket/b.jpg,,extra,2\n")
    assert read_parquet_table(table, location).images == read_image_table(text, location).images


def test_names_in_a_parquet_list_are_not_cut(folder: Location) -> None:
    names = [["cat|kitten"], ["AC; DC", "['odd']"]]
    source = read_parquet_table(put_parquet(folder / "t.parquet", image=["0.jpg", "1.jpg"], labels=names), folder)
    assert labels(source) == [("cat|kitten",), ("AC; DC", "['odd']")]


def test_parquet_numbers_and_columns_per_class_are_read(folder: Location) -> None:
    numbers = put_parquet(folder / "n.parquet", image=["0.jpg", "1.jpg"], labels=pa.array([[0, 2], [1]]))
    assert labels(read_parquet_table(numbers, folder)) == [("0", "2"), ("1",)]
    flags = {"image": ["0.jpg", "1.jpg"], "cat": [True, False], "dog": np.array([1.0, 0.0], np.float32)}
    source = read_parquet_table(put_parquet(folder / "f.parquet", **flags), folder)
    assert labels(source) == [("cat", "dog"), ()] and source.images[1].is_negative


def test_a_parquet_table_without_its_columns_is_refused(location: Location) -> None:
    place = location / "labels.parquet"
    for columns, sentence in (
        ({"image": ["a"], "breed": ["b"]}, "no column 'labels'"),
        ({"image": ["a"], "lables": ["b"]}, "Did you mean 'labels'"),
        ({"image": [["a"]], "labels": ["b"]}, "column 'image' is list<.*string>, expected text"),
        ({"image": ["a"], "labels": [{"x": 1}]}, "column 'labels' is struct<.*>, expected text, numbers or lists"),
    ):
        with pytest.raises(ValueError, match=sentence):
            read_parquet_table(put_parquet(place, **columns), location)
    place.write_bytes(b"image,labels")
    with pytest.raises(ValueError, match="not a Parquet file"):
        read_parquet_table(place, location)


def test_a_row_of_parquet_that_names_no_image_says_so(folder: Location) -> None:
    source = read_parquet_table(put_parquet(folder / "t.parquet", image=["a.jpg", None], labels=["cat", "x"]), folder)
    assert (source.images[1].image_id, source.images[1].problem) == ("row 2", "its row names no image")


def test_names_of_columns_may_have_spaces(folder: Location) -> None:
    source = read(folder, "File name,Labels\na.jpg,cat\nb.jpg,dog\n")
    assert labels(source) == [("cat",), ("dog",)]
