"""Pages from templates: HTML (escaped by itself) and Markdown."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from cswin.report.tables import text_table


def render(template: str, **values: Any) -> str:
    """The page that a template in `templates/` makes of the values.

    Args:
        template: file name without .j2; what ends in .html is escaped.
        values: what the template names; a missing one is an error.
    """
    return _environment().get_template(f"{template}.j2").render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("cswin.report"), autoescape=lambda name: name.endswith(".html.j2"), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["plain"] = plain
    environment.globals["table"] = text_table  # in Markdown; pages in HTML import their own
    return environment


def plain(value: Any) -> str:
    """A value as a person reads it: a dash for none, yes and no, lists with commas."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(plain, value))
    return str(value) or "–"
