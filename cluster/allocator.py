"""Keeps the memory that a process has freed, for its next arrays.

The C library gives the memory of a large array back to the system when the array is freed. The system then has to clear
every page of the next array. For an image that is read and resized, this takes as long as decoding it.
"""

import ctypes
import sys
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)

KEPT_BYTES = 128 << 20
"""How much freed memory a process keeps at the end of each of its heaps."""

_LARGEST_BLOCK = 32 << 20  # the most that the C library allows; larger arrays are given back as before


@cache
def keep_freed_memory() -> None:
    """Makes this process keep `KEPT_BYTES`. Without effect if the C library is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK)
        mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
