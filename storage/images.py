"""Reads images, masks and saliency maps. If something is wrong with a file, the error is a `BadImage` with a reason.

Arrays are (row, col[, channel]). `read_image` and `image_size` turn an image upright by its EXIF orientation. Masks and
saliency maps are not turned, so they must fit the upright image. If the store itself fails (403, lost connections), the
error is a `StorageError`.

Three limits bound the cost of a file: its bytes, its pixels, and the scans of a JPEG. A picture at all three limits
takes about 6 s of a core and 1 GB.
"""

import contextlib
import os
import resource
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import TypeVar

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from storage.errors import BadImage, ColouredMask
from storage.foreign_files import name_foreign_file
from storage.image_bytes import MAX_BYTES, file_header, num_jpeg_scans, whole_file
from storage.label_values import translation_table

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS = 64_000_000  # 8000 x 8000: 192 MB decoded
MAX_SCANS = 64  # encoders write about 10
BITS_USED = (8, 10, 12, 14, 16)  # of the 16 in a file

_CHEAP = 5e-4  # seconds per file, as `_own_cost` counts; a header in the page cache costs a tenth
_WAIT = 2e-3
_THREAD: int = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)  # only Linux counts for threads
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_Result = TypeVar("_Result")


def read_image(
    uri: str | os.PathLike[str],
    max_pixels: int = MAX_PIXELS,
    *,
    max_bytes: int = MAX_BYTES,
    max_scans: int = MAX_SCANS,
    target_side: int | None = None,
) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 RGB, turned upright by its EXIF orientation.

    Grey, palette, CMYK and 16-bit pixels are converted. Transparent pixels are drawn on white. If there are several
    frames, the first is read. Cameras and microscopes write 10, 12 or 14 bits into files of 16 bits, so grey pixels of
    16 bits keep the 8 highest of the bits that the brightest pixel uses.

    Args:
        max_pixels: larger images are refused before decoding, by their header. Pillow's own limit (89,478,485 pixels)
            also applies.
        max_bytes: larger files are refused before they are read.
        max_scans: JPEGs with more scans are refused before decoding.
        target_side: the side of the largest square to which the image will be resized. A JPEG is then decoded at 1/2,
            1/4 or 1/8 of its size, if both sides remain at least twice this long. This is five times as fast for a
            photograph of 12 megapixels. None: full size.

    Raises:
        BadImage: this file cannot be used. StorageError: the store failed.
    """
    try:
        data = whole_file(os.fspath(uri), max_bytes)
        return _decode(data, max_pixels, max_scans, lambda image: _upright_rgb(image, data, target_side))
    except BadImage as error:
        error.add_note(f"The image is {uri}.")  # its reason has no path, so that images can be counted by reason
        raise


def image_size(uri: str, *, max_bytes: int = MAX_BYTES) -> tuple[int, int]:
    """The (height, width) of `read_image`'s result, read from the header only.

    Args:
        max_bytes: if the header is not at the beginning of the file, up to this many bytes are read.

    Raises:
        BadImage: this file cannot be used. StorageError: the store failed.
    """
    head, is_whole = file_header(uri)
    try:
        return _size(head)
    except BadImage:
        if is_whole:
            raise
        return _size(whole_file(uri, max_bytes))


def read_mask(
    uri: str,
    class_values: Sequence[int],
    max_pixels: int = MAX_PIXELS,
    *,
    max_bytes: int = MAX_BYTES,
    max_scans: int = MAX_SCANS,
) -> np.ndarray:
    """Read a palette or grey mask as an (H, W) label map: 0 background, class + 1; unlisted values become "unknown".

    Grey values stored as colours and 1-bit masks (0 and 1) are read too. JPEGs and real colours are refused.

    Args:
        class_values: the value of class 0, 1, ... in the file.
        max_pixels, max_bytes, max_scans: as for `read_image`.

    Returns:
        uint8 with 255 = unknown; for more than 254 classes uint16 with 65535 = unknown.

    Raises:
        BadImage: this file cannot be used. StorageError: the store failed.
    """
    return decode_mask(whole_file(uri, max_bytes), class_values, max_pixels, max_scans=max_scans)


def decode_mask(
    data: bytes, class_values: Sequence[int], max_pixels: int = MAX_PIXELS, *, max_scans: int = MAX_SCANS
) -> np.ndarray:
    """A mask's file as an (H, W) label map, as `read_mask` gives it.

    Raises:
        BadImage: this file cannot be used.
    """
    return translation_table(class_values)[_decode(data, max_pixels, max_scans, _mask_values)]


def read_saliency(
    uri: str, max_pixels: int = MAX_PIXELS, *, max_bytes: int = MAX_BYTES, max_scans: int = MAX_SCANS
) -> np.ndarray:
    """Read a grey saliency map as (H, W) float32 in 0..1; colours are converted to grey.

    Args:
        max_pixels, max_bytes, max_scans: as for `read_image`.

    Raises:
        BadImage: this file cannot be used. StorageError: the store failed.
    """

    def decode(image: Image.Image) -> np.ndarray:
        if image.mode.startswith("I"):
            return np.clip(np.asarray(image, dtype=np.float32) / 65535, 0, 1)
        if image.mode == "F":
            values = np.asarray(image, dtype=np.float32)
            if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
                raise BadImage("floating-point saliency outside 0 to 1; save it as 8-bit grey (255: most salient)")
            return values
        return np.asarray(image.convert("L"), dtype=np.float32) / 255

    return _decode(whole_file(uri, max_bytes), max_pixels, max_scans, decode)


def read_many(uris: Sequence[str], read: Callable[[str], _Result], concurrency: int = 16) -> list[_Result | BadImage]:
    """Read several files at the same time, in threads; the result for a bad file is its `BadImage`.

    Args:
        read: for example `read_image`, or a function that reads and resizes.

    Raises:
        StorageError: the store failed; the files that have not begun are not read.
    """

    def attempt(uri: str) -> _Result | BadImage:
        try:
            return read(uri)
        except BadImage as bad:
            return bad

    # Some files at a time: for headers of local files, handing over one would take as long as reading it
    size = max(1, len(uris) // (8 * concurrency))
    parts = [uris[start : start + size] for start in range(0, len(uris), size)]
    results: list[_Result | BadImage] = []
    while parts and not parts[0][0].startswith("s3://"):  # threads would only cost time where no file has to be awaited
        before = _own_cost()
        results += map(attempt, parts.pop(0))
        if _own_cost() - before > size * _CHEAP:
            break
    pool = ThreadPoolExecutor(max(1, min(concurrency, len(parts))))
    try:
        return results + [found for part in pool.map(lambda part: [*map(attempt, part)], parts) for found in part]
    finally:
        pool.shutdown(cancel_futures=True)


def _own_cost() -> float:
    """The processor time of this thread in seconds; each time that it waited, as for a disk, counts as 2 ms.

    The time on the clock would not do: on a busy machine everything seems to wait.
    """
    waits = resource.getrusage(_THREAD).ru_nvcsw
    return time.thread_time() + _WAIT * waits


def _decode(data: bytes, max_pixels: int, max_scans: int, convert: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """Open the file, check its size and cost by the header, then decode it."""
    with _open(data) as image:
        size = f"{image.width} x {image.height}"
        if image.width * image.height > max_pixels:
            raise BadImage(f"too large: {size} by its header, at most {max_pixels:,} pixels (images.max_pixels)")
        if image.format in ("JPEG", "MPO") and (scans := num_jpeg_scans(data, max_scans)) > max_scans:
            raise BadImage(f"too slow: a JPEG of {scans:,} scans, at most {max_scans:,} are decoded (images.max_scans)")
        try:
            return convert(image)
        except BadImage:
            raise
        except MemoryError as error:
            raise BadImage(f"too large for the free memory: {size} pixels") from error
        except Exception as error:  # this isolates one file, because decoders can raise any error
            raise BadImage(f"damaged or truncated {image.format} file") from error


def _size(data: bytes) -> tuple[int, int]:
    with _open(data) as image:
        is_sideways = _orientation(image) in (5, 6, 7, 8)
        return (image.width, image.height) if is_sideways else (image.height, image.width)


def _upright_rgb(image: Image.Image, data: bytes, target_side: int | None) -> np.ndarray:
    turn = _UPRIGHT.get(_orientation(image))
    if target_side is not None:
        image.draft(image.mode, (2 * target_side, 2 * target_side))  # scaled decoding, which only JPEGs have
    if image.format == "JPEG" and image.mode in ("RGB", "L") and turn is None:
        with contextlib.suppress(ValueError):  # damaged: Pillow decides whether it can be used
            return _plain_jpeg(data, image.height, image.width)
    rgb = _to_rgb(image)
    return np.array(rgb if turn is None else rgb.transpose(turn))


def _plain_jpeg(data: bytes, height: int, width: int) -> np.ndarray:
    """The same pixels as Pillow decodes, in less time: two thirds for small files, four fifths for large ones.

    Args:
        height, width: the file's size, or the size at 1/2, 1/4 or 1/8 at which it is decoded.
    """
    pixels = simplejpeg.decode_jpeg(data, "RGB", False, False, min_height=height, min_width=width, min_factor=1)
    if pixels.shape[:2] != (height, width):
        raise ValueError("decoded at another size")
    return pixels


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation that must still be applied, read before decoding; 1 for upright.

    Pillow itself turns TIFFs, also their size. In a PNG, EXIF data behind the pixels is ignored, because Pillow would
    decode the whole file to find it.
    """
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 (a broken block of metadata does not make a broken image)
        return 1


