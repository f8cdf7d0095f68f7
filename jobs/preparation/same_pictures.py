"""Finds pictures that occur more than once under different names, because they spoil figures and training.

A picture in both train and val makes the figures of val too good, and two copies with different labels contradict each
other. Headers are read anyway, so files whose first bytes are equal cost nothing to find; only these are read whole.
"""

import hashlib
from collections.abc import Iterable, Sequence

from cluster.words import plural
from jobs.preparation.pictures import Pictures
from storage.errors import BadImage
from storage.headers import Header, read_header
from storage.image_bytes import whole_file
from storage.images import read_many
from storage.location import Location
from storage.manifest import ManifestRow, resolve_address
from storage.tree import words


def same_pictures(pictures: Pictures, root: Location, earlier: Iterable[ManifestRow] = ()) -> list[str]:
    """A sentence if files with the same bytes are several images.

    Args:
        root: the folder of the run's own files.
        earlier: rows of the run that the pictures are added to. Of these only files with the size and the name of an
            added picture are compared, because the others would have to be opened first.
    """
    found = [(row, header) for row, header in zip(pictures.rows, pictures.headers, strict=True) if header]
    if earlier:
        named = {(row.height, row.width, _name(row)) for row, _ in found}
        before = [row for row in earlier if not row.problem and (row.height, row.width, _name(row)) in named]
        headers = read_many([row.uri for row in before], read_header)
        found += [(row, header) for row, header in zip(before, headers, strict=True) if isinstance(header, Header)]
    candidates = [row for group in _groups((header.start, row) for row, header in found) for row in group]
    digests = read_many([resolve_address(row.uri, root, {}) for row in candidates], _digest)
    same = _groups(pair for pair in zip(digests, candidates, strict=True) if not isinstance(pair[0], BadImage))
    return [_sentence(same)] if same else []


def _groups(keyed: Iterable[tuple[object, ManifestRow]]) -> list[list[ManifestRow]]:
    """The rows that have their key in common with other rows."""
    first, groups = dict[object, ManifestRow](), dict[object, list[ManifestRow]]()
    for key, row in keyed:
        if (earlier := first.setdefault(key, row)) is not row:
            groups.setdefault(key, [earlier]).append(row)
    return list(groups.values())


def _sentence(same: Sequence[Sequence[ManifestRow]]) -> str:
    first, second = same[0][:2]
    sentences = [
        f"{plural(len(same), 'picture')} with several names: the files have the same bytes (first: {first.image_id!r} "
        f"and {second.image_id!r}). Each name is an image of its own."
    ]
    if across := [group for group in same if len({row.split for row in group}) > 1]:
        splits = sorted({row.split or "(no split)" for group in across for row in group})
        sentences.append(
            f"{_some(len(across), len(same))} in several splits ({words(splits)}), so figures measured on images "
            "outside the training are too good. Keep one file of each."
        )
    if other := [group for group in same if len({row.labels for row in group}) > 1]:
        sentences.append(
            f"{_some(len(other), len(same))} under different labels. Give one image all its labels, in a table (--csv)."
        )
    return " ".join(sentences)


def _some(number: int, total: int) -> str:
    if number == total:
        return "It is" if total == 1 else "All are"
    return f"{number:,} of them {'is' if number == 1 else 'are'}"


def _digest(uri: str) -> bytes:
    return hashlib.sha256(whole_file(uri)).digest()


def _name(row: ManifestRow) -> str:
    return row.uri.rsplit("/", 1)[-1]
