"""Files that Hugging Face's `datasets` wrote (see fixtures/make_hugging_face.py): splits, class names, pictures."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from storage.hugging_face import is_hugging_face_table, read_hugging_face
from storage.location import Location
from storage.sources import Source, join_images

FIXTURES = Location(str(Path(__file__).parent / "fixtures"))


class Written:
    """What a source writes to the run."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def __call__(self, path: str, data: bytes) -> None:
        assert path not in self.files
        self.files[path] = data

    def reddest(self, source: Source) -> list[str]:
        """cat or dog by the pictures' colours: cats are red."""
        pixels = [np.asarray(Image.open(io.BytesIO(self.files[image.uri]))) for image in source.images]
        return ["cat" if int(each[8, 10, 0]) > int(each[8, 10, 2]) else "dog" for each in pixels]


@pytest.mark.parametrize("folder", ["saved", "parquet/data"])
def test_a_data_set_with_splits_gives_pictures_with_their_class_names(folder: str) -> None:
    written = Written()
    source = read_hugging_face(FIXTURES / folder, written)
    assert source.class_names == ("cat", "dog")
    assert [image.split for image in source.images] == ["train"] * 4 + ["validation"] * 2
    assert [image.labels[0] for image in source.images] == ["dog", "cat", "dog", "cat", "cat", "dog"]
    assert written.reddest(source) == [image.labels[0] for image in source.images]
    assert len({image.image_id for image in join_images(source.images)[0]}) == 6  # 0.png is in both splits
    assert all(image.uri.startswith("images/") and image.uri.endswith(".png") for image in source.images)


def test_one_shard_is_one_split_and_splits_can_be_chosen() -> None:
    (first, *_) = read_hugging_face(FIXTURES / "parquet/data/validation-00000-of-00001.parquet", Written()).images
    assert (first.split, first.labels) == ("validation", ("cat",))
    assert len(read_hugging_face(FIXTURES / "saved", Written(), ["validation"]).images) == 2
    with pytest.raises(ValueError, match=r"--split val: no such split in .*; there are train, validation"):
        read_hugging_face(FIXTURES / "saved", Written(), ["val"])


def test_several_labels_other_columns_and_pictures_without_a_path(location: Location) -> None:
    place = location / "several.parquet"
    place.write_bytes((FIXTURES / "parquet/several.parquet").read_bytes())
    source = read_hugging_face(place, Written())
    assert [image.labels for image in source.images] == [("cat", "dog"), ()]
    assert [image.image_id for image in source.images] == ["several_000000", "several_000001"]


def test_columns_can_be_named_and_are_asked_for() -> None:
    place = FIXTURES / "parquet/several.parquet"
    assert read_hugging_face(place, Written(), columns={"labels": "id"}).images[0].labels == ("7",)
    with pytest.raises(ValueError, match="no column 'tag'; there are photo, tags, id"):
        read_hugging_face(place, Written(), columns={"labels": "tag"})


def test_a_table_of_pictures_is_told_from_a_table_of_paths(tmp_path: Path) -> None:
    assert is_hugging_face_table(FIXTURES / "parquet/several.parquet")
    pq.write_table(pa.table({"image": ["0.jpg"], "labels": ["cat"]}), tmp_path / "paths.parquet")
    assert not is_hugging_face_table(Location(str(tmp_path / "paths.parquet")))
    (tmp_path / "text").write_bytes(b"image,labels")
    with pytest.raises(ValueError, match="not a Parquet file"):
        is_hugging_face_table(Location(str(tmp_path / "text")))


def test_rows_without_a_picture_and_labels_beyond_the_names(tmp_path: Path) -> None:
    rows = {"image": [{"bytes": None, "path": None}, {"bytes": None, "path": "x/1.jpg"}], "label": ["cat", "dog"]}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    none, path = read_hugging_face(Location(str(tmp_path / "rows.parquet")), Written()).images
    assert none.problem == "its row has no image"
    assert (path.uri, path.labels) == (str(tmp_path / "x/1.jpg"), ("dog",))
    with pytest.raises(ValueError, match=r"no \.parquet and no \.arrow files"):
        read_hugging_face(Location(str(tmp_path / "nowhere")), Written())
