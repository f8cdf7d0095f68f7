"""The identity of a manifest's images: an id that changes when an image or a class gets another place.

Stores address images by row and classes by number. So code that reads a store compares this id of the manifest with the
id that the step recorded when it was started. Columns that do not move images (masks, saliency, splits) do not change
the id.
"""

import hashlib
import json
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.manifest import Manifest


def images_id(manifest: Manifest) -> str:
    """sha256 of the image ids and classes of a manifest in their order; the layout of its file does not matter.

    It reads one column. The result is cached while the manifest is open in this process.
    """
    return _images_id(manifest)


@lru_cache(maxsize=8)
def _images_id(manifest: Manifest) -> str:
    lengths, texts = hashlib.sha256(), hashlib.sha256()
    with manifest.location.open_input() as file:
        for batch in pq.ParquetFile(file).iter_batches(columns=["image_id"], batch_size=1 << 16):
            column = batch.column(0).cast(pa.large_string())
            _, offsets_buffer, text_buffer = column.buffers()
            offsets = np.frombuffer(offsets_buffer, np.int64)[column.offset : column.offset + len(column) + 1]
            lengths.update(np.diff(offsets).tobytes())
            if text_buffer is not None and len(column):
                texts.update(memoryview(text_buffer)[offsets[0] : offsets[-1]])
    whole = [manifest.num_images, manifest.class_names, manifest.class_values, lengths.hexdigest(), texts.hexdigest()]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()
