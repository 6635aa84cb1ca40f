"""Fill the HTML templates. Values are escaped; pages need no other file and no network."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2


@cache
def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ml_filter", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = lambda value: f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"
    return environment


def render(template: str, **values: Any) -> str:
    """The page of a template, named by its path below `ml_filter`, such as `agreement/templates/agreement.html`."""
    return _environment().get_template(template).render(**values)


def render_text(template: str, **values: Any) -> str:
    """The text of a template, with nothing escaped."""
    return _environment().overlay(autoescape=False).get_template(template).render(**values)
