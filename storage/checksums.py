"""Checksums of stored objects, computed from the bytes in memory when they are written.

A checksum finds damage: flipped bits, and lost, shortened or exchanged files. It does not stop an attacker, who could
also write a new checksum. It is not a CRC, because shards end with a CRC of their own. All data of the same length that
ends with its own CRC has the same CRC, so an exchanged shard would not be found.
"""

import hashlib

_DIGITS = 16  # of SHA-256 (64 bits): among a billion objects, two are equal with a probability of 1 in 37


def checksum(data: bytes) -> str:
    """The checksum of an object's bytes, such as ``"15e2b0d3c33891eb:9"``.

    The first 16 hexadecimal digits of its SHA-256, as ``sha256sum`` prints them, then its size in bytes.
    """
    return f"{hashlib.sha256(data).hexdigest()[:_DIGITS]}:{len(data)}"


def mismatch(data: bytes, expected: str) -> str:
    """What is wrong with an object's bytes, in a few words; "" if they match the checksum."""
    if checksum(data) == expected:
        return ""
    size = expected.partition(":")[2]
    return "its bytes have changed" if size == str(len(data)) else f"{len(data):,} bytes, {size} were written"
