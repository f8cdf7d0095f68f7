"""Sizes by the header, EXIF orientation, and masks that are turned and scaled with their picture."""

import io
import tempfile
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from storage.errors import BadImage
from storage.headers import Header, _header, _plain_jpeg, fit, fit_mask, read_header
from storage.location import Location


def picture(orientation: int = 1, size: tuple[int, int] = (60, 40)) -> bytes:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.new("RGB", size).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_header_is_that_of_the_upright_picture(orientation: int, location: Location) -> None:
    (location / "a.jpg").write_bytes(picture(orientation))
    found = read_header((location / "a.jpg").uri)
    assert found.size == ((60, 40) if orientation > 4 else (40, 60))
    assert (found.orientation, found.format) == (orientation, "JPEG")


@pytest.mark.parametrize(
    ("declared", "orientation", "expected"),
    [
        ((60, 40), 6, "same"),
        ((40, 60), 6, "turned"),  # by a tool that knows no EXIF
        ((40, 60), 1, "other"),  # height and width swapped
        ((120, 80), 6, "scaled"),
        ((80, 120), 6, "scaled"),  # shrunk, and turned
        ((601, 401), 6, "scaled"),
        ((61, 45), 6, "other"),
    ],
)
def test_how_a_written_size_fits(declared: tuple[int, int], orientation: int, expected: str) -> None:
    assert fit(declared, Header(60, 40, orientation)) == expected


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_is_turned_as_its_picture_is(orientation: int) -> None:
    stored = np.arange(24, dtype=np.uint8).reshape(4, 6)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(stored)
    image.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(image))
    found = fit_mask(stored, Header(6, 4, orientation))
    np.testing.assert_array_equal(found, upright)
    np.testing.assert_array_equal(fit_mask(upright, Header(6, 4, orientation)), upright)


def test_a_mask_is_scaled_by_the_nearest_pixel() -> None:
    mask = np.kron(np.array([[1, 2], [3, 4]], np.uint16), np.ones((30, 40), np.uint16))
    found = fit_mask(mask, Header(30, 40))
    np.testing.assert_array_equal(found, mask[::2, ::2])
    assert found.dtype == np.uint16


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(BadImage, match="mask of 60 x 40 pixels for a picture of 50 x 50"):
        fit_mask(np.zeros((40, 60), np.uint8), Header(50, 50))


def test_a_header_behind_much_metadata_is_found(location: Location) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (30, 40)).save(buffer, "JPEG", icc_profile=bytes(500_000))
    (location / "a.jpg").write_bytes(buffer.getvalue())
    assert read_header((location / "a.jpg").uri).size == (40, 30)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_plain_jpeg_has_the_same_header_as_pillow_reads(data: st.DataObject) -> None:
    width, height = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70))
    more: dict[str, Any] = {"progressive": data.draw(st.booleans())}
    exif = Image.Exif()
    exif[0x0112] = data.draw(st.integers(1, 8))
    blocks = [{}, {"icc_profile": bytes(9000)}, {"exif": exif}, {"comment": b"\xff\xe1\xff\xdaMPF\0" * 40}]
    more |= data.draw(st.sampled_from(blocks))
    stream = io.BytesIO()
    Image.new(data.draw(st.sampled_from(["L", "RGB", "CMYK"])), (width, height)).save(stream, "JPEG", **more)
    first = data.draw(st.sampled_from([b"", b"\xff\xfe\0\x06\xff\xda\xff\xe1"]))  # a comment with bytes of other blocks
    whole = stream.getvalue()[:2] + first + stream.getvalue()[2:]
    with tempfile.NamedTemporaryFile(suffix=".jpg") as file:
        file.write(whole)
        file.flush()
        assert read_header(file.name) == _header(whole)
    assert (_plain_jpeg(whole) is None) == ("exif" in more)


def test_a_header_cut_anywhere_is_never_read_as_another_size(tmp_path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (20, 12)).save(stream, "JPEG")
    whole, place = stream.getvalue(), tmp_path / "a.jpg"
    for length in range(1, len(whole)):
        place.write_bytes(whole[:length])
        try:
            assert read_header(str(place)).size == (12, 20)
        except BadImage:
            assert length < whole.index(b"\xff\xda") + 20
