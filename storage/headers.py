"""Reads the size of a picture from its header, and compares it with a stated size or a mask."""

import hashlib
import math
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import simplejpeg
from PIL import Image

from storage.errors import BadImage
from storage.image_bytes import HEADER_BYTES, file_header, whole_file
from storage.images import _open, _orientation

Fit = Literal["same", "turned", "scaled", "other"]

_FIRST_BYTES = 1 << 12  # of a local file: most headers are shorter, and reading again costs little
_START_OF_IMAGE, _SEVERAL_PICTURES = b"\xff\xd8\xff", b"MPF\0"
_START_OF_BLOCK, _START_OF_SCAN, _METADATA = 0xFF, 0xDA, 0xE1  # the first two bytes of each block: FF, and its kind

_SIDEWAYS = {  # EXIF orientation -> how to turn the stored pixels upright
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Header:
    """The content of a picture's header.

    Attributes:
        height, width: in pixels, after turning by its EXIF orientation, as in `read_image`.
        orientation: the EXIF orientation, 1 to 8; 1: stored upright.
        format: ``"JPEG"``, ``"PNG"``, ...
        start: 8 bytes of a hash of the file's first 4,096 bytes: files with different values are different.
    """

    height: int
    width: int
    orientation: int = 1
    format: str = ""
    start: bytes = field(default=b"", compare=False, repr=False)

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width


def read_header(uri: str) -> Header:
    """The header of a picture, read from its first bytes.

    Raises:
        BadImage: this file cannot be used. StorageError: the store failed.
    """
    for num_bytes in (HEADER_BYTES,) if uri.startswith("s3://") else (_FIRST_BYTES, HEADER_BYTES):
        head, is_whole_file = file_header(uri, num_bytes)
        try:
            return _with_start(_plain_jpeg(head) or _header(head), head)
        except BadImage:
            if is_whole_file:
                raise
    data = whole_file(uri)
    return _with_start(_header(data), data)


def _with_start(header: Header, data: bytes) -> Header:
    return replace(header, start=hashlib.blake2b(data[:_FIRST_BYTES], digest_size=8).digest())


def fit(declared: tuple[int, int], picture: Header) -> Fit:
    """Compares a (height, width) in a source with the picture.

    "turned": it is the size before the picture is turned upright; tools that ignore EXIF write it. "scaled": the same
    aspect ratio at another size, because pictures were made smaller; the picture may also be turned.
    """
    upright, stored = picture.size, picture.size[::-1] if picture.orientation in _SIDEWAYS else None
    if declared == upright:
        return "same"
    if declared == stored:
        return "turned"
    if any(_is_scaled(declared, size) for size in (upright, stored) if size):
        return "scaled"
    return "other"


def is_turned(size: tuple[int, int], picture: Header) -> bool:
    """Whether this (height, width) fits the picture as it is stored, before it is turned upright."""
    is_upright = size == picture.size or _is_scaled(size, picture.size)
    return not is_upright and fit(size, picture) in ("turned", "scaled")


def fit_mask(mask: np.ndarray, picture: Header) -> np.ndarray:
    """An (H, W) mask, turned and scaled to its picture by nearest neighbour; unchanged if it fits.

    Raises:
        BadImage: its aspect ratio differs from the picture's.
    """
    size = (mask.shape[0], mask.shape[1])
    if fit(size, picture) == "other":
        raise BadImage(f"mask of {size[1]} x {size[0]} pixels for a picture of {picture.width} x {picture.height}")
    if is_turned(size, picture):
        mask = np.asarray(Image.fromarray(mask).transpose(_SIDEWAYS[picture.orientation]))
    if mask.shape != picture.size:
        mask = np.asarray(Image.fromarray(mask).resize(picture.size[::-1], Image.Resampling.NEAREST))
    return mask


def _is_scaled(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes have the same aspect ratio, except for rounding."""
    scale = math.sqrt(other[0] * other[1] / (one[0] * one[1]))
    return all(abs(side * scale - wanted) <= max(1.0, scale) for side, wanted in zip(one, other, strict=True))


def _plain_jpeg(data: bytes) -> Header | None:
    """The header of a JPEG without blocks that could turn it; None for other files, which Pillow reads.

    It takes a tenth of Pillow's time, which matters for hundreds of thousands of files.
    """
    if not data.startswith(_START_OF_IMAGE) or not _has_plain_blocks(data):
        return None
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return Header(height, width, 1, "JPEG") if height * width <= (Image.MAX_IMAGE_PIXELS or 0) else None


def _has_plain_blocks(data: bytes) -> bool:
    """Whether a JPEG has no metadata and no second picture before its pixels.

    It goes from block to block. To search all bytes for metadata would take longer than everything else in
    `_plain_jpeg`.
    """
    position, end = len(_START_OF_IMAGE) - 1, len(data) - 4
    while position <= end and data[position] == _START_OF_BLOCK:
        kind = data[position + 1]
        if kind == _START_OF_SCAN:
            return True
        if kind == _METADATA or data.startswith(_SEVERAL_PICTURES, position + 4):
            return False
        position += 2 + (data[position + 2] << 8 | data[position + 3])
    return False


def _header(data: bytes) -> Header:
    with _open(data) as image:
        orientation = _orientation(image)
        size = (image.width, image.height) if orientation in _SIDEWAYS else (image.height, image.width)
        return Header(*size, orientation, image.format or "")
