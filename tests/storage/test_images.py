import errno
import io
import os
import resource
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from storage.errors import BadImage, StorageError
from storage.image_bytes import num_jpeg_scans
from storage.images import MAX_SCANS, image_size, read_image, read_many, read_mask, read_saliency
from storage.location import Location


def drawn_pixels(height: int = 12, width: int = 20) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_by_hand(width: int, height: int, bits: int, pixels: bytes) -> bytes:
    """A PNG of colours."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def png_header_only(width: int, height: int) -> bytes:
    """A PNG that promises many pixels and holds none."""
    return png_by_hand(width, height, 8, b"")


def png_of_colours(pixels: np.ndarray) -> bytes:
    """(H, W, 3) uint16 as a PNG of 16 bits per channel, which Pillow does not write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return png_by_hand(pixels.shape[1], pixels.shape[0], 16, rows)


def put(location: Location, data: bytes) -> str:
    place = location / "image"
    place.write_bytes(data)
    return place.uri


def test_pixels_come_back_upright_and_in_rgb(location: Location) -> None:
    pixels = drawn_pixels()
    uri = put(location, encoded(Image.fromarray(pixels)))
    np.testing.assert_array_equal(read_image(uri), pixels)
    assert image_size(uri) == (12, 20)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_an_image_and_its_size_are_turned_upright_by_exif(kind: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    corners = np.zeros((16, 32, 3), np.uint8)
    corners[:8, :16], corners[:8, 16:], corners[8:, :16] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    uri = put(Location.parse(str(tmp_path)), encoded(Image.fromarray(corners), kind, exif=exif, quality=95))
    # What the orientation says about the stored rows and columns (EXIF 2.3, section 4.6.4)
    turned = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a),
    }
    expected, found = turned[orientation](corners), read_image(uri)
    assert image_size(uri) == found.shape[:2] == expected.shape[:2]
    assert np.abs(found[4::8, 4::8].astype(int) - expected[4::8, 4::8]).max() < 60  # WebP's chroma is coarse


def ramp_16() -> Image.Image:
    return Image.fromarray(np.arange(240, dtype=np.uint16).reshape(12, 20) * 256 + 255)


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (Image.new("L", (20, 12), 77), "PNG", (77, 77, 77)),
        (Image.new("1", (20, 12), 1), "PNG", (255, 255, 255)),
        (Image.new("LA", (20, 12), (10, 255)), "PNG", (10, 10, 10)),
        (Image.new("RGBA", (20, 12), (200, 0, 0, 0)), "PNG", (255, 255, 255)),
        (Image.new("RGBA", (20, 12), (200, 0, 0, 255)), "PNG", (200, 0, 0)),
        (Image.new("RGB", (20, 12), (9, 90, 200)).convert("P", palette=Image.Palette.ADAPTIVE), "PNG", (9, 90, 200)),
        (Image.new("CMYK", (20, 12), (0, 255, 255, 0)), "TIFF", (255, 0, 0)),
        (Image.new("RGB", (20, 12), (40, 80, 120)), "BMP", (40, 80, 120)),
    ],
)
def test_every_kind_of_pixel_becomes_rgb(image: Image.Image, kind: str, expected, tmp_path) -> None:
    pixels = read_image(put(Location.parse(str(tmp_path)), encoded(image, kind)))
    assert pixels.shape == (12, 20, 3) and pixels.dtype == np.uint8 and pixels.flags.writeable
    np.testing.assert_array_equal(np.unique(pixels.reshape(-1, 3), axis=0), [expected])


def test_sixteen_bits_keep_their_high_byte(tmp_path) -> None:
    pixels = read_image(put(Location.parse(str(tmp_path)), encoded(ramp_16())))
    np.testing.assert_array_equal(pixels[..., 0].ravel(), np.arange(240))


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_fewer_bits_in_a_file_of_sixteen_are_not_read_as_black(bits: int, kind: str, tmp_path) -> None:
    image = Image.fromarray((np.arange(256, dtype=np.uint16) << (bits - 8)).reshape(16, 16))
    pixels = read_image(put(Location.parse(str(tmp_path)), encoded(image, kind)))
    np.testing.assert_array_equal(pixels[..., 0].ravel(), np.arange(256))


@pytest.mark.parametrize(("brightest", "is_read"), [(1023, False), (4095, False), (4096, True), (0, True)])
def test_colours_of_which_the_high_byte_is_never_used_are_refused(brightest: int, is_read: bool, tmp_path) -> None:
    uri = put(Location.parse(str(tmp_path)), png_of_colours(np.full((6, 8, 3), brightest, np.uint16)))
    if is_read:
        assert read_image(uri).max() == brightest >> 8
    else:
        with pytest.raises(BadImage, match="16 bits per channel, but the highest 4 are never used"):
            read_image(uri)


