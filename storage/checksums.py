"""Checksums of stored objects, taken of the bytes in memory when they are written.

A checksum finds damage (flipped bits, lost, shortened or exchanged files), not intent: whoever can write the data can
write its checksum too. It is no CRC, because shards hold CRCs: the CRC of data that ends with its own CRC is the same
for all data of that length, so an exchanged shard would pass.
"""

import hashlib

_DIGITS = 16  # of SHA-256, 64 bits: two objects out of a billion have the same by a chance of 1 in 37


def checksum(data: bytes) -> str:
    """The checksum of an object's bytes, e.g. ``"15e2b0d3c33891eb:9"``.

    The first 16 hexadecimal digits of its SHA-256, as ``sha256sum`` prints them, then its size in bytes.
    """
    return f"{hashlib.sha256(data).hexdigest()[:_DIGITS]}:{len(data)}"


def mismatch(data: bytes, expected: str) -> str:
    """What is wrong with an object's bytes, in a few words; "" where they are those of the checksum."""
    if checksum(data) == expected:
        return ""
    size = expected.partition(":")[2]
    return "other bytes than were written" if size == str(len(data)) else f"{len(data):,} bytes, {size} were written"
