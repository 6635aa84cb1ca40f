"""Render templates: HTML pages that need no other file and no network, and Markdown."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2


@cache
def _environment(*, autoescape: bool) -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ml_filter", ""),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = lambda value: f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"
    environment.filters["cell"] = lambda value: " ".join(str(value).replace("|", "\\|").split())
    environment.filters["fenced"] = _fenced
    return environment


def render(template: str, **values: Any) -> str:
    """Render a page, with all values escaped.

    Args:
        template: path below `ml_filter`, such as `agreement/templates/agreement.html`.
        values: variables of the template; a missing one raises `jinja2.UndefinedError`.
    """
    return _environment(autoescape=True).get_template(template).render(**values)


def render_text(template: str, **values: Any) -> str:
    """Render Markdown; nothing is escaped. The filter `cell` makes a value safe for a cell of a table."""
    return _environment(autoescape=False).get_template(template).render(**values)


def _fenced(text: str) -> str:
    """A YAML code block. Its fence is longer than any run of backticks in the text."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}yaml\n{text}\n{fence}"
