"""Safely reads ``cls_labels.npy``, a pickled dictionary ``image id -> multi-hot`` that many projects of the field use.

A pickle can call any function. This reader accepts only what numpy itself writes for arrays and scalars.
"""

import io
import pickle
import re
from typing import Any

import numpy as np
from numpy.lib import format as npy

from storage.location import Location

# Errors that the unpickler can raise for a malicious or damaged file, beside pickle's own error.
_UNPICKLING_ERRORS = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError,
    OverflowError, MemoryError, RecursionError,
)  # fmt: skip


def read_label_file(location: Location) -> dict[str, np.ndarray]:
    """Read a label dictionary.

    Keys may be text (``"2007_000032"``) or integers (IRN: ``2007000032``).

    Returns:
        ``{image_id: (C,) bool}``, all with the same length C; true for present classes.

    Raises:
        ValueError: it is not such a file, or it contains more than arrays, numbers and text.
        FileNotFoundError: it does not exist.
    """
    found = _load(location)
    labels = {_image_id(key, location): _multi_hot(value, location) for key, value in found.items()}
    if len(labels) != len(found) or len({len(row) for row in labels.values()}) != 1:
        raise ValueError(f"{location}: image ids repeat, or their label rows differ in length.")
    return labels


def _load(location: Location) -> dict[Any, Any]:
    stream = io.BytesIO(location.read_bytes())
    try:
        version = npy.read_magic(stream)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read_header(stream)
        if shape != () or dtype != np.dtype(object):
            raise ValueError(f"an array of {dtype} {shape}, not a dictionary")
        array = _ArrayUnpickler(stream, encoding="latin1").load()
        (content,) = array.value
    except _UNPICKLING_ERRORS as error:
        raise ValueError(f"{location}: not a dictionary of image labels ({error}).") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{location}: expected a dictionary of image id -> multi-hot labels.")
    return content


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds only arrays and numbers, with the classes below.

    It does not use numpy's own constructors, because with a forged dtype they would read raw bytes as pointers.
    """

    def find_class(self, module: str, name: str) -> Any:
        # A new function each time, because a pickle can set attributes on it.
        match module.replace("numpy._core", "numpy.core"), name:
            case "numpy.core.multiarray", "_reconstruct":
                return lambda *_arguments: _Array()
            case "numpy.core.multiarray", "scalar":
                return lambda dtype, data: _from_bytes(data, dtype, (1,)).item()
            case "numpy", "dtype":
                return lambda text, *_flags: _Dtype(text)
            case "numpy", "ndarray":
                return name  # only _reconstruct gets it
            case "_codecs", "encode":
                return lambda text, encoding: _encode(text, encoding)
        raise pickle.UnpicklingError(f"it names {module}.{name}; only arrays, numbers and text are read")


class _Dtype:
    """The type of numbers, or ``O`` for an array of Python objects."""

    def __init__(self, text: str) -> None:
        if not re.fullmatch(r"b1|[iuf][1248]|O8?", text):
            raise pickle.UnpicklingError(f"arrays of type {text!r:.20} are not read")
        self.text, self.order = text, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


class _Array:
    """An array that is being read; its state contains the value."""

    value: np.ndarray | list[Any]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, dtype, is_fortran, data = state
        if is_fortran and len(shape) > 1:
            raise pickle.UnpicklingError("arrays in Fortran order are not read")
        self.value = data if isinstance(data, list) else _from_bytes(data, dtype, shape)


def _from_bytes(data: bytes | str, dtype: _Dtype, shape: tuple[int, ...]) -> np.ndarray:
    if dtype.text.startswith("O"):
        raise pickle.UnpicklingError("an array of objects has bytes for its contents")
    raw = data.encode("latin1") if isinstance(data, str) else data  # text in files written by Python 2
    return np.frombuffer(raw, dtype=dtype.order + dtype.text).reshape(shape)


def _encode(text: str, encoding: str) -> bytes:
    """Bytes from text, because pickle protocol 2 writes bytes as text."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes are encoded as {encoding}")
    return text.encode("latin1")


def _image_id(key: Any, location: Location) -> str:
    if isinstance(key, str):
        return key
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool) and 10**9 <= key < 10**10:
        digits = str(int(key))
        return f"{digits[:4]}_{digits[4:]}"
    raise ValueError(f"{location}: image id {key!r:.80}: expected text, or an integer like 2007000032.")


def _multi_hot(stored: Any, location: Location) -> np.ndarray:
    row = getattr(stored, "value", None) if isinstance(stored, _Array) else None
    if not isinstance(row, np.ndarray) or row.ndim != 1 or not np.isin(row, (0, 1)).all():
        raise ValueError(f"{location}: expected one row of 0 and 1 per image.")
    return row.astype(bool)
