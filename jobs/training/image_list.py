"""The images of a training, by position: only row numbers at first, Arrow columns once an image is read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.manifest import Manifest

_COLUMNS = ("image_id", "uri", "labels", "mask_uri")


@dataclass(frozen=True)
class ListedImage:
    """What training needs from a manifest row; `mask_uri` only if the mask may be read."""

    image_id: str
    uri: str
    labels: tuple[int, ...]
    row: int = -1
    mask_uri: str | None = None


class ImageList(Sequence[ListedImage]):
    """Images of a manifest in its order.

    Attributes:
        rows: numbers of rows of the manifest, int64.
    """

    def __init__(self, manifest: Manifest, rows: np.ndarray, may_read_mask: np.ndarray | None = None) -> None:
        """Args: may_read_mask: whether each row's mask may be read, bool; None: no mask may be read."""
        self.rows = rows
        self._manifest, self._may_read_mask = manifest, may_read_mask

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, position: int) -> ListedImage: ...
    @overload
    def __getitem__(self, position: slice) -> Sequence[ListedImage]: ...

    def __getitem__(self, position: int | slice) -> ListedImage | Sequence[ListedImage]:
        if isinstance(position, slice):
            return [self[each] for each in range(*position.indices(len(self)))]
        position = range(len(self))[position]
        image_id, uri, labels, mask_uri = (self._columns[name][position].as_py() for name in _COLUMNS)
        may_read = self._may_read_mask is not None and self._may_read_mask[position]
        return ListedImage(
            image_id,
            self._manifest.resolved(uri),
            tuple(labels),
            int(self.rows[position]),
            self._manifest.resolved(mask_uri) if mask_uri and may_read else None,
        )

    def read(self) -> "ImageList":
        """Reads the columns now. Call it before loader processes start; otherwise each of them reads the columns."""
        _ = self._columns
        return self

    def class_counts(self) -> np.ndarray:
        """Images of each class, int64 (C,)."""
        counts = np.zeros(self._manifest.num_classes, np.int64)
        for table in self._chosen(["labels"]):
            counts += np.bincount(pc.list_flatten(table["labels"]).to_numpy(), minlength=len(counts))
        return counts

    def has_masks(self) -> bool:
        """Whether some image has a mask that may be read."""
        if self._may_read_mask is None:
            return False
        has_mask = [table["mask_uri"].is_valid().to_numpy(zero_copy_only=False) for table in self._chosen(["mask_uri"])]
        return bool((np.concatenate([np.zeros(0, bool), *has_mask]) & self._may_read_mask).any())

    @cached_property
    def _columns(self) -> dict[str, pa.ChunkedArray]:
        found = list(self._chosen(_COLUMNS))
        empty: list[str] = []
        return {name: pa.chunked_array([each[name] for each in found] or [empty]) for name in _COLUMNS}

    def _chosen(self, columns: Sequence[str]) -> Iterator[dict[str, pa.Array]]:
        start = 0
        for table in self._manifest.iter_tables(columns):
            stop = start + len(table[columns[0]])
            first, end = np.searchsorted(self.rows, (start, stop))
            inside = pa.array(self.rows[first:end] - start)
            yield {name: column.take(inside) for name, column in table.items()}
            start = stop


def image_list(
    manifest: Manifest,
    splits: Sequence[str],
    without: Sequence[str] = (),
    masks_of: Sequence[str] | None = (),
) -> ImageList:
    """The labelled or negative, usable images of some splits in manifest order; negative images have no labels.

    Args:
        splits: names; empty for all splits but those in `without`.
        without: splits that are left out if `splits` is empty.
        masks_of: splits whose masks may be read; None for all, and then images without a mask are left out.
    """
    columns = ["labels", "negative", "split", "problem", *(["mask_uri"] if masks_of is None else [])]
    chosen, may_read = [np.zeros(0, bool)], [np.zeros(0, bool)]
    for table in manifest.iter_tables(columns):
        split = table["split"]
        is_wanted = _is_in(split, splits) if splits else pc.invert(_is_in(split, without))
        is_known = pc.or_(pc.greater(pc.list_value_length(table["labels"]), 0), table["negative"])
        is_usable = pc.and_(pc.and_(is_known, table["problem"].is_null()), is_wanted)
        if masks_of is None:
            is_usable = pc.and_(is_usable, table["mask_uri"].is_valid())
        chosen.append(is_usable.to_numpy(zero_copy_only=False))
        reads = np.ones(len(split), bool) if masks_of is None else _is_in(split, masks_of).to_numpy(False)
        may_read.append(reads)
    rows = np.flatnonzero(np.concatenate(chosen))
    return ImageList(manifest, rows, np.concatenate(may_read)[rows] if masks_of is None or masks_of else None)


def _is_in(split: pa.Array, names: Sequence[str]) -> pa.Array:
    return pc.is_in(split, pa.array(list(names), pa.string()))