def test_a_cmyk_photograph_keeps_its_colours(tmp_path) -> None:
    data = encoded(Image.new("CMYK", (64, 64), (0, 255, 255, 0)), "JPEG", quality=95)
    assert np.abs(read_image(put(Location.parse(str(tmp_path)), data)).astype(int) - (255, 0, 0)).max() < 8


PHOTO = encoded(Image.fromarray(drawn_pixels(64, 64)), "JPEG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (PHOTO[: len(PHOTO) // 2], "damaged or truncated JPEG file"),
        (encoded(Image.fromarray(drawn_pixels()))[:200], "damaged or truncated PNG file"),
        (b"this is text\n" * 50, "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (PHOTO[:2], "not an image"),
        (
            png_header_only(9000, 9000),
            "too large: 9000 x 9000 by its header, at most 64,000,000 pixels (images.max_pixels)",
        ),
        (png_header_only(30_000, 30_000), "too large"),
        (encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "floating-point pixels"),
    ],
)  # fmt: skip
def test_a_bad_file_becomes_one_sentence(data: bytes, reason: str, location: Location) -> None:
    with pytest.raises(BadImage) as bad:
        read_image(put(location, data))
    assert bad.value.reason.startswith(reason)
    assert "\n" not in bad.value.reason and location.uri not in bad.value.reason


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\0\0\0\x24ftypheic", "an HEIC picture"),
        (b"\0\0\0\x1cftypavif", "an AVIF picture"),
        (b"\0\0\0\x20ftypisom", "a film"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 picture"),
        (bytes(128) + b"DICM", "a DICOM file"),
        (b"%PDF-1.7", "a PDF file"),
        (b"<!DOCTYPE html><html>", "a web page, not a picture; download the picture again"),
        (b'<?xml version="1.0"?><svg>', "an SVG drawing"),
        (b"version https://git-lfs.github.com/spec/v1\n", "run 'git lfs pull'"),
    ],
)
def test_a_file_of_another_kind_is_called_by_its_name(data: bytes, what: str, location: Location) -> None:
    uri = put(location, data + bytes(200))
    for read in (read_image, image_size):
        with pytest.raises(BadImage, match=what):
            read(uri)


def test_a_header_alone_costs_no_memory(tmp_path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadImage):
        read_image(put(Location.parse(str(tmp_path)), png_header_only(30_000, 30_000)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB; decoded it were 2.7 GB


def test_missing_files_folders_and_odd_addresses_are_bad_images(location: Location, tmp_path) -> None:
    for uri, reason in (
        ((location / "absent.jpg").uri, "missing: no such file"),
        (str(tmp_path), "a folder, not a file"),
        ("gs://bucket/a.jpg", "its address is neither a path nor s3://bucket/key"),
        ("", "its address is neither a path nor s3://bucket/key"),
    ):
        for read in (read_image, image_size, read_saliency):
            with pytest.raises(BadImage) as bad:
                read(uri)
            assert bad.value.reason == reason


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(3 << 30)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (fifo, "a FIFO, not a regular file"),
        (unix_socket, "a socket, not a regular file"),
        (link_to("/dev/zero"), "a device, not a regular file"),
        (link_to("image"), "its symbolic links form a loop"),
        (sparse, "too large: more than 268,435,456 bytes (images.max_bytes)"),
        (lambda path: path.mkdir(), "a folder, not a file"),
    ],
)
def test_what_never_ends_or_is_no_file_is_refused_at_once(make: Callable[[Path], None], reason: str, tmp_path) -> None:
    place = tmp_path / "image"
    make(place)
    readers: list[Callable[[str], object]] = [read_image, read_saliency, lambda uri: read_mask(uri, [1]), image_size]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in readers if make is not sparse else readers[:3]:
        with pytest.raises(BadImage) as bad:
            read(str(place))
        assert bad.value.reason == reason
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_a_size_is_not_searched_for_beyond_the_limit_of_bytes(tmp_path: Path) -> None:
    sparse(tmp_path / "image")
    with pytest.raises(BadImage, match=r"images\.max_bytes"):
        image_size(str(tmp_path / "image"))


@pytest.mark.timeout(20)
def test_a_fifo_that_takes_the_place_of_a_file_is_not_waited_for(tmp_path: Path, monkeypatch) -> None:
    place = tmp_path / "image"
    place.write_bytes(PHOTO)
    status = os.stat(place)
    place.unlink()
    os.mkfifo(place)
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **options: status if path == str(place) else real(path, **options))
    with pytest.raises(BadImage, match="a FIFO"):
        read_image(str(place))


