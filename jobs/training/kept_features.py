"""Features of a frozen backbone, kept on this worker's disk so that they are computed once."""

import logging
import shutil
import tempfile
from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

LARGEST_SHARE = 0.8
"""Of the free space in the temporary folder, at most; the workers of a machine share it."""


def bytes_of(shape: tuple[int, ...]) -> int:
    """The size of one image's features."""
    return int(np.prod(shape)) * np.dtype(np.float16).itemsize


class KeptFeatures:
    """float16 arrays of one shape by key, in a temporary file that is gone when the process ends.

    The file is sparse: it takes space as it is filled. Where no place is left, features are not kept, and have to be
    computed each time.

    Args:
        shape: of one image's features.
        num_wanted: how many would be kept if there were room.
        most_bytes: for all of them.
        num_sharing: processes on this machine that keep features too.
    """

    def __init__(self, shape: tuple[int, ...], num_wanted: int, *, most_bytes: float, num_sharing: int = 1) -> None:
        self.folder = tempfile.gettempdir()
        free = LARGEST_SHARE * shutil.disk_usage(self.folder).free / num_sharing
        self.num_places = min(num_wanted, int(min(most_bytes, free) // bytes_of(shape)))
        if free < min(most_bytes, num_wanted * bytes_of(shape)):
            log.warning(
                "%s has too little space: the features of %d of %d images are kept, the others are computed in every "
                "epoch. TMPDIR chooses another folder.",
                self.folder,
                self.num_places,
                num_wanted,
            )
        self._shape, self._places = shape, dict[Hashable, int]()
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # it lives as long as this object
        self._file.truncate(max(1, self.num_places) * bytes_of(shape))
        self._features = np.memmap(self._file, np.float16, "r", shape=(max(1, self.num_places), *shape))

    def reserve(self, key: Hashable) -> bool:
        """Gives a key its place; whether its features are to be computed now: they are new, or there is no place."""
        if key in self._places:
            return False
        if len(self._places) < self.num_places:
            self._places[key] = len(self._places)
        return True

    def put(self, key: Hashable, features: NDArray[np.float16]) -> None:
        """Keeps a key's features where it has a place.

        Raises:
            ValueError: the disk is full.
        """
        if (place := self._places.get(key)) is None:
            return
        try:  # written as a file: a full disk is an error here, and would kill the process in a memory map
            self._file.seek(place * bytes_of(self._shape))
            self._file.write(np.ascontiguousarray(features, np.float16).tobytes())
            self._file.flush()
        except OSError as error:
            raise ValueError(
                f"classifier.kept_features_gb: features cannot be kept in {self.folder} ({error.strerror}). Lower it, "
                "or choose another folder by the environment variable TMPDIR."
            ) from error

    def get(self, key: Hashable) -> NDArray[np.float16]:
        """The features that were put; a view of the file."""
        return self._features[self._places[key]]
