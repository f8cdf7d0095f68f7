"""For `make docs`: links to files beside `docs/` become plain names on the site, which has no such pages.

On a code host the same links work; `tests/project/test_docs.py` checks that what they name is there.
"""

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\((\.\./[^)]+)\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    return _OUTSIDE.sub(lambda link: _named(link[1], link[2].removeprefix("../")), markdown)


def _named(text: str, path: str) -> str:
    return f"`{path}`" if text.strip("`") == path else f"{text} (`{path}`)"