@pytest.mark.parametrize(
    ("number", "reason"), [(errno.EACCES, "permission denied"), (errno.EIO, "the disk cannot read it")]
)
def test_a_file_that_cannot_be_read_is_a_bad_image(number: int, reason: str, tmp_path: Path, monkeypatch) -> None:
    place = tmp_path / "image"
    place.write_bytes(PHOTO)

    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("storage.location.os.open", refuse)
    for read in (read_image, image_size):
        with pytest.raises(BadImage, match=f"^{reason}"):
            read(str(place))


def test_too_many_open_files_are_no_bad_image(tmp_path: Path, monkeypatch) -> None:
    place = tmp_path / "image"
    place.write_bytes(PHOTO)

    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("storage.location.os.open", refuse)
    with pytest.raises(StorageError, match="Too many open files"):
        read_image(str(place))


def test_files_are_refused_by_their_bytes(location: Location) -> None:
    uri = put(location, PHOTO)
    assert read_image(uri, max_bytes=len(PHOTO)).shape == (64, 64, 3)
    with pytest.raises(BadImage, match=rf"^too large: more than {len(PHOTO) - 1:,} bytes \(images.max_bytes\)"):
        read_image(uri, max_bytes=len(PHOTO) - 1)


def progressive(extra_scans: int = 0) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    data = encoded(Image.fromarray(drawn_pixels(64, 64)), "JPEG", progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * extra_scans + data[-2:]


def test_jpegs_are_refused_by_their_scans(location: Location) -> None:
    assert num_jpeg_scans(PHOTO) == 1
    ordinary = num_jpeg_scans(progressive())
    assert 5 <= ordinary <= 12
    place = put(location, progressive(MAX_SCANS - ordinary))
    assert read_image(place).shape == (64, 64, 3)
    place = put(location, progressive(3000))
    for read in (read_image, read_saliency):
        with pytest.raises(BadImage) as bad:
            read(place)
        reason = f"too slow: a JPEG of {3000 + ordinary:,} scans, at most 64 are decoded (images.max_scans)"
        assert bad.value.reason == reason
    assert read_image(place, max_scans=3000 + ordinary).shape == (64, 64, 3)


def test_scans_are_counted_in_the_picture_alone() -> None:
    looks_like_scans = b"\xff\xda" * 1000
    commented = encoded(Image.fromarray(drawn_pixels()), "JPEG", comment=looks_like_scans)
    assert num_jpeg_scans(commented) == 1
    assert num_jpeg_scans(PHOTO + looks_like_scans) == 1  # a film behind the photograph
    assert num_jpeg_scans(b"\xff") == num_jpeg_scans(b"") == 0
    restarts = encoded(Image.fromarray(drawn_pixels(64, 64)), "JPEG", restart_marker_blocks=1)
    assert num_jpeg_scans(restarts) == 1


def test_too_little_memory_is_said(tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("storage.images.simplejpeg.decode_jpeg", refuse)
    with pytest.raises(BadImage, match="too large for the free memory: 64 x 64 pixels"):
        read_image(put(Location.parse(str(tmp_path)), PHOTO))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 2, "quality": 30}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_fast_decoder_gives_pillows_pixels(mode: str, options: dict, tmp_path: Path) -> None:
    for size in ((375, 500), (17, 9), (64, 64)):
        data = encoded(Image.fromarray(drawn_pixels(*size)).convert(mode), "JPEG", **options)
        found = read_image(put(Location.parse(str(tmp_path)), data))
        assert found.flags.writeable
        np.testing.assert_array_equal(found, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
        scaled = Image.open(io.BytesIO(data))
        scaled.draft(scaled.mode, (80, 80))
        found = read_image(put(Location.parse(str(tmp_path)), data), target_side=40)
        np.testing.assert_array_equal(found, np.asarray(scaled.convert("RGB")))


def test_pillow_decides_about_a_jpeg_with_a_fault_in_its_pixels(tmp_path: Path) -> None:
    data = bytearray(encoded(Image.fromarray(drawn_pixels(64, 64)), "JPEG"))
    data[-1000:-990] = bytes(10)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(read_image(put(Location.parse(str(tmp_path)), bytes(data))), expected)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((800, 1200), (200, 300)), ((799, 1200), (400, 600)), ((160, 8000), (160, 8000)), ((50, 60), (50, 60))],
)
def test_a_large_jpeg_is_decoded_at_the_size_that_is_needed(size, expected, tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, size[1]).astype(np.uint8)[None, :].repeat(size[0], 0)
    uri = put(Location.parse(str(tmp_path)), encoded(Image.fromarray(ramp).convert("RGB"), "JPEG", quality=95))
    whole, found = read_image(uri), read_image(uri, target_side=100)
    assert whole.shape[:2] == image_size(uri) == size
    assert found.shape[:2] == expected
    scale = size[1] // expected[1]
    averages = whole.reshape(whole.shape[0], -1, scale, 3).mean(2)[: found.shape[0]]
    assert np.abs(found - averages).max() < 3


