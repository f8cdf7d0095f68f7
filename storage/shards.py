"""Encodes the shards of `UnitArrays` and decodes whole ones, as the specification of Zarr v3 says.

zarr itself gives each chunk to a task and a thread of its own. For chunks of a few kilobytes that takes ten times as
long as compressing them. Whole shards therefore do not go through zarr, but zarr writes the same bytes and reads them.

A chunk is little-endian, Zstandard level 1, then its CRC-32C. A shard is the chunks of its images, then an index of
two uint64 per chunk (its offset and its number of bytes; all bits set if the image does not exist), then the index's
CRC-32C (zarr-specs, "sharding-indexed" v1.0 and "crc32c" v1.0).
"""

import google_crc32c
import numpy as np
from numcodecs.zstd import Zstd
from zarr.codecs import Crc32cCodec, ZstdCodec

_LEVEL = 1
_ABSENT = np.iinfo(np.uint64).max
_CRC_BYTES = 4

CHUNK_CODECS = [ZstdCodec(level=_LEVEL), Crc32cCodec()]
"""The codecs of a chunk for zarr; the CRC is 4 bytes, with which readers of one image compare it."""


def encode_shard(values: np.ndarray, unit_size: int) -> bytes:
    """A unit of images as a shard with one chunk per image.

    Args:
        values: (n, ...), n at most `unit_size`.
        unit_size: the number of places in the index; images from n on do not exist.
    """
    chunks = [_encode(value) for value in values]
    index = np.full((unit_size, 2), _ABSENT, "<u8")
    index[: len(chunks), 1] = sizes = [len(chunk) for chunk in chunks]
    index[: len(chunks), 0] = np.cumsum([0, *sizes[:-1]])
    return b"".join([*chunks, _with_crc(index.tobytes())])


def decode_shard(data: bytes, unit_size: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The first images of a shard, in a new array of this shape (n, ...). The CRCs are not compared.

    Raises:
        ValueError, RuntimeError: it is not such a shard.
    """
    index = np.frombuffer(data[-16 * unit_size - _CRC_BYTES : -_CRC_BYTES], "<u8").reshape(unit_size, 2)
    found = np.empty(shape, dtype)
    for value, (start, size) in zip(found, index.tolist(), strict=False):
        value[...] = _decode(data[start : start + size], dtype).reshape(shape[1:])
    return found


def encode_chunk(values: np.ndarray, unit_size: int, fill: float) -> bytes:
    """A unit of small items as one chunk without an index: (n, ...), then fill values up to `unit_size`."""
    whole = np.full((unit_size, *values.shape[1:]), fill, values.dtype)
    whole[: len(values)] = values
    return _encode(whole)


def decode_chunk(data: bytes, unit_size: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The first items of such a chunk, in a new array of this shape (n, ...). The CRC is not compared.

    Raises:
        ValueError, RuntimeError: it is not such a chunk.
    """
    return _decode(data, dtype).reshape(unit_size, *shape[1:])[: shape[0]].copy()


def _encode(values: np.ndarray) -> bytes:
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return _with_crc(Zstd(level=_LEVEL).encode(little))


def _decode(data: bytes, dtype: np.dtype) -> np.ndarray:
    return np.frombuffer(Zstd().decode(data[:-_CRC_BYTES]), dtype.newbyteorder("<"))


def _with_crc(data: bytes) -> bytes:
    return data + google_crc32c.value(data).to_bytes(_CRC_BYTES, "little")
