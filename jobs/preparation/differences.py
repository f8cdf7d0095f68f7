"""What differs between a run's list of images and a new one, in a sentence for people who prepare a run again."""

from collections.abc import Sequence
from dataclasses import fields

from cluster.words import listed, plural
from storage.manifest import Manifest, ManifestRow

SAME_FLAGS = "Give the flags of the first preparation (such as --val-fraction, --split and --classes)"

TITLES = {"labels": "list of labels", "uri": "address", "saliency_uri": "saliency map"}  # columns, for people


def classes_differ(earlier: Sequence[str], now: Sequence[str]) -> str:
    """The first class that differs; "" if the names are the same in the same order."""
    for name in now:
        if name not in earlier:
            return f"the class {name!r} is new"
    for name in earlier:
        if name not in now:
            return f"the class {name!r} is missing"
    return "" if list(earlier) == list(now) else f"the classes have another order ({', '.join(now[:5])})"


def more_images(earlier: Manifest, now: Manifest, command: str) -> str:
    """What to do, if a list has all images of a started run and more; "" if it has not.

    Args:
        command: that of the preparation; "" if there is none.
    """
    known = {row.uri for row in earlier.iter_written_rows()}
    rows = list(now.iter_written_rows())
    new = [row for row in rows if row.uri not in known]
    if not new or len(rows) - len(new) < len(known):
        return ""
    images = f"{plural(len(new), 'image')} {_is([row.image_id for row in new])} new (first: {new[0].image_id!r})"
    how = f"'{command} --add'" if command else "--add"
    classes = [name for name in now.class_names if name not in earlier.class_names]
    if not classes:
        return f"{images}, and steps were started with the others. Add {'it' if len(new) == 1 else 'them'} with {how}."
    named = f"the class{'es' if len(classes) > 1 else ''} {listed([repr(name) for name in classes])}"
    return (
        f"{images}, and so {'are' if len(classes) > 1 else 'is'} {named}, which the networks of this run cannot learn "
        f"any more: prepare another run (another --run). To add the images of the other classes to this run: {how}."
    )


def rows_differ(
    earlier: Sequence[ManifestRow], now: Sequence[ManifestRow], class_names: Sequence[str], but: Sequence[str]
) -> str:
    """The first kind of difference of two lists with the same classes, how many images have it, and an example.

    Args:
        but: columns that may differ.
    """
    known, given = {row.image_id: row for row in earlier}, {row.image_id: row for row in now}
    for ids, others, what in ((given, known, "new"), (known, given, "missing")):
        if found := [image_id for image_id in ids if image_id not in others]:
            return f"{_images(found)} {_is(found)} {what} (first: {found[0]!r})"
    if list(known) != list(given):
        first = next(one for one, other in zip(known, given, strict=True) if one != other)
        return f"the images have another order (first: {first!r})"
    names = ["split", "labels", *(field.name for field in fields(ManifestRow))]
    for name in (name for name in names if name not in but):
        found = [image_id for image_id, row in given.items() if getattr(row, name) != getattr(known[image_id], name)]
        if found:
            before, after = (_value(rows[found[0]], name, class_names) for rows in (known, given))
            has = "has" if len(found) == 1 else "have"
            title = TITLES.get(name, name)
            return f"{_images(found)} {has} another {title} (first: {found[0]!r}, before {before}, now {after})"
    return "the values of the classes in masks have changed"


def _images(ids: Sequence[str]) -> str:
    return plural(len(ids), "image")


def _is(ids: Sequence[str]) -> str:
    return "is" if len(ids) == 1 else "are"


def _value(row: ManifestRow, name: str, class_names: Sequence[str]) -> str:
    if name == "labels":
        return ", ".join(class_names[label] for label in row.labels) or "none"
    return str(getattr(row, name) or "none")
