"""Shards that are encoded here have the bytes that zarr writes, and decode to the same values."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore

from storage.shards import CHUNK_CODECS, decode_chunk, decode_shard, encode_chunk, encode_shard

UNIT_SIZE = 4
DTYPES = ["uint8", "uint16", "int16", "float16", "float32"]


def written_by_zarr(folder: Path, values: np.ndarray, *, is_sharded: bool, fill: float) -> bytes:
    """The only shard of an array of at most one unit."""
    whole = (UNIT_SIZE, *values.shape[1:])
    array = zarr.create_array(
        LocalStore(folder),
        name="array",
        shape=values.shape,
        dtype=values.dtype,
        chunks=(1, *values.shape[1:]) if is_sharded else whole,
        shards=whole if is_sharded else None,
        compressors=CHUNK_CODECS,
        fill_value=fill,
        config={"write_empty_chunks": True},
    )
    array[:] = values
    return (folder / "array" / "c" / "/".join("0" * values.ndim)).read_bytes()


def drawn(num_images: int, dtype: str) -> np.ndarray:
    """Random values, and one image of nothing but 7, the fill value."""
    values = np.random.default_rng(0).integers(0, 100, (num_images, 3, 5)).astype(dtype)
    values[-1] = 7
    return values


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_images", [1, 3, UNIT_SIZE])
def test_a_shard_has_the_bytes_that_zarr_writes(dtype: str, num_images: int, tmp_path: Path) -> None:
    values = drawn(num_images, dtype)
    data = encode_shard(values, UNIT_SIZE)
    assert data == written_by_zarr(tmp_path, values, is_sharded=True, fill=7)
    found = decode_shard(data, UNIT_SIZE, values.shape, values.dtype)
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_images", [1, 3, UNIT_SIZE])
def test_a_chunk_of_small_items_has_the_bytes_that_zarr_writes(dtype: str, num_images: int, tmp_path: Path) -> None:
    values = drawn(num_images, dtype)
    data = encode_chunk(values, UNIT_SIZE, 7)
    assert data == written_by_zarr(tmp_path, values, is_sharded=False, fill=7)
    np.testing.assert_array_equal(decode_chunk(data, UNIT_SIZE, values.shape, values.dtype), values)


def test_the_first_images_of_a_fuller_shard_are_decoded() -> None:
    values = drawn(UNIT_SIZE, "float16")
    np.testing.assert_array_equal(
        decode_shard(encode_shard(values, UNIT_SIZE), UNIT_SIZE, (2, 3, 5), values.dtype), values[:2]
    )


def test_values_that_are_not_contiguous_are_encoded_in_their_order() -> None:
    values = drawn(UNIT_SIZE, "float32")[:, :, ::-1]
    assert encode_shard(values, UNIT_SIZE) == encode_shard(values.copy(), UNIT_SIZE)


def test_an_image_that_was_not_written_is_not_made_up() -> None:
    data = encode_shard(drawn(2, "uint8"), UNIT_SIZE)
    with pytest.raises((ValueError, RuntimeError)):
        decode_shard(data, UNIT_SIZE, (3, 3, 5), np.dtype("uint8"))


@pytest.mark.parametrize("data", [b"", b"short", bytes(200)])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises((ValueError, RuntimeError)):
        decode_shard(data, UNIT_SIZE, (UNIT_SIZE, 3, 5), np.dtype("uint8"))
    with pytest.raises((ValueError, RuntimeError)):
        decode_chunk(data, UNIT_SIZE, (UNIT_SIZE, 3, 5), np.dtype("uint8"))
