"""The templates of web pages: how they are filled, and the style sheet that they share."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from jobs.evaluation.metrics import trained_in_words
from jobs.reporting.thumbnails import colour_of
from jobs.steps.progress import duration

NO_VALUE = "\N{EN DASH}"
PARTS = Path(__file__).parent  # of the pages: *.html.j2, report.css, report.js


def style() -> Markup:
    """The style sheet of all pages."""
    return Markup((PARTS / "report.css").read_text(encoding="utf-8"))


@cache
def environment() -> jinja2.Environment:
    """Everything a template is given is escaped: class names, ids and reasons come from other people's files.

    Compiling the template of a report takes as long as everything else in it, so compiled templates are kept.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PARTS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "colour_of": colour_of,
        "duration": duration,
        "number": _number,
        "setting": _setting,
        "signed": _signed,
        "trained_mark": _trained_mark,
    }
    return environment


def _number(value: float | None, digits: int = 3) -> str:
    return NO_VALUE if value is None else f"{value:.{digits}f}"


def _signed(value: float) -> str:
    """A value with its sign, which decides: a small one has as many digits as it needs."""
    return f"{value:+.1f}" if abs(value) >= 0.05 else f"{value:+.1g}"


def _trained_mark(record: Mapping[str, Any]) -> Markup:
    """The mark of metrics on masks that the network was trained on, before which stands a space; else ''."""
    words = trained_in_words(record["splits"], record.get("trained_on", ()))
    return Markup(' <span class="flag">{}</span>').format(words) if words else Markup("")


def _setting(value: Any) -> str:
    if value is None or value in ("", [], ()):
        return "unset"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
