"""Keeps a file of an export that a person has changed, when the export writes the file again."""

import filecmp
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.exports.format_table import FORMATS
from storage.location import Location

FILES = tuple(row.one_file for row in FORMATS.values() if row.one_file)


@contextmanager
def earlier_files_kept(out: Location) -> Iterator[None]:
    """Puts the `FILES` of a local export aside during the block, and keeps those that the block writes differently."""
    stamp, aside = time.strftime("%Y%m%d-%H%M%S", time.gmtime()), dict[Path, Path]()
    for name in FILES if out.is_local else ():
        place = Path(out.uri, name)
        if place.is_file():
            aside[place] = place.with_name(f"{place.stem}.before-{stamp}{place.suffix}")
            os.replace(place, aside[place])
    try:
        yield
    finally:
        for place, earlier in aside.items():
            if not place.exists():  # the block failed
                os.replace(earlier, place)
            elif filecmp.cmp(place, earlier, shallow=False):
                earlier.unlink()
            else:
                print(f"export: {place.name} was another file before; that one is kept as {earlier}")
