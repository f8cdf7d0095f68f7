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

from storage.manifest import Manifest


def images_id(manifest: Manifest) -> str:
    """sha256 of the image ids and classes of a manifest in their order; the layout of its file does not matter.

    It reads one column. The result is cached while the manifest is open in this process.
    """
    return images_ids(manifest)[-1]


def images_ids(manifest: Manifest) -> tuple[str, ...]:
    """The id that the manifest had before images were added to it, that after the first addition, and so on to now.

    Added images lie behind the others. So what was stored under an earlier id is read by the manifest as it is now.
    """
    return _images_ids(manifest)


@lru_cache(maxsize=8)
def _images_ids(manifest: Manifest) -> tuple[str, ...]:
    lengths, texts = hashlib.sha256(), hashlib.sha256()
    found = []
    for start, stop in manifest.parts:
        for image_ids in manifest.iter_image_ids(start, stop):
            column = image_ids.cast(pa.large_string())
            _, offsets_buffer, text_buffer = column.buffers()
            offsets = np.frombuffer(offsets_buffer, np.int64)[column.offset : column.offset + len(column) + 1]
            lengths.update(np.diff(offsets).tobytes())
            if text_buffer is not None and len(column):
                texts.update(memoryview(text_buffer)[offsets[0] : offsets[-1]])
        whole = [stop, manifest.class_names, manifest.class_values, lengths.hexdigest(), texts.hexdigest()]
        found.append(hashlib.sha256(json.dumps(whole).encode()).hexdigest())
    return tuple(found)
