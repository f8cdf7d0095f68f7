"""Checksums of stored objects: CRC-32C and size, taken of the bytes in memory when they are written.

A checksum finds damage (flipped bits, lost or exchanged files), not intent: whoever can write the data can write its
checksum too. CRC-32C finds every single flipped bit, and other damage but once in four billion times.
"""

import google_crc32c


def checksum(data: bytes | bytearray | memoryview) -> str:
    """The checksum of an object's bytes, e.g. ``"1c291ca3:17"``: CRC-32C in hexadecimal, then the size in bytes."""
    return f"{google_crc32c.value(bytes(data)):08x}:{len(data)}"


def mismatch(data: bytes, expected: str) -> str:
    """What is wrong with an object's bytes, in a few words; "" where they are those of the checksum."""
    if checksum(data) == expected:
        return ""
    size = expected.partition(":")[2]
    return "other bytes than were written" if size == str(len(data)) else f"{len(data):,} bytes, {size} were written"
