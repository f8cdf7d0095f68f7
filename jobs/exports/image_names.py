"""The names and numbers of images in an export: those that the source gave them, if these tell all images apart."""

from collections.abc import Iterator, Set
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from storage.image_paths import id_of_path
from storage.manifest import Manifest, ManifestRow
from storage.names import safe_name


@dataclass(frozen=True)
class ImageNames:
    """The rule for a whole manifest. Different images have different names, also without their suffixes.

    Attributes:
        rule: what an image's file name is. "source": the end of its address from which its id was made. "folder": its
            path below `folder`. "id": its id with the suffix of its address.
        folder: the folder or prefix in which all images have their names; "" if there is none.
        has_source_numbers: the source numbers its images, or their ids are numbers; otherwise an image's number is its
            position in the manifest, from 1.
    """

    rule: Literal["source", "folder", "id"]
    folder: str
    has_source_numbers: bool

    @classmethod
    def of(cls, manifest: Manifest) -> "ImageNames":
        """The rule that gives all usable images of a manifest different names and numbers.

        The source's paths are used only if no picture can come beside the labels of another one: if all images are in
        one folder by these paths, or if no image's name is also the end of another image's address. Otherwise names
        are paths below the folder of all images, or below its parent.
        """
        common: list[str] | None = None
        numbers: set[int | None] = set()
        stems: set[str] = set()
        folders: set[str] = set()
        num_images = 0
        for image_id, uri, source_number in _usable(manifest):
            parent = uri.split("/")[:-1]
            common = parent if common is None else _common(common, parent)
            numbers.add(_number(image_id, source_number))
            name = source_path(image_id, uri)
            stems.add(stem(name))
            folders.add(uri.removesuffix(name))
            num_images += 1
        has_numbers = len(numbers - {None}) == num_images
        has_paths = len(stems - {""}) == num_images
        names = cls("source", folders.pop().rstrip("/") if len(folders) == 1 else "", has_numbers)
        if has_paths and (names.folder or names._are_apart(manifest, stems)):
            return names
        folder = "/".join(common or [])
        for place in (folder, folder.rpartition("/")[0]):
            names = cls("folder", place.removesuffix("s3:/"), has_numbers)
            stems = {stem(names._name(image_id, uri)) for image_id, uri, _ in _usable(manifest)}
            if len(stems) == num_images and (not has_paths or names._are_apart(manifest, stems)):
                return names
        return cls("id", "", has_numbers)

    def _are_apart(self, manifest: Manifest, stems: Set[str]) -> bool:
        """Whether no image's name is the end of another image's address. Suffixes do not count."""
        for image_id, uri, _ in _usable(manifest):
            own = stem(self._name(image_id, uri))
            if any(end != own and end in stems for end in _ends(stem(uri))):
                return False
        return True

    def fingerprint(self, manifest: Manifest) -> list[str | int]:
        """Changes where images were added by which the names or numbers of earlier ones change."""
        usable = ((row, entry) for row, entry in enumerate(manifest.iter_rows()) if not entry.problem)
        first = [name for row, entry in islice(usable, 1) for name in (self.file_name(entry), self.number(entry, row))]
        return [self.rule, *first]

    def file_name(self, entry: ManifestRow) -> str:
        """The image's path below the folder of images."""
        return self._name(entry.image_id, entry.uri)

    def _name(self, image_id: str, uri: str) -> str:
        if self.rule == "id":
            return safe_name(image_id) + uri.removeprefix(stem(uri))
        if self.rule == "source":
            return source_path(image_id, uri)
        return uri.removeprefix(self.folder).replace("://", "/").lstrip("/")  # without a folder, the whole address

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


def source_path(image_id: str, uri: str) -> str:
    """The end of an address from which the image's id was made; "" if the id was not made from the address."""
    return next((end for end in _ends(uri) if id_of_path(end) == image_id), "")


def _ends(uri: str) -> Iterator[str]:
    """The last part of an address, the last two parts, and so on."""
    parts = uri.split("/")
    return ("/".join(parts[-depth:]) for depth in range(1, len(parts)))


def stem(name: str) -> str:
    """A file name with its folders, without its suffix."""
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.rpartition('.')[0] or last}"
