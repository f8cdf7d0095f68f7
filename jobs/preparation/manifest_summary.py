"""The summary of a manifest that the preparation prints: splits, classes, unusable images, and possible mistakes."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import takewhile

from cluster.words import plural
from jobs.preparation.split_roles import describe_roles
from jobs.run.config_keys import Config
from jobs.run.selection import unused_saliency
from storage.manifest import Manifest
from storage.text import printable

UNREADABLE_SHOWN = 3
FEW_VALIDATED = 3  # with fewer validation images of a class, the classes of all are printed
PAIRS_SHOWN, MOST_NAMES = 5, 2000  # pairs of similar class names that are shown; class names that are compared
NO_CLASS = ("none", "nothing", "negative", "empty", "no finding")  # usual labels of images without any class
SIGNS = (",", "/", "+", "&", " ")  # separators of labels in tables of other programs
SHORT = 5  # shorter class names, such as "cat" and "bat", may differ by a letter


def describe_manifest(
    manifest: Manifest,
    run_uri: str,
    config: Config,
    unreadable: Sequence[tuple[str, str]] = (),
    *,
    is_found: bool,
) -> None:
    """Prints a manifest's splits and classes, the unusable images, and possible mistakes.

    Args:
        run_uri: the run in which it will be.
        unreadable: (address, reason) of each image that cannot be opened.
        is_found: the class names are all labels that occurred.
    """
    splits: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    validated: Counter[str] = Counter()
    problems: dict[str, list[str]] = defaultdict(list)  # ids
    num_unlabelled = num_negative = 0
    with_file = Counter[str]()
    columns = ["image_id", "split", "labels", "problem", "mask_uri", "saliency_uri", "negative"]
    for batch in manifest.iter_columns(columns):
        splits.update(batch["split"])
        for noun, column in (("a mask", "mask_uri"), ("a saliency map", "saliency_uri")):
            with_file.update([noun] * sum(uri is not None for uri in batch[column]))
        labels.update(manifest.class_names[label] for found in batch["labels"] for label in found)
        for found, split, bad in zip(batch["labels"], batch["split"], batch["problem"], strict=True):
            if split in config.data.val_splits and not bad:
                validated.update(manifest.class_names[label] for label in found)
        num_negative += sum(batch["negative"])
        num_unlabelled += sum(
            not (found or bad or negative)
            for found, bad, negative in zip(batch["labels"], batch["problem"], batch["negative"], strict=True)
        )
        for image_id, problem in zip(batch["image_id"], batch["problem"], strict=True):
            if problem:
                problems[problem].append(image_id)
    print(f"prepare: {plural(manifest.num_images, 'image')} in the run {run_uri}")
    print("  splits:  " + ", ".join(f"{printable(name) or 'no split'} {count:,}" for name, count in splits.items()))
    print("  classes: " + ", ".join(f"{name} {labels[name]:,}" for name in manifest.class_names))
    if validated and any(validated[name] < FEW_VALIDATED for name in manifest.class_names):
        counts = ", ".join(f"{name} {validated[name]:,}" for name in manifest.class_names)
        print(f"  validation: {counts}; the figures of a class with fewer than {FEW_VALIDATED} images say little")
    if num_unlabelled:
        print(f"  without a label: {num_unlabelled:,}; not used for training, mapped only with maps.classes=predicted")
    if num_negative:
        print(f"  negative: {num_negative:,}; used for training as images that show none of the classes; never mapped")
    if with_file:
        print("  with:    " + ", ".join(f"{noun} {count:,}" for noun, count in with_file.items()))
    if sentence := unused_saliency(manifest, config):
        print(f"  saliency: {sentence}, give --set seeds.background_cue=saliency")
    for line in describe_roles(config, splits):
        print(f"  {line}")
    for line in _nothing_to_tell_apart(manifest, config):
        print(f"  {line}")
    if is_found:
        _doubt(manifest.class_names, labels)
    for problem, ids in sorted(problems.items(), key=lambda item: -len(item[1])):
        print(f"  skipped by every step: {len(ids):,} (first: {ids[0]!r}), because {problem}")
    if unreadable:
        first = ", ".join(f"{uri}: {reason}" for uri, reason in unreadable[:UNREADABLE_SHOWN])
        print(
            f"  cannot be opened now: {plural(len(unreadable), 'image')} (first: {first}); "
            "steps will skip the images that still cannot be opened, and record the reason."
        )


def _nothing_to_tell_apart(manifest: Manifest, config: Config) -> list[str]:
    """A sentence if all training images have the same label, because the classifier then has no counterexamples."""
    count, number = Counter[int](), 0
    for batch in manifest.iter_columns(["labels", "split", "problem", "negative"]):
        for found, split, problem, negative in zip(*batch.values(), strict=True):
            is_trained_on = split in config.data.train_splits if config.data.train_splits else True
            if is_trained_on and split not in config.data.val_splits and not problem and (found or negative):
                count.update(found)
                number += 1
    names = [manifest.class_names[label] for label, times in count.items() if times == number]
    if not names:
        return []
    return [
        f"every training image has the label {names[0]!r}, so the classifier has nothing to tell it apart from. Add "
        "images without it: images labelled NAME with --negative-label NAME, or images without a label with "
        "--unlabelled-are-negative."
    ]


def _doubt(names: Sequence[str], count: Mapping[str, int]) -> None:
    """Asks about names that may be mistakes."""
    pairs = alike(names) if len(names) <= MOST_NAMES else []
    for name, other in pairs[:PAIRS_SHOWN]:
        pair = f"{name!r} {count[name]:,}, {other!r} {count[other]:,}"
        remedy = "correct its labels, or move its images to one folder, and prepare again"
        print(f"  two classes, or one misspelt? {pair}. If it is one class, {remedy}.")
    if len(pairs) > PAIRS_SHOWN:
        print(f"  and {len(pairs) - PAIRS_SHOWN:,} more such pairs")
    for name, sign in _several_names(names):
        print(
            f"  one class, or several? {name!r} {count[name]:,}; labels are separated by ';' or '|', or give "
            f"--label-separator {sign!r}"
        )
    for name in names:
        if name.casefold() == "background":
            print(
                f"  a class called {name!r}? In masks, 0 is the background already. If images with only this label "
                f"show none of the classes, give --negative-label {name}"
            )
        elif name.casefold() in NO_CLASS:
            print(
                f"  a class called {name!r}? If images with only this label show none of the classes, give "
                f"--negative-label {name!r}"
            )
    if names and all(name.isdigit() for name in names):
        print("  classes are numbers. If they stand for names, give these in order: --classes NAME0,NAME1,...")


def _several_names(names: Sequence[str]) -> list[tuple[str, str]]:
    """Names that consist of other names, and the separator between these."""
    known, found = set(names), list[tuple[str, str]]()
    for name in names:
        for sign in SIGNS:
            parts = [part.strip() for part in name.split(sign)]
            # names may have spaces, so all the words must be classes; with other separators one is enough
            if len(parts) > 1 and (set(parts) <= known if sign == " " else set(parts) & known):
                found.append((name, sign))
                break
    return found[:PAIRS_SHOWN]


def alike(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of class names that differ only in case or punctuation, or by one typing error, but not in a digit.

    A typing error is two exchanged letters, an "s" at the end or, unless the names are short, one more, missing or
    different letter.
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
    is_plural = one == f"{other}s" or other == f"{one}s"
    return has_changed_places or is_plural or (max(map(len, rest)) == 1 and max(len(one), len(other)) >= SHORT)


def _num_equal(one: str, other: str) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
