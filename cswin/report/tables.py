"""Tables as text, for a terminal and for Markdown. All tables are made here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tabulate import tabulate


def text_table(head: Sequence[str], rows: Iterable[Sequence[Any]], style: str = "pipe", align: str = "left") -> str:
    """A table of aligned columns; the first one, which names the rows, is always left-aligned.

    Args:
        head: names of the columns.
        rows: cells, converted by `str`.
        style: of tabulate: "pipe" for Markdown, "simple" for a terminal.
        align: of the other columns, "left" or "right" (figures).
    """
    alignment = ["left", *[align] * (len(head) - 1)]
    return tabulate([[*map(str, row)] for row in rows], head, tablefmt=style, disable_numparse=True, colalign=alignment)