def test_only_jpegs_are_scaled_and_limits_hold_for_the_full_size(tmp_path: Path) -> None:
    place = Location.parse(str(tmp_path))
    grey = Image.new("L", (1200, 800), 77)
    assert read_image(put(place, encoded(grey)), target_side=100).shape == (800, 1200, 3)
    uri = put(place, encoded(grey, "JPEG"))
    assert read_image(uri, target_side=100).shape == (200, 300, 3)
    with pytest.raises(BadImage, match="1200 x 800 by its header"):
        read_image(uri, 900_000, target_side=100)


def test_a_missing_bucket_is_no_bad_image(s3_environment) -> None:
    with pytest.raises(StorageError, match="the bucket does not exist"):
        read_image("s3://no-such-bucket/a.jpg")


def test_the_size_behind_a_long_header_is_found(location: Location) -> None:
    uri = put(location, encoded(Image.new("RGB", (30, 40)), "JPEG", icc_profile=bytes(500_000)))
    assert image_size(uri) == (40, 30)


def test_masks_are_translated_through_the_class_values(location: Location) -> None:
    values = np.array([[0, 8, 12], [17, 3, 255]], dtype=np.uint8)
    palette = Image.fromarray(values).convert("P")
    palette.putpalette(list(range(256)) * 3)
    for image in (Image.fromarray(values), palette, Image.fromarray(values.astype(np.uint16))):
        mask = read_mask(put(location, encoded(image)), [12, 8])
        np.testing.assert_array_equal(mask, [[0, 2, 1], [255, 255, 255]])
        assert mask.dtype == np.uint8


def test_a_mask_of_colours_is_a_bad_image(tmp_path) -> None:
    uri = put(Location.parse(str(tmp_path)), encoded(Image.fromarray(drawn_pixels())))
    with pytest.raises(BadImage, match="mask has RGB pixels"):
        read_mask(uri, [1])


def test_saliency_lies_between_zero_and_one(location: Location) -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    found = read_saliency(put(location, encoded(Image.fromarray(ramp))))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, ramp / 255, rtol=1e-6)
    found = read_saliency(put(location, encoded(ramp_16())))
    np.testing.assert_allclose(found.ravel(), (np.arange(240) * 256 + 255) / 65535, rtol=1e-6)


def test_reading_many_keeps_order_and_isolates_the_bad(location: Location) -> None:
    uris = []
    for index in range(12):
        place = location / f"{index}.png"
        place.write_bytes(b"" if index % 5 == 2 else encoded(Image.new("L", (index + 1, 1), index)))
        uris.append(place.uri)
    results = read_many(uris, read_image, concurrency=4)
    assert [index for index, result in enumerate(results) if isinstance(result, BadImage)] == [2, 7]
    assert all(isinstance(r, BadImage) or (r.shape == (1, i + 1, 3) and r.max() == i) for i, r in enumerate(results))
    assert read_many([], read_image) == []


def test_reading_many_stops_when_the_store_fails() -> None:
    calls: list[str] = []

    def read(uri: str) -> str:
        calls.append(uri)
        raise StorageError("access denied.")

    with pytest.raises(StorageError):
        read_many([str(i) for i in range(100)], read, concurrency=2)
    assert len(calls) < 100


def test_no_input_makes_a_decoder_raise_anything_but_bad_image(tmp_path) -> None:
    generator, place = np.random.default_rng(0), Location.parse(str(tmp_path)) / "image"
    kinds: list[Callable[[], bytes]] = [
        lambda kind=kind: encoded(Image.fromarray(drawn_pixels()), kind)
        for kind in ("PNG", "JPEG", "TIFF", "GIF", "BMP")
    ]
    outcomes = set()
    for trial in range(100):
        data = bytearray(kinds[trial % len(kinds)]())
        for position in generator.integers(0, min(len(data), 400), size=8):
            data[position] = generator.integers(256)
        place.write_bytes(bytes(data))
        try:
            assert read_image(place.uri).shape[2] == 3
            outcomes.add("read")
        except BadImage:
            outcomes.add("bad")
    assert outcomes == {"read", "bad"}


def test_an_image_is_read_from_a_path_and_a_bad_one_is_named_in_a_traceback(tmp_path):
    Image.new("RGB", (4, 3), (9, 8, 7)).save(tmp_path / "good.png")
    assert read_image(tmp_path / "good.png").shape == (3, 4, 3)
    with pytest.raises(BadImage) as raised:
        read_image(tmp_path / "gone.png")
    assert raised.value.reason == str(raised.value) == "missing: no such file"
    assert raised.value.__notes__ == [f"The image is {tmp_path / 'gone.png'}."]
