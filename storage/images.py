"""Reading images, masks and saliency maps; what is wrong with one file becomes one sentence (`BadImage`).

Arrays are (row, col[, channel]). Trouble of the store itself (403, lost connections) stays a `StorageError`.
"""

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from storage.errors import BadImage
from storage.label_values import translation_table
from storage.location import Location

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS = 64_000_000  # 8000 x 8000: 192 MB decoded

_HEADER_BYTES = 1 << 18  # holds the header of nearly every file, thumbnails and profiles included
_EXIF_ORIENTATION = 0x0112
_Result = TypeVar("_Result")


def read_image(uri: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 RGB, upright by its EXIF orientation.

    Grey, palette, CMYK and 16-bit pixels are converted (16 bits by their high byte); transparency is laid on
    white; of several frames the first is taken.

    Args:
        max_pixels: larger images are refused by their header, before decoding; at most Pillow's own limit
            (89,478,485 pixels) has effect.

    Raises:
        BadImage: this file cannot be used. StorageError: the store failed.
    """
    return _decode(_read(uri), max_pixels, lambda image: np.array(_to_rgb(ImageOps.exif_transpose(image))))


def image_size(uri: str) -> tuple[int, int]:
    """(height, width) that `read_image` would give, from the header alone.

    Raises:
        BadImage: this file cannot be used. StorageError: the store failed.
    """
    head = _read(uri, _HEADER_BYTES)
    try:
        return _size(head)
    except BadImage:
        if len(head) < _HEADER_BYTES:
            raise
        return _size(_read(uri))


def read_mask(uri: str, class_values: Sequence[int], max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read a palette or grey mask as an (H, W) label map: 0 background, class + 1, unlisted values ignored.

    Args:
        class_values: the value of class 0, 1, ... in the file.

    Returns:
        uint8 with 255 = ignore; for more than 254 classes uint16 with 65535.

    Raises:
        BadImage: this file cannot be used. StorageError: the store failed.
    """
    return translation_table(class_values)[_decode(_read(uri), max_pixels, _mask_values)]


def read_saliency(uri: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read a grey saliency map as (H, W) float32 in 0..1; colour is turned to grey.

    Raises:
        BadImage: this file cannot be used. StorageError: the store failed.
    """

    def decode(image: Image.Image) -> np.ndarray:
        if image.mode.startswith("I;16"):
            return np.asarray(image, dtype=np.float32) / 65535
        return np.asarray(_to_8_bits(image).convert("L"), dtype=np.float32) / 255

    return _decode(_read(uri), max_pixels, decode)


def read_many(uris: Sequence[str], read: Callable[[str], _Result], concurrency: int = 16) -> list[_Result | BadImage]:
    """Read several files at once, in threads; a bad one gives its `BadImage` in its place.

    Args:
        read: e.g. `read_image`, or a function that reads and resizes.

    Raises:
        StorageError: the store failed; what has not begun is not read any more.
    """

    def attempt(uri: str) -> _Result | BadImage:
        try:
            return read(uri)
        except BadImage as bad:
            return bad

    pool = ThreadPoolExecutor(max(1, min(concurrency, len(uris))))
    try:
        return list(pool.map(attempt, uris))
    finally:
        pool.shutdown(cancel_futures=True)


def _read(uri: str, num_bytes: int = -1) -> bytes:
    """The file's first bytes (all by default), never empty."""
    try:
        location = Location.parse(uri)
    except ValueError as error:
        raise BadImage("its address is neither a path nor s3://bucket/key") from error
    try:
        if num_bytes < 0:
            data = location.read_bytes()
        else:
            with location.open_input() as file:
                data = file.read(num_bytes)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadImage("missing: no such file") from error
    except IsADirectoryError as error:
        raise BadImage("a folder, not a file") from error
    if not data:
        raise BadImage("empty file")
    return data


def _decode(data: bytes, max_pixels: int, convert: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """Open, check the size by the header, then decode."""
    with _open(data) as image:
        if image.width * image.height > max_pixels:
            raise BadImage(f"too large: {image.width} x {image.height} by its header, at most {max_pixels:,} pixels")
        try:
            return convert(image)
        except BadImage:
            raise
        except Exception as error:  # the one place that isolates a file: decoders raise anything
            raise BadImage(f"damaged or truncated {image.format} file") from error


def _size(data: bytes) -> tuple[int, int]:
    with _open(data) as image:
        is_sideways = _orientation(image) in (5, 6, 7, 8)
        return (image.width, image.height) if is_sideways else (image.height, image.width)


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation, as far as the header has it: Pillow decodes a PNG to look behind its pixels."""
    if image.format == "PNG" and "exif" not in image.info:
        return None
    try:
        return image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # noqa: BLE001 (a broken block of metadata does not make a broken image)
        return None


def _open(data: bytes) -> Image.Image:
    """Read the header only."""
    try:
        with warnings.catch_warnings():
            return Image.open(BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise BadImage(f"not an image ({', '.join(FORMATS)} are read)") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(f"too large: {error}") from error
    except Exception as error:  # the same isolation, for what a header does to a decoder
        raise BadImage("its header is damaged") from error


def _to_8_bits(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "I;16", "I;16L", "I;16B"):
        values = np.clip(np.asarray(image, dtype=np.int64), 0, 65535)
        return Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "F":
        raise BadImage("floating-point pixels; expected 8 or 16 bits per channel")
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    image = _to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _mask_values(image: Image.Image) -> np.ndarray:
    """The stored numbers, not their palette's colours."""
    if image.mode not in ("P", "L") and not image.mode.startswith("I;16"):
        raise BadImage(f"mask has {image.mode} pixels; expected a palette or grey PNG whose values are classes")
    return np.array(image, dtype=np.uint16)
