"""Image ids as file names: which ids are safe, and the file name of an id."""

import hashlib
from urllib.parse import quote

_MOST_CHARACTERS = 200


def is_safe_id(image_id: str) -> bool:
    """Whether an id is a plain name: 1 to 200 printable characters, no path separator, no leading dot."""
    return (
        0 < len(image_id) <= _MOST_CHARACTERS
        and image_id.isprintable()
        and not image_id.startswith(".")
        and "/" not in image_id
        and "\\" not in image_id
    )


def safe_name(image_id: str) -> str:
    """A file name (without suffix) for any id: letters, digits and ``_-.~`` stay, others are %-encoded.

    Different ids give different names. A name has no path separator, no leading dot and at most 200 characters.
    """
    encoded = image_id.encode("utf-8", "surrogatepass")
    name = quote(encoded, safe="")
    if name.startswith("."):
        name = "%2E" + name[1:]
    if not name or len(name) > _MOST_CHARACTERS:
        digest = hashlib.blake2b(encoded, digest_size=16).hexdigest()
        name = f"{name[:150]}%{digest}"
    return name
