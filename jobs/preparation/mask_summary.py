"""The summary of masks that the preparation prints: their values, and whether these can be classes of their images."""

from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from cluster.words import plural
from storage.errors import BadImage
from storage.images import read_many
from storage.location import Location
from storage.manifest import ManifestRow, resolve_address
from storage.masks import mask_colours, mask_values

Item = TypeVar("Item")

MASKS_LOOKED_AT = 100
VALUES_SHOWN = 8


def describe_masks(
    rows: Sequence[ManifestRow],
    class_names: Sequence[str],
    class_values: Sequence[int],
    root: Location,
    drawn: set[str],
) -> list[str]:
    """Sentences about masks that are not of the documented kind; it reads a sample of the masks.

    Args:
        root: the folder of the run's own files.
        drawn: masks that were made from outlines, which need no check.
    """
    named = [row for row in rows if row.mask_uri and row.mask_uri not in drawn and not row.problem]
    chosen = evenly(named, MASKS_LOOKED_AT)
    uris = [resolve_address(str(row.mask_uri), root, {}) for row in chosen]
    notes, looked_at = [], f"of {plural(len(chosen), 'checked mask')}"
    values_of = dict[str, int](zip(class_names, class_values, strict=True))
    not_known = 255 if max(class_values, default=0) < 255 else 65535
    refused, foreign = dict[str, list[str]](), Counter[int]()
    num_foreign = num_empty = 0
    others: list[ManifestRow] = []
    for row, uri, found in zip(chosen, uris, read_many(uris, mask_values), strict=True):
        if isinstance(found, BadImage):
            refused.setdefault(found.reason, []).append(uri)
            continue
        unlisted = [value for value in found if value not in (0, not_known, 255, *class_values)]
        foreign.update(unlisted)
        num_foreign += bool(unlisted)
        num_empty += not unlisted and not_known in found and not set(found) & set(class_values)
        own = {class_values[label] for label in row.labels}
        if row.labels and (set(found) & set(class_values)) - own:
            others.append(row)
    for reason, places in refused.items():
        colours = _colours(places[0], reason)
        notes.append(f"{looked_at}, {len(places):,} cannot be used (first: {places[0]}): {reason}.{colours}")
    if num_foreign:
        shown = ", ".join(f"{value} in {count:,}" for value, count in foreign.most_common(VALUES_SHOWN))
        classes = ", ".join(f"{value} ({name})" for name, value in list(values_of.items())[:VALUES_SHOWN])
        example = next(iter(foreign))
        notes.append(
            f"{looked_at}, {num_foreign:,} have other values than 0 (background), {classes} and {not_known} "
            f"(unknown): {shown}. These pixels count as unknown. If they are classes: --mask-values "
            f"{example}={class_names[0]},..."
        )
    if num_empty:
        notes.append(
            f"{looked_at}, {num_empty:,} have only 0 and {not_known}, and {not_known} means unknown. If it "
            f"is the object, give --mask-values {not_known}={'label' if len(class_names) > 1 else class_names[0]}."
        )
    if others:
        first = others[0]
        names = ", ".join(class_names[label] for label in first.labels)
        notes.append(
            f"{looked_at}, {len(others):,} have a class that is not a label of their image (first: "
            f"{first.image_id!r}, labelled {names}). If masks have 0 and 1 for every class: "
            "--mask-values 1=label. If their values follow another order of the classes: --classes A,B,C in that order."
        )
    return notes


def evenly(items: Sequence[Item], most: int) -> Sequence[Item]:
    """At most ``most`` of the items, spread evenly."""
    step = max(1, -(-len(items) // most))
    return items[::step]


def _colours(uri: str, reason: str) -> str:
    if "pixels" not in reason:
        return ""
    try:
        colours = mask_colours(uri)
    except BadImage:
        return ""
    return (
        f" Its colours: {', '.join(f'#{red:02x}{green:02x}{blue:02x}' for red, green, blue in colours[:VALUES_SHOWN])}."
    )
