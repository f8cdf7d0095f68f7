"""Finds files whose names are slightly different from the names in a source.

Letters may be composed or decomposed (a Mac writes ``ü`` as two characters), and a suffix may be in capitals or
missing. A file is used only if no other file fits.
"""

import unicodedata
from collections.abc import Callable
from functools import cache

from storage.location import Location
from storage.tree import is_image_name


class Names:
    """The names in folders; each folder is listed only once."""

    def __init__(self) -> None:
        self._list: Callable[[str], tuple[str, ...]] = cache(lambda uri: tuple(Location(uri).list_names()))

    def existing(self, uri: str) -> str | None:
        """The URI of the only file that fits the name of a missing file; None if no file or several files fit.

        Raises:
            StorageError: the store failed.
        """
        start = uri.index("/", len("s3://")) if uri.startswith("s3://") else 0
        found = uri[:start]
        *folders, name = uri[start + 1 :].split("/")
        for folder in folders:
            alike = [each for each in self._names(found) if _composed(each) == _composed(folder)]
            if len(alike) != 1 and folder not in alike:
                return None
            found = f"{found}/{folder if folder in alike else alike[0]}"
        names = self._names(found)
        for same in (_composed, _capitals, _stem):
            if same is _stem and is_image_name(name):
                return None  # another suffix is another file
            alike = [each for each in names if same(each) == same(name)]
            if alike:
                return f"{found}/{alike[0]}" if len(alike) == 1 else None
        return None

    def _names(self, folder: str) -> tuple[str, ...]:
        try:
            return self._list(folder or "/")
        except (NotADirectoryError, PermissionError):
            return ()


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _capitals(name: str) -> str:
    return _composed(name).casefold()


def _stem(name: str) -> str:
    return _capitals(name.rsplit(".", 1)[0]) if is_image_name(name) else _capitals(name)
