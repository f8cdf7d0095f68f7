"""Output for terminals and logs: names in it cannot move the cursor or change colours or the terminal's title."""

import re
from typing import IO

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all control characters except tab and newline


class PlainOutput:
    """A text stream that writes control characters as escapes, such as ``\\x1b`` (it starts a terminal's commands).

    Names of images, classes and hosts come from files that others have written. Progress bars return to the beginning
    of their line, so a carriage return at the beginning of a text is kept.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        start = "\r" if text.startswith("\r") else ""
        escaped = _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text.removeprefix("\r"))
        return self._stream.write(start + escaped)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)
