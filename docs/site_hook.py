"""For `make docs`: links to files beside `docs/` become plain names on the site, which has no such pages.

On a code host the same links work; `tests/project/test_docs.py` checks that what they name is there. Flags and other
short code get a class, so that `site.css` keeps them on one line.
"""

import re
from typing import Any

_SHORT_CODE = re.compile(r"<code>(?=[^<\n]{1,36}</code>)")
_OUTSIDE = re.compile(r"\[([^\]]+)\]\((\.\./[^)]+)\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    return _OUTSIDE.sub(lambda link: _named(link[1], link[2].removeprefix("../")), markdown)


def on_page_content(html: str, **_: Any) -> str:
    return _SHORT_CODE.sub('<code class="short">', html)


def _named(text: str, path: str) -> str:
    return f"`{path}`" if text.strip("`") == path else f"{text} (`{path}`)"
