"""A zarr store that never reads a lost shard as fill values."""

from collections.abc import Iterable

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore


class ShardMissing(Exception):  # noqa: N818  the caller knows whether a receipt promises the shard
    """A shard does not exist. All shards of a finished unit are stored, also those with only fill values."""


class StrictStore(WrapperStore[Store]):
    """Wraps another store."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """An object or a part of it.

        Raises:
            ShardMissing: a shard does not exist.
        """
        found = await self._store.get(key, prototype, byte_range)
        if found is None and "/c/" in key:
            raise ShardMissing(key)
        return found

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Several objects or parts, as in `get`."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]
