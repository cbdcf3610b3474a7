"""Tables in text: the one place that draws them, for a terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tabulate import tabulate


def text_table(head: Sequence[str], rows: Iterable[Sequence[Any]], style: str = "pipe", align: str = "left") -> str:
    """Cells under each other; the first column, which names the rows, is always to the left.

    Args:
        head: names of the columns.
        rows: cells, shown as `str` gives them.
        style: of tabulate: "pipe" for Markdown, "simple" for a terminal.
        align: of the other columns, "left" or "right" (figures).
    """
    alignment = ["left", *[align] * (len(head) - 1)]
    return tabulate([[*map(str, row)] for row in rows], head, tablefmt=style, disable_numparse=True, colalign=alignment)
