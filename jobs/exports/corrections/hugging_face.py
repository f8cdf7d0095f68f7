"""A data set of Hugging Face's `datasets` with the columns that the export `hugging-face` has.

It is a folder of Parquet files with the columns `file_name`, `mask` and `labels`, local or downloaded from the Hub. The
values of a mask are 0 for background, then the classes in the order of the column `labels`, and 255 for unknown.
"""

import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from jobs.exports.corrections.objects import CorrectedMask, Objects
from storage.drawings import encode_mask
from storage.tree import files_below

COLUMNS = ["file_name", "mask"]


def read(objects: Objects) -> Iterator[CorrectedMask]:
    """The masks of all rows.

    Raises:
        ValueError: a file does not have these columns, or a mask has a value that is not a class.
    """
    for path in files_below(objects.place):
        if path.endswith(".parquet"):
            yield from _read_file(Objects(objects.place / path, objects.classes))


def _read_file(objects: Objects) -> Iterator[CorrectedMask]:
    try:
        file = pq.ParquetFile(pa.BufferReader(objects.place.read_bytes()))
        names = _class_names(file.schema_arrow)
        values = np.array([0, *(objects.value(name) for name in names)])
        batches = file.iter_batches(batch_size=16, columns=COLUMNS)
        rows = (row for batch in batches for row in zip(*(batch[name].to_pylist() for name in COLUMNS), strict=True))
        for name, mask in rows:
            yield _mask(objects, str(name), mask["bytes"], values)
    except (pa.ArrowException, KeyError, TypeError, OSError) as error:
        raise ValueError(
            f"{objects.place}: not a table with the columns {', '.join(COLUMNS)} and labels ({type(error).__name__}: "
            f"{error})."
        ) from error


def _class_names(schema: pa.Schema) -> list[str]:
    """The class names that `datasets` stores for the column `labels`."""
    features: Any = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    labels = features["labels"]
    return list((labels[0] if isinstance(labels, list) else labels["feature"])["names"])


def _mask(objects: Objects, name: str, data: bytes, values: np.ndarray) -> CorrectedMask:
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        labels = np.array(image)
    ignored = 65535 if labels.dtype == np.uint16 else 255
    table = np.full(ignored + 1, -1)
    table[: len(values)] = values
    table[ignored] = 255 if max(objects.classes.values) < 255 else 65535
    if labels.ndim != 2 or (table[labels] < 0).any():
        raise ValueError(f"{objects.place}: the mask of {name!r} has values that are no class.")
    found = table[labels]
    height, width = labels.shape
    data = encode_mask(found.astype(np.uint8 if found.max() <= 255 else np.uint16))
    return CorrectedMask(name, (height, width), int((labels > 0).any()), data)
