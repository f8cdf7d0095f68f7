"""Marks errors of a launch that has deleted a step's results, so that its command is not advised to do so again."""

from collections.abc import Iterator
from contextlib import contextmanager

NOTE = "The step was started again by this launch."


@contextmanager
def restarted(is_restart: bool) -> Iterator[None]:
    """Marks all errors and interruptions that leave the block, if the step was started again before it."""
    try:
        yield
    except BaseException as error:
        if is_restart:
            error.add_note(NOTE)
        raise


def has_restarted(error: BaseException | None) -> bool:
    """Whether an error, or one that caused it, is marked."""
    while error is not None:
        if NOTE in getattr(error, "__notes__", ()):
            return True
        error = error.__cause__
    return False
