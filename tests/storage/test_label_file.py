"""cls_labels.npy: every age of it is read, and nothing that it names is run."""

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from storage.label_file import read_label_file
from storage.location import Location
from storage.voc import VOC_CLASSES


def multi_hot(*names: str) -> np.ndarray:
    return np.array([name in names for name in VOC_CLASSES], dtype=np.float32)


def put_label_file(location: Location, labels: object, **options: object) -> Location:
    buffer = io.BytesIO()
    np.save(buffer, np.array(labels, dtype=object), **options)
    location.write_bytes(buffer.getvalue())
    return location


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
