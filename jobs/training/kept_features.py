"""Keeps the features of a frozen backbone on this worker's disk, so that they are computed only once."""

import logging
import shutil
import tempfile
import time
from collections.abc import Hashable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cluster.words import plural
from jobs.run.config_keys import Config
from jobs.steps.progress import LOG_INTERVAL, duration, size

log = logging.getLogger(__name__)

LARGEST_SHARE = 0.8
"""Largest share of the free space in the temporary folder that is used; the workers of a machine divide it."""


def bytes_of(shape: tuple[int, ...]) -> int:
    """The size of one image's features."""
    return int(np.prod(shape)) * np.dtype(np.float16).itemsize


class KeptFeatures:
    """float16 arrays of the same shape, by key, in a temporary file that is deleted when the process ends.

    The file is sparse: it takes space only as it is filled. If no space is left, further features are not kept and must
    be computed each time.

    Args:
        shape: the shape of one image's features.
        num_wanted: how many to keep if there is room.
        most_bytes: the most bytes for all of them.
        num_sharing: the number of processes on this machine that keep features.
        key: the key of ``most_bytes``, for messages.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        num_wanted: int,
        *,
        most_bytes: float,
        num_sharing: int = 1,
        key: str = "classifier.kept_features_gb",
    ) -> None:
        self.key = key
        self.folder = tempfile.gettempdir()
        free = LARGEST_SHARE * shutil.disk_usage(self.folder).free / num_sharing
        self.num_places = min(num_wanted, int(min(most_bytes, free) // bytes_of(shape)))
        if free < min(most_bytes, num_wanted * bytes_of(shape)):
            log.warning(
                "%s has too little space: the features of %d of %d images are kept, the others are computed in every "
                "epoch. To use another folder, set TMPDIR.",
                self.folder,
                self.num_places,
                num_wanted,
            )
        self._shape, self._places = shape, dict[Hashable, int]()
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # it lives as long as this object
        self._file.truncate(max(1, self.num_places) * bytes_of(shape))
        self._features = np.memmap(self._file, np.float16, "r", shape=(max(1, self.num_places), *shape))

    def reserve(self, key: Hashable) -> bool:
        """Reserves space for a key. True if its features must be computed: they are new, or there is no space."""
        if key in self._places:
            return False
        if len(self._places) < self.num_places:
            self._places[key] = len(self._places)
        return True

    def put(self, key: Hashable, features: NDArray[np.float16]) -> None:
        """Keeps a key's features if space is reserved for them.

        Raises:
            ValueError: the disk is full.
        """
        if (place := self._places.get(key)) is None:
            return
        try:  # written as a file, because on a full disk a memory map would kill the process
            self._file.seek(place * bytes_of(self._shape))
            self._file.write(np.ascontiguousarray(features, np.float16).tobytes())
            self._file.flush()
        except OSError as error:
            raise ValueError(
                f"{self.key}: features cannot be kept in {self.folder} ({error.strerror}). Lower it, "
                "or set the environment variable TMPDIR to another folder."
            ) from error

    def has_place(self, key: Hashable) -> bool:
        """Whether a key's features are kept, or will be."""
        return key in self._places

    def get(self, key: Hashable) -> NDArray[np.float16]:
        """The kept features of a key; a view of the file."""
        return self._features[self._places[key]]


class FirstPasses:
    """The passes through a frozen backbone whose features are kept, so that they happen only once in a launch.

    While they take long, a line every 10 s says how many there were. Only a training in the launch's own process can
    print it: the output of Ray's workers is in Ray's logs.

    Args:
        name: the training, for the lines; "" for none.
        most: how many passes there can be.
    """

    def __init__(self, name: str, most: int) -> None:
        self._name, self._most = name, most
        self._done, self._seconds, self._taken = 0, 0.0, 0.0
        self._last_line = time.monotonic()

    def add(self, number: int, seconds: float) -> None:
        """Counts passes and the time that they took."""
        self._done += number
        self._seconds += seconds
        if not self._name or not number or time.monotonic() - self._last_line < LOG_INTERVAL:
            return
        self._last_line = time.monotonic()
        left = duration((self._most - self._done) * self._seconds / self._done)
        of_all = f"{self._done:,} of up to {plural(self._most, 'pass')}"
        print(f"{self._name}: {of_all} through the frozen backbone, about {left} left for these", flush=True)

    def take_seconds(self) -> float:
        """The time of the passes since the last call."""
        seconds, self._taken = self._seconds - self._taken, self._seconds
        return seconds


def features_in_words(
    section: Literal["classifier", "segmenter"], config: Config, shape: tuple[int, ...], num_passes: int, device: str
) -> tuple[str, bool]:
    """The passes of a frozen backbone and the space for their features, in words; and whether all are kept."""
    settings, each = getattr(config, section), bytes_of(shape)
    num_kept = min(num_passes, int(1e9 * settings.kept_features_gb // each))
    is_measured = device == "cpu" and settings.backbone == "vgg16"
    seconds = 1.05 * (config.images.input_size / 321) ** 2 * num_passes
    of_a_core = f", about {duration(seconds)} of one core" if is_measured else ""
    kept = "Their features" if num_kept == num_passes else f"The features of {num_kept:,} passes"
    words = (
        f"the backbone is frozen, so each image and its mirror image run through it once: up to {num_passes:,} passes"
        f"{of_a_core}. {kept} are kept in {tempfile.gettempdir()} (TMPDIR) on each worker's machine: up to "
        f"{size(num_kept * each)}, limited by {section}.kept_features_gb = {settings.kept_features_gb:g}."
    )
    return (words, True) if num_kept == num_passes else (f"{words} The other passes are repeated in each epoch.", False)
