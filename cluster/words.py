"""Counts in sentences for people; apart from `connect`, so that what needs no Ray can have them without it."""


def plural(count: float, noun: str) -> str:
    """A count and its noun: "1 worker", "1,464 images", "0 classes"."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,.12g} {noun}{ending}"
