"""Output for terminals and logs: a name in it can neither move the cursor nor change colours or the title."""

import re
from typing import TextIO

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all control characters but the tabulator and the newline


class PlainOutput:
    """A text stream that writes control characters as escapes, ``\\x1b`` for the one that begins a terminal's commands.

    Names of images, classes and hosts come from files that others have written. Progress bars return to the beginning
    of their line, so a carriage return at the beginning of what is written stays.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        start = "\r" if text.startswith("\r") else ""
        escaped = _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text.removeprefix("\r"))
        return self._stream.write(start + escaped)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)
