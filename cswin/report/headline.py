"""The main result: top-1 of each stage with its interval, beside the reported and the published one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cswin.layout import RunLayout
from cswin.report.tables import text_table

HEAD = ("stage", "weights", "top-1, %", "95 % interval", "reported, %", "published, %")
NOTE = (
    "In brackets: this run's difference from that figure, in percentage points. Reported figures count whole batches of 128 images "
    "only; the difference from them is that of the same counting here."
)


def headline(row: Mapping[str, Any]) -> list[str]:
    """The cells of one row of final_acc, in the order of `HEAD`. The row comes from the JSON or, as text, from the CSV."""
    which = row["select_by"]
    low, high = (float(row[f"top1_{which}_{end}"]) for end in ("low", "high"))
    return [
        row["stage"],
        {"raw": "raw", "ema": "EMA"}[which],
        f"{float(row[f'top1_{which}']):.2f}",
        f"{low:.2f} to {high:.2f}",
        *(_compared(row[f"{name}_top1"], row[f"minus_{name}"]) for name in ("reported", "paper")),
    ]


def _compared(value: Any, difference: Any) -> str:
    """An expected figure and the difference from it; both may be missing (None, or empty in a CSV)."""
    if value in (None, ""):
        return "–"
    return f"{float(value):.2f}" + ("" if difference in (None, "") else f" ({float(difference):+.2f})")


def outcome(folder: Path) -> str:
    """The last lines of a run's output: the table, and the paths of the other results.

    Args:
        folder: results/<run> with final_acc.json.
    """
    run = RunLayout(folder)
    rows = json.loads(run.table_json.read_text(encoding="utf-8"))["rows"]
    return (
        f"\n{text_table(HEAD, map(headline, rows), 'simple', 'right')}\n\n"
        f"figures and curves: {run.page('table')}; what was trained, and how to use it: {run.card}\n"
        "all pages and pictures in one file: snakemake --report report.html\n"
    )
