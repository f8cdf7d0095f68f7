import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from storage.checksums import checksum, mismatch
from storage.errors import Damaged
from storage.label_folder import LabelFolder, decode_label_png, encode_label_png, voc_palette
from storage.location import Location
from storage.receipts import Receipt

IDS = ["2007_000032", "a b*[1]", "\u00e9t\u00e9"]


def receipt_with(objects: dict[str, str]) -> Receipt:
    return Receipt(0, 0, 4, 1.0, 1.7e9, objects=objects)


def drawn_labels(num_classes: int, ignore: int, shape: tuple[int, int] = (9, 7)) -> np.ndarray:
    return np.random.default_rng(0).choice([0, 1, num_classes, ignore], size=shape)


@pytest.mark.parametrize("image_id", IDS)
def test_labels_come_back_as_written(image_id: str, location: Location) -> None:
    folder, labels = LabelFolder(location / "labels", 20), drawn_labels(20, 255)
    assert not folder.exists(image_id)
    written = folder.write(image_id, labels)
    assert folder.exists(image_id)
    found = folder.read(image_id, receipt_with(written))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, labels)
    assert [*written.values()] == [checksum(folder.place(image_id).read_bytes())]


def test_labels_of_long_class_lists_keep_255_as_a_class(tmp_path: Path) -> None:
    folder = LabelFolder(Location(str(tmp_path)), 300)
    deep, shallow = drawn_labels(300, 65535), np.full((3, 4), 255)
    folder.write("deep", deep)
    folder.write("shallow", shallow)
    np.testing.assert_array_equal(folder.read("deep"), deep)
    np.testing.assert_array_equal(folder.read("shallow"), shallow)
    assert folder.read("shallow").dtype == folder.read("deep").dtype == np.uint16


def test_a_label_that_is_no_class_is_not_written(tmp_path: Path) -> None:
    folder = LabelFolder(Location(str(tmp_path)), 20)
    with pytest.raises(ValueError, match=r"a: label 21, expected 0 \(background\) to 20, or 255"):
        folder.write("a", np.array([[0, 21]]))
    assert not folder.exists("a")


def test_a_flipped_bit_of_a_label_file_is_found(tmp_path: Path) -> None:
    folder = LabelFolder(Location(str(tmp_path)), 20)
    receipt = receipt_with(folder.write("a", drawn_labels(20, 255)))
    path = Path(folder.place("a").uri)
    good, generator = path.read_bytes(), random.Random(0)
    for _ in range(300):
        bit, data = generator.randrange(8 * len(good)), bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises(Damaged, match="its bytes have changed"):
            folder.read("a", receipt)


def test_a_missing_truncated_or_exchanged_label_file_is_damage_with_its_remedy(tmp_path: Path) -> None:
    folder = LabelFolder(Location(str(tmp_path)), 20)
    receipt = receipt_with(folder.write("a", drawn_labels(20, 255)))
    folder.write("b", np.zeros((9, 7), int))
    folder.place("a").write_bytes(folder.place("b").read_bytes())
    with pytest.raises(Damaged, match=r"a\.png: damaged \(\d+ bytes, \d+ were written\)\. If .*verify.*--repair"):
        folder.read("a", receipt)
    folder.place("a").delete()
    with pytest.raises(Damaged, match="the file is missing"):
        folder.read("a", receipt)
    with pytest.raises(FileNotFoundError):
        folder.read("a")


def png(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new(kind, (4, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def bomb() -> bytes:
    """The head of a PNG of 10^10 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "not a readable PNG"),
        (encode_label_png(np.zeros((50, 50), int))[:-40], "not a readable PNG"),
        (png("RGB"), "RGB pixels"),
        (encode_label_png(np.full((2, 2), 99)), "label 99, expected 0"),
        (bomb(), "not a readable PNG"),
    ],
)
def test_what_is_no_label_file_is_damage_even_without_a_checksum(data: bytes, what: str, tmp_path: Path) -> None:
    folder = LabelFolder(Location(str(tmp_path)), 20)
    folder.place("a").write_bytes(data)
    with pytest.raises(Damaged, match=what):
        folder.read("a")


@settings(deadline=None)
@given(st.lists(st.integers(0, 65535), min_size=1, max_size=30))
def test_encoding_keeps_every_value(values: list[int]) -> None:
    labels = np.array([values])
    np.testing.assert_array_equal(decode_label_png(encode_label_png(labels)), labels)


def test_the_palette_is_vocs() -> None:
    """The devkit's first colours and the void's."""
    expected = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 8: (64, 0, 0), 15: (192, 128, 128), 255: (224, 224, 192)}
    assert {value: tuple(voc_palette()[value].tolist()) for value in expected} == expected


def test_a_checksum_is_the_beginning_of_sha_256_and_the_size() -> None:
    assert checksum(b"abc") == "ba7816bf8f01cfea:3"  # FIPS 180-2, appendix B.1
    assert mismatch(b"abc", "ba7816bf8f01cfea:3") == ""


@pytest.mark.parametrize(
    ("labels", "given"),
    [
        (np.array([[0.2, 0.9]]), r"float64 \(1, 2\)"),
        (np.array([[np.nan, 1.0]]), r"float64 \(1, 2\)"),
        ([[0, 1]], "a list"),
        (np.zeros((2, 3, 3), np.uint8), r"uint8 \(2, 3, 3\)"),
        (np.zeros((0, 3), np.uint8), r"uint8 \(0, 3\)"),
        (np.array([[70000, 1]]), "the label 70000"),
        (np.array([[1, -1]]), "the label -1"),
    ],
)
def test_what_is_no_label_image_is_not_encoded(labels, given):
    with pytest.raises(ValueError, match=f"^encode_label_png: given {given}, allowed: .*whole numbers"):
        encode_label_png(labels)
