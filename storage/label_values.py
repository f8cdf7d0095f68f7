"""The values in label maps: 0 background, class number + 1, and one value for "ignore"."""

from collections.abc import Sequence

import numpy as np

# With more classes, the labels 1..C would include 255.
_MOST_CLASSES_IN_A_BYTE = 254


def label_dtype(num_classes: int) -> np.dtype:
    """The type of label maps: uint8 up to 254 classes, else uint16."""
    return np.dtype(np.uint8 if num_classes <= _MOST_CLASSES_IN_A_BYTE else np.uint16)


def ignore_value(num_classes: int) -> int:
    """The label that means "unknown": 255; 65535 for longer class lists, where 255 is a class."""
    return int(np.iinfo(label_dtype(num_classes)).max)


def translation_table(class_values: Sequence[int]) -> np.ndarray:
    """A (65536,) table from the values in source masks to labels.

    Args:
        class_values: the value of class 0, 1, ... in source masks (VOC: cat = 8), each 1..65535, all
            different.

    Returns:
        0 stays 0 (background), a listed value becomes class number + 1, and every other value becomes "ignore".

    Raises:
        ValueError: a value is outside 1..65535 or given twice.
    """
    values = np.asarray(class_values, dtype=np.int64)
    if len(np.unique(values)) != len(values) or (values < 1).any() or (values > 65535).any():
        raise ValueError(f"class values {list(class_values)}: expected different numbers from 1 to 65535.")
    table = np.full(1 << 16, ignore_value(len(values)), dtype=label_dtype(len(values)))
    table[0] = 0
    table[values] = np.arange(1, len(values) + 1)
    return table
