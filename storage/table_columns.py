"""Finds the meaning of a table's columns: by their names, by the command line, or by their cells of 0 and 1."""

import difflib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from storage.label_cells import is_flag
from storage.text import clean_name
from storage.tree import is_image_name, words

# The names of each meaning; the first is the documented one and is used if several are there.
NAMES = {
    "image": (
        "image", "filename", "file_name", "file", "filepath", "file_path", "path", "image_path", "imagepath",
        "image_name", "image_file", "img", "img_path", "image_filename",
    ),
    "labels": ("labels", "label", "class", "classes", "class_name", "tags", "tag", "category", "categories"),
    "id": ("id",),
    "split": ("split", "subset", "partition"),
    "mask": ("mask", "mask_path", "mask_file"),
    "saliency": ("saliency", "saliency_path"),
}  # fmt: skip
KNOWN = tuple(NAMES)
_NO_CLASS = ("index", "unnamed:_0", "level_0")  # pandas' names for row numbers


@dataclass(frozen=True)
class Columns:
    """The positions of a table's columns.

    Attributes:
        of: meaning -> position, for the meanings in `KNOWN`; without ``"labels"`` if there are `classes`.
        classes: class name -> position, if there is a column per class with 0 and 1; empty otherwise.
        notes: which columns were read although their names are not the documented ones.
    """

    of: dict[str, int]
    classes: dict[str, int]
    notes: tuple[str, ...]


def find_columns(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    given: dict[str, str],
    class_names: Sequence[str] | None = None,
    *,
    needs_labels: bool = True,
) -> Columns:
    """The meaning of each column.

    Args:
        header: the names of the columns.
        rows: all rows; columns of 0 and 1 are searched in them if there is no column of labels.
        given: meaning -> name, from the command line.
        class_names: the classes to use; only these columns of 0 and 1 count.
        needs_labels: whether a table without labels is refused.

    Raises:
        ValueError: a column is missing or misspelt, or a meaning has several columns. The message does not name the
            file.
    """
    plain = [_plain(name) for name in header]
    if not any(plain):
        raise ValueError("the table is empty; its first line must name the columns, such as image,labels")
    _require_different(header, plain)
    found, notes = dict[str, int](), []
    for meaning, names in NAMES.items():
        if meaning in given:
            found[meaning] = _given(header, plain, meaning, given[meaning])
            continue
        there = [name for name in names if name in plain]
        if len(there) > 1 and there[0] != names[0]:
            first, second = (header[plain.index(name)] for name in there[:2])
            raise ValueError(
                f"columns {first!r} and {second!r} may both be the {meaning}. Say which: "
                f"{_flag(meaning)} {shlex.quote(first)}"
            )
        if there:
            found[meaning] = plain.index(there[0])
    _require_spelling(header, plain, found, given)
    if "image" not in found and any(map(is_image_name, header)):
        raise ValueError("its first line does not have the names of the columns; add a line such as image,labels")
    if "image" not in found:
        named = [name for name in header if name]
        more = "" if "labels" in found else ", and which names the labels: --label-column NAME"
        raise ValueError(
            f"no column 'image'; it has {words(named)}. Say which column names the images: --image-column "
            f"{shlex.quote(named[0])}{more}"
        )
    classes = {} if "labels" in found else _class_columns(header, plain, rows, found, class_names)
    if needs_labels and "labels" not in found and not classes:
        raise ValueError(
            f"no column 'labels', and no columns of 0 and 1; it has {words([name for name in header if name])}. "
            "Say which column names the labels, as in --label-column breed, or give one column per class with 0 and 1"
        )
    read_as = [
        f"column {header[position]!r} is read as the {meaning}"
        for meaning, position in found.items()
        if plain[position] != meaning and meaning not in given
    ]
    if read_as:
        notes.append(f"{', '.join(read_as)}.")
    if classes:
        rest = [name for n, name in enumerate(header) if name and n not in {*found.values(), *classes.values()}]
        more = f"; not read: {words(rest)}" if rest else ""
        notes.append(f"one column per class, with 0 and 1: {words(list(classes))}{more}.")
    return Columns(found, classes, tuple(notes))


def _class_columns(
    header: Sequence[str],
    plain: Sequence[str],
    rows: Sequence[Sequence[str]],
    found: dict[str, int],
    class_names: Sequence[str] | None,
) -> dict[str, int]:
    """The columns that have only 0, 1, -1 or empty cells, and at least one 0 or 1."""
    classes = {}
    for position, name in enumerate(header):
        if position in found.values() or not name or plain[position] in _NO_CLASS:
            continue
        cells = {row[position] for row in rows if position < len(row)}
        if any(cells) and all(map(is_flag, cells)):
            classes[clean_name(name)] = position
    if class_names is None:
        return classes
    return {name: classes[name] for name in class_names if name in classes}


def _plain(name: str) -> str:
    """A name without case, and with "_" between its words: "File name" is the same as "file_name"."""
    return re.sub(r"[\s_-]+", "_", clean_name(name).casefold())


def _given(header: Sequence[str], plain: Sequence[str], meaning: str, name: str) -> int:
    wanted = clean_name(name)
    if wanted in map(clean_name, header):
        return [clean_name(each) for each in header].index(wanted)
    if _plain(wanted) in plain:
        return plain.index(_plain(wanted))
    near = difflib.get_close_matches(wanted, header, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"it has {words(header)}"
    raise ValueError(f"{_flag(meaning)} {name}: no such column; {hint}")


def _flag(meaning: str) -> str:
    return {"labels": "--label-column", "image": "--image-column"}.get(meaning, f"column {meaning}")


def _require_different(header: Sequence[str], plain: Sequence[str]) -> None:
    twice = next((name for name in plain if name and plain.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two columns are called {header[plain.index(twice)]!r}; rename one of them")


def _require_spelling(
    header: Sequence[str], plain: Sequence[str], found: dict[str, int], given: dict[str, str]
) -> None:
    """Refuses a column whose name is similar to that of a missing one, because it would be silently ignored."""
    if set(given) >= {"image", "labels"}:
        return
    missing = [meaning for meaning in KNOWN if meaning not in found]
    for name, spelt in zip(plain, header, strict=True):
        near = difflib.get_close_matches(name, missing, n=1, cutoff=0.75)
        if near and plain.index(name) not in found.values():
            flag = f", or give {_flag(near[0])} {spelt}" if near[0] in ("image", "labels") else ""
            raise ValueError(f"column {spelt!r}: unknown. Did you mean {near[0]!r}? Then rename it{flag}")
