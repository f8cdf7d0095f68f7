"""What the preparation says of a manifest: its splits and classes, what cannot be used, and what may be a slip."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import takewhile

from cluster.words import plural
from jobs.run.config_keys import Config
from storage.location import Location
from storage.manifest import Manifest

UNREADABLE_SHOWN = 3
PAIRS_SHOWN, MOST_NAMES = 5, 2000  # of class names that may be one
SHORT = 5  # letters below which class names are not held against each other: "cat" and "bat"


def describe_manifest(manifest: Manifest, place: Location, config: Config, *, is_found: bool) -> None:
    """Prints a manifest's splits and classes, what cannot be used, and what may be a slip.

    Args:
        place: where it will be.
        is_found: its class names are whatever labels occurred.
    """
    splits: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    problems: dict[str, list[str]] = defaultdict(list)  # ids
    unreadable: list[str] = []
    num_unlabelled, with_file = 0, Counter[str]()
    columns = ["image_id", "uri", "split", "labels", "problem", "height", "mask_uri", "saliency_uri"]
    for batch in manifest.iter_columns(columns):
        splits.update(batch["split"])
        for noun, column in (("a mask", "mask_uri"), ("a saliency map", "saliency_uri")):
            with_file.update([noun] * sum(uri is not None for uri in batch[column]))
        labels.update(manifest.class_names[label] for found in batch["labels"] for label in found)
        num_unlabelled += sum(not (found or bad) for found, bad in zip(batch["labels"], batch["problem"], strict=True))
        for image_id, problem in zip(batch["image_id"], batch["problem"], strict=True):
            if problem:
                problems[problem].append(image_id)
        sizes = zip(batch["uri"], batch["height"], batch["problem"], strict=True)
        unreadable += [uri for uri, height, problem in sizes if height is None and not problem]
    print(f"prepare: {plural(manifest.num_images, 'image')} in {place}")
    print("  splits:  " + ", ".join(f"{name or 'unnamed'} {count:,}" for name, count in splits.items()))
    print("  classes: " + ", ".join(f"{name} {labels[name]:,}" for name in manifest.class_names))
    if num_unlabelled:
        print(f"  without a label: {num_unlabelled:,}; not trained on, and mapped with maps.classes=predicted alone")
    if with_file:
        print("  with:    " + ", ".join(f"{noun} {count:,}" for noun, count in with_file.items()))
    if not any(name in config.data.val_splits for name in splits):
        named = ", ".join(config.data.val_splits)
        why = f"no image is in the split {named}" if named else "no split is named for it"
        predicted = "" if any(name in config.predicted_splits for name in splits) else ", no masks are predicted"
        print(
            f"  no validation: {why}. All can be trained on and mapped{predicted}. "
            "If a split is for validation: --set data.val_splits=NAME."
        )
    if is_found:
        _doubt(manifest.class_names, labels)
    for problem, ids in sorted(problems.items(), key=lambda item: -len(item[1])):
        print(f"  skipped by every step: {len(ids):,} (first: {ids[0]!r}), because {problem}")
    if unreadable:
        first = ", ".join(unreadable[:UNREADABLE_SHOWN])
        print(
            f"  cannot be opened now: {plural(len(unreadable), 'image')} (first: {first}); "
            "steps will skip those that still cannot, with the reason."
        )


def _doubt(names: Sequence[str], count: Mapping[str, int]) -> None:
    """Asks about names that may be slips."""
    pairs = alike(names) if len(names) <= MOST_NAMES else []
    for name, other in pairs[:PAIRS_SHOWN]:
        print(f"  two classes, or one misspelt? {name!r} {count[name]:,}, {other!r} {count[other]:,}")
    if len(pairs) > PAIRS_SHOWN:
        print(f"  and {len(pairs) - PAIRS_SHOWN:,} more such pairs")
    for name in names:
        if "," in name and {part.strip() for part in name.split(",")} & set(names):
            print(f"  one class, or several? {name!r} {count[name]:,}; labels are separated by ';' or '|'")


def alike(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of class names that differ by case, by punctuation or by one slip, never of a digit.

    A slip is two letters that changed places or, unless the names are short, a letter more, less or other.
    """
    plain = {name: re.sub(r"[\W_]+", "", name.casefold()) for name in names}
    numbers = {name: re.findall(r"\d+", name) for name in names}
    return [
        (name, other)
        for number, name in enumerate(names)
        for other in names[number + 1 :]
        if plain[name] and numbers[name] == numbers[other] and _is_alike(plain[name], plain[other])
    ]


def _is_alike(one: str, other: str) -> bool:
    if one == other or abs(len(one) - len(other)) > 1:
        return one == other
    start = _num_equal(one, other)
    end = _num_equal(one[start:][::-1], other[start:][::-1])
    rest = one[start : len(one) - end], other[start : len(other) - end]
    has_changed_places = len(rest[0]) == 2 and rest[0] == rest[1][::-1]
    return has_changed_places or (max(map(len, rest)) == 1 and max(len(one), len(other)) >= SHORT)


def _num_equal(one: str, other: str) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
