"""Finds damage in a manifest's file: in its footer by comparisons, in its pages by their checksums.

Parquet has checksums for pages, but none for the footer, which has the class list, the columns and their places.
"""

import json
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from storage.checksums import checksum
from storage.location import Location

ADVICE = (
    "put the manifest back from a copy, or delete it and make it again with the same prepare_dataset command "
    "(run.json has it)"
)

SEAL = "seal"
_NOT_SEALED = (SEAL.encode(), b"ARROW:schema")  # pyarrow adds the latter
_FIRST_PAGE = len(b"PAR1")


def seal(metadata: Mapping[str, str]) -> str:
    """The checksum of everything that is in no column: the class list, moves, the home and additions."""
    return checksum(json.dumps(metadata, sort_keys=True).encode())


def require_undamaged_footer(location: Location, found: pq.FileMetaData, columns: pa.Schema) -> None:
    """Refuses a manifest if its numbers of rows differ, its seal is broken, or a column has another name or type.

    Manifests of earlier versions have no seal.

    Args:
        columns: all columns that a manifest may have.

    Raises:
        ValueError: the file is damaged, or of a newer version.
    """
    if sum(found.row_group(group).num_rows for group in range(found.num_row_groups)) != found.num_rows:
        raise _damaged(location, "its numbers of rows differ")
    stored = found.metadata or {}
    own = {key.decode(): value.decode() for key, value in stored.items() if key not in _NOT_SEALED}
    if SEAL.encode() in stored and stored[SEAL.encode()].decode() != seal(own):
        raise _damaged(location, "its class list, or what else is in no column, has changed")
    for field in found.schema.to_arrow_schema():
        if field.name not in columns.names or field.type != columns.field(field.name).type:
            raise _damaged(location, f"column {field.name!r}: {field.type}; or a newer version made it")


def require_columns_in_place(location: Location, found: pq.FileMetaData) -> None:
    """Refuses a manifest whose columns are not one after the other, so that pages are read twice or not at all.

    Call it after all pages were read: pyarrow ends the process for some damaged footers.

    Raises:
        ValueError: the file is damaged.
    """
    place = _FIRST_PAGE
    for group in map(found.row_group, range(found.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
            if start != place or chunk.data_page_offset < start:
                raise _damaged(location, "its columns are in other places")
            place += chunk.total_compressed_size


def _damaged(location: Location, what: str) -> ValueError:
    return ValueError(f"{location}: damaged ({what}); {ADVICE}.")
