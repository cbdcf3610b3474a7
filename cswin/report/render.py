"""Pages from templates: HTML (with automatic escaping) and Markdown."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from cswin.report.tables import text_table


def render(template: str, **values: Any) -> str:
    """The page that results from a template in `templates/` and values.

    Args:
        template: file name without .j2; values are escaped in .html files.
        values: the variables of the template; a missing one is an error.
    """
    return _environment().get_template(f"{template}.j2").render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("cswin.report"), autoescape=lambda name: name.endswith(".html.j2"), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["plain"] = plain
    environment.globals["table"] = text_table  # for Markdown; HTML templates import their own macro
    return environment


def plain(value: Any) -> str:
    """A value as text for readers: a dash for None, yes or no, lists with commas."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(plain, value))
    return str(value) or "–"
