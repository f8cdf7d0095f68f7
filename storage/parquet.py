"""Names what is wrong with a Parquet or Arrow file. pyarrow raises many kinds of errors for damaged bytes."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from storage.errors import StorageError
from storage.location import Location


@contextmanager
def parquet_errors(place: Location, advice: str = "") -> Iterator[None]:
    """Turns pyarrow's errors about the bytes of a file into one sentence. Errors of the store are not changed.

    Use it inside `Location.open_input`, which would take an OSError of pyarrow for an error of the store.

    Args:
        advice: what to do, as the end of the sentence.

    Raises:
        ValueError: it is not such a file, or it is damaged.
    """
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, StorageError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        reason = str(error).strip().split("\n")[0].rstrip(".")[:200] or type(error).__name__
        hint = f"; {advice}" if advice else ""
        raise ValueError(f"{place}: damaged, or not a Parquet file ({reason}){hint}.") from error
