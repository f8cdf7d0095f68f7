"""What a format is given and what it gives back: one image with its labels, its files, and the export as a whole."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jobs.exports.regions import Region, regions
from storage.location import Location


@dataclass(frozen=True)
class Classes:
    """The class list: the name of class 0, 1, ... and its value in the data set's own masks."""

    names: tuple[str, ...]
    values: tuple[int, ...]


@dataclass(frozen=True)
class LabelledImage:
    """One image as a format writes it.

    Attributes:
        number: of the image, in files that number images.
        file_name: its path below the folder of images, as the source wrote it.
        uri: where the picture lies.
        split: its part of the data set, "" for none.
        labels: (H, W) at image size: 0 background, class number + 1, `ignored` where nothing is known.
        shapes: how objects are written, as `--shapes` says; "" where the format leaves no choice.
    """

    number: int
    image_id: str
    file_name: str
    uri: str
    split: str
    labels: np.ndarray
    ignored: int
    classes: Classes
    shapes: str

    @property
    def height(self) -> int:
        return self.labels.shape[0]

    @property
    def width(self) -> int:
        return self.labels.shape[1]

    def regions(self) -> Iterator[Region]:
        """The 8-connected components of each class."""
        return regions(self.labels, len(self.classes.names))


@dataclass(frozen=True)
class Exported:
    """What an image becomes.

    Attributes:
        files: contents by name below the export's folder.
        record: plain data for the file that holds all images, or a unit's images; None where there is no such file.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    record: Any = None


@dataclass(frozen=True)
class WholeExport:
    """All images, once each of them is exported.

    Attributes:
        out: the export's folder.
        records: reads the images' records again from the start, in order, a unit at a time.
    """

    out: Location
    classes: Classes
    shapes: str
    records: Callable[[], Iterator[Any]]
