"""A zarr store that computes the checksum of every written object, and never reads a lost shard as fill values."""

from collections.abc import Iterable
from typing import Any

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from storage.checksums import checksum


class ShardMissing(Exception):  # noqa: N818  the caller knows whether a receipt promises the shard
    """A shard does not exist. All shards of a finished unit are stored, also those with only fill values."""


class CheckedStore(WrapperStore[Store]):
    """Wraps another store.

    Attributes:
        written: checksums of the objects written so far, by key.
        in_memory: whole objects, by key, that are read from here instead of the store.
        replaced: shards that are being written whole. For a short last unit, zarr would first read the old shard.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.written: dict[str, str] = {}
        self.in_memory: dict[str, bytes] = {}
        self.replaced: set[str] = set()

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """An object or a part of it.

        Raises:
            ShardMissing: a shard does not exist.
        """
        if key in self.in_memory:
            return prototype.buffer.from_bytes(_part(self.in_memory[key], byte_range))
        if key in self.replaced:
            return None
        found = await self._store.get(key, prototype, byte_range)
        if found is None and "/c/" in key:
            raise ShardMissing(key)
        return found

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Several objects or parts, as in `get`."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def set(self, key: str, value: Buffer, *more: Any) -> None:
        """Write an object and record its checksum."""
        self.written[key] = checksum(value.to_bytes())
        await self._store.set(key, value, *more)


def _part(data: bytes, byte_range: ByteRequest | None) -> bytes:
    match byte_range:
        case RangeByteRequest(start, end):
            return data[start:end]
        case OffsetByteRequest(offset):
            return data[offset:]
        case SuffixByteRequest(suffix):
            return data[-suffix:]
    return data
