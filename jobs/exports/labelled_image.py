"""The inputs and outputs of formats: an image with its labels, the files of an image, and the whole export."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jobs.exports.regions import Region, regions
from storage.location import Location


@dataclass(frozen=True)
class Classes:
    """The class list: the names of class 0, 1, ... and their values in the data set's own masks."""

    names: tuple[str, ...]
    values: tuple[int, ...]


@dataclass(frozen=True)
class LabelledImage:
    """One image, for a format to write.

    Attributes:
        number: the number of the image, for files that number images.
        file_name: its path in the folder of images, as in the source.
        uri: where the picture is.
        split: its part of the data set; "" for none.
        role: what the run uses this part for: "train", "val" or "test".
        labels: (H, W) at image size: 0 background, class number + 1, `ignored` for unknown pixels.
        shapes: how objects are written, as in `--shapes`; "" if the format has no choice.
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
    role: str = "train"

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
    """The result for one image.

    Attributes:
        files: the contents of files, by name in the export's folder.
        record: plain data for the file with all images, or with the images of a unit; None if there is no such file.
        is_empty: no pixel of the image has a class.
        num_dropped: the number of components that are left out, because they are small.
        num_objects: the number of components that are exported.
        num_specks: how many of these have fewer than `SPECK_PIXELS` pixels.
        digest: `mask_digest` of the exported labels; "" for maps.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    record: Any = None
    is_empty: bool = False
    num_dropped: int = 0
    num_objects: int = 0
    num_specks: int = 0
    digest: str = ""


@dataclass(frozen=True)
class WholeExport:
    """The whole export, after each image was exported.

    Attributes:
        out: the export's folder.
        records: reads the records of all images from the start, in order, one unit at a time.
    """

    out: Location
    classes: Classes
    shapes: str
    records: Callable[[], Iterator[Any]]
