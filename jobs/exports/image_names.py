"""The names of images in an export: the file names and numbers that the source gave them."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from storage.image_paths import id_of_path
from storage.manifest import Manifest, ManifestRow


@dataclass(frozen=True)
class ImageNames:
    """The rule for a whole manifest.

    Attributes:
        folder: file names are relative to this folder if the source's own paths cannot be used.
        has_source_paths: an image's file name is the end of its address from which its id was made.
        has_source_numbers: the source numbers its images, or their ids are numbers; otherwise an image's number is its
            position in the manifest, from 1.
    """

    folder: str
    has_source_paths: bool
    has_source_numbers: bool

    @classmethod
    def of(cls, manifest: Manifest) -> "ImageNames":
        """The rule that gives all usable images of a manifest different names and numbers."""
        folder: list[str] | None = None
        numbers: set[int | None] = set()
        paths: set[str] = set()
        num_images = 0
        for image_id, uri, source_number in _usable(manifest):
            parent = uri.split("/")[:-1]
            folder = parent if folder is None else _common(folder, parent)
            numbers.add(_number(image_id, source_number))
            paths.add(_source_path(image_id, uri))
            num_images += 1
        return cls("/".join(folder or []), len(paths - {""}) == num_images, len(numbers - {None}) == num_images)

    def fingerprint(self, manifest: Manifest) -> list[str | int]:
        """Changes where images were added by which the names or numbers of earlier ones change."""
        usable = ((row, entry) for row, entry in enumerate(manifest.iter_rows()) if not entry.problem)
        return [name for row, entry in islice(usable, 1) for name in (self.file_name(entry), self.number(entry, row))]

    def file_name(self, entry: ManifestRow) -> str:
        """The image's path below the folder of images."""
        if self.has_source_paths:
            return _source_path(entry.image_id, entry.uri)
        return entry.uri.removeprefix(self.folder).lstrip("/")

    def number(self, entry: ManifestRow, row: int) -> int:
        """The image's number, different from all others.

        Args:
            row: the row of the image in the manifest.
        """
        number = _number(entry.image_id, entry.source_number) if self.has_source_numbers else None
        return row + 1 if number is None else number


def _usable(manifest: Manifest) -> Iterator[tuple[str, str, int | None]]:
    """Ids, addresses and the source's numbers."""
    for batch in manifest.iter_columns(["image_id", "uri", "source_number", "problem"]):
        for image_id, uri, number, problem in zip(*batch.values(), strict=True):
            if not problem:
                yield image_id, uri, number


def _common(first: list[str], second: list[str]) -> list[str]:
    """The parts at the beginning of two addresses that are the same."""
    length = next((n for n, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), None)
    return first[: len(second)] if length is None else first[:length]


def _number(image_id: str, source_number: int | None) -> int | None:
    """The source's number, else the id as a number, as in 000000000139; None if there is none."""
    if source_number is not None:
        return source_number
    return int(image_id) if image_id.isascii() and image_id.isdigit() else None


def _source_path(image_id: str, uri: str) -> str:
    """The end of an address from which the image's id was made; "" if the id was not made from the address."""
    parts = uri.split("/")
    ends = ("/".join(parts[-depth:]) for depth in range(1, len(parts)))
    return next((end for end in ends if id_of_path(end) == image_id), "")