def _open(data: bytes) -> Image.Image:
    """Open the file and read only its header."""
    try:
        with warnings.catch_warnings():
            return Image.open(BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise BadImage(name_foreign_file(data) or f"not an image ({', '.join(FORMATS)} are read)") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(f"too large: {error}") from error
    except Exception as error:  # the same isolation, for errors in the header
        raise BadImage("its header is damaged") from error


def _to_8_bits(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "I;16", "I;16L", "I;16B"):
        values = np.clip(np.asarray(image, dtype=np.int64), 0, 65535)
        bits = next(bits for bits in BITS_USED if values.max() < 1 << bits)
        return Image.fromarray((values >> (bits - 8)).astype(np.uint8))
    if image.mode == "F":
        raise BadImage("floating-point pixels; expected 8 or 16 bits per channel")
    return image


def _require_high_bytes(image: Image.Image) -> None:
    """Refuses colours of 10 or 12 bits in files of 16: Pillow keeps only the high byte, so they would be black."""
    if 0 < np.asarray(image.convert("RGB")).max() < 16:
        raise BadImage(
            "16 bits per channel, but the highest 4 are never used, so it would be read as black; save it with 8 "
            "bits per channel"
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    has_cut_colours = image.mode[0] != "I" and any(";16" in str(tile) for tile in getattr(image, "tile", ()))
    image = _to_8_bits(image)
    if has_cut_colours:
        _require_high_bytes(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _mask_values(image: Image.Image, *, is_jpeg_fine: bool = False) -> np.ndarray:
    """The stored numbers, not the colours of the palette; for grey stored as colours, the grey value.

    Args:
        is_jpeg_fine: accept JPEGs. They are refused otherwise, because JPEG changes values.
    """
    if image.format in ("JPEG", "MPO") and not is_jpeg_fine:
        raise BadImage("mask is a JPEG, which changes its values; save masks as PNG, or prepare with --mask-values")
    if image.mode in ("P", "L", "1") or image.mode.startswith("I;16"):
        return np.array(image, dtype=np.uint16)
    bands = image.getbands()
    pixels = np.asarray(image)
    if image.mode == "I" and pixels.min() >= 0 and pixels.max() <= 65535:
        return pixels.astype(np.uint16)
    grey = 1 if bands[0] in ("L", "P") else 3
    if bands[0] in ("L", "P", "R") and (pixels[..., :grey] == pixels[..., :1]).all():
        return pixels[..., 0].astype(np.uint16)
    raise ColouredMask(
        f"mask has {image.mode} pixels; expected a palette or grey PNG with class values. For colours, prepare with "
        "--mask-values '#800000=cat,...'"
    )
