"""Counts in sentences for people; in a module of its own, so that code without Ray can use it."""

from collections.abc import Sequence


def plural(count: float, noun: str) -> str:
    """A count and its noun, such as "1 worker", "1,464 images" or "0 classes"."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,.12g} {noun}{ending}"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence, such as "maps, seeds and predictions"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
