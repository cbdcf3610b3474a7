"""The results table for readers: stages side by side, the main figures, and notes on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd

from cswin.report.tables import text_table

ABREAST = 3  # stages in one table; more do not fit into 80 columns
HASH = 12  # digits of a hash that are shown

Row = dict[str, Any]


def markdown_table(table: pd.DataFrame, title: str) -> str:
    """Markdown that is also readable as plain text: at most 80 columns wide if the names of the stages are short.

    Args:
        table: of `results_table`.
        title: heading.
    """
    rows = [{key: None if pd.isna(value) else value for key, value in row.items()} for row in table.to_dict("records")]
    lines = [f"# {title}", ""]
    for start in range(0, len(rows), ABREAST):
        head, *cells = _cells(rows[start : start + ABREAST])
        lines += [text_table(head, cells, align="right"), ""]
    return "\n".join([*lines, *_notes(rows)]) + "\n"


def _cells(rows: list[Row]) -> Iterator[list[str]]:
    """Lines of cells; a line that is empty for every stage is left out."""
    yield ["", *(row["stage"] for row in rows)]
    for label, cell in _LINES:
        cells = [cell(row) for row in rows]
        if any(cells):
            yield [label, *(text or "–" for text in cells)]


def _value(key: str, pattern: str = "{}") -> Callable[[Row], str]:
    return lambda row: "" if row[key] is None else pattern.format(row[key])


def _interval(key: str) -> Callable[[Row], str]:
    return lambda row: f"{row[key + '_low']:.2f}–{row[key + '_high']:.2f}"


def _compared(key: str) -> Callable[[Row], str]:
    return lambda row: _value(key.format(row["select_by"]), "{:.2f}")(row)


def _changes(row: Row) -> str:
    return "" if row["mcnemar_p"] is None else f"-{row['mcnemar_lost']} +{row['mcnemar_gained']}"


_LINES: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("**top-1, EMA, %**", _value("top1_ema", "{:.2f}")),
    ("95 % interval", _interval("top1_ema")),
    ("**top-1, raw, %**", _value("top1_raw", "{:.2f}")),
    ("95 % interval", _interval("top1_raw")),
    ("published top-1, %", _value("paper_top1", "{:.2f}")),
    ("difference", _value("minus_paper", "{:+.2f}")),
    ("verdict", _value("verdict_paper")),
    ("top-1, whole batches, %", _compared("top1_{}_whole_batches")),
    ("reported top-1, %", _value("reported_top1", "{:.2f}")),
    ("difference", _value("minus_reported", "{:+.2f}")),
    ("verdict", _value("verdict_reported")),
    ("top-5, EMA, %", _value("top5_ema", "{:.2f}")),
    ("top-5, raw, %", _value("top5_raw", "{:.2f}")),
    ("epochs", lambda row: f"{row['start_epoch']}–{row['epochs']}"),
    ("checkpoint's epoch", _value("best_epoch")),
    ("chosen on", _value("select_on")),
    ("chosen by", _value("select_by")),
    ("images", _value("n", "{:,}")),
    ("images lost, gained", _changes),
    ("p (McNemar)", _value("mcnemar_p", "{:.2g}")),
    ("images/s", _value("images_per_s", "{:,.0f}")),
    ("hours of training", _value("train_hours", "{:.2f}")),
    ("waiting for images", _value("data_wait_hours", "{:.2f}")),
    ("between attempts", _value("between_hours", "{:.2f}")),
    ("attempts", _value("attempts")),
    ("resumed", _value("resumes")),
    ("without recorded end", lambda row: str(row["attempts_unended"] or "")),
    ("devices", _value("devices")),
    ("checkpoint", lambda row: row["checkpoint_sha256"][:HASH]),
    ("configuration", lambda row: row["config_sha256"][:HASH]),
    ("data", lambda row: row["manifest_sha256"][:HASH]),
    ("code", lambda row: "several" if " " in row["git_commit"] else _commit(row["git_commit"])),
)


def _commit(text: str) -> str:
    commit, dirty, _ = text.partition("-dirty")
    return commit[:HASH] + ("+" if dirty else "")


def _notes(rows: list[Row]) -> list[str]:
    """Notes for quoting a figure."""
    notes = [
        "Every image of the validation set is counted once. Intervals are 95 % Wilson",
        "intervals; they do not cover the variation between trainings.",
    ]
    if any(row["select_on"] == "val" for row in rows):
        notes += ["Chosen on val: the epoch was chosen on the images that are reported, so the", "figure is optimistic."]
    if any(row["select_on"] == "minival" for row in rows):
        notes += [
            "Chosen on minival: the epoch was chosen on training images that were held out,",
            "not on the validation set.",
        ]
    if any(row["reported_top1"] is not None for row in rows):
        notes += ["Reported figures count whole batches of 128 images: compare them with that line only."]
    if any(row["mcnemar_p"] is not None for row in rows):
        notes += ["Images lost, gained: compared with the previous stage, for the selecting weights;", "p is the probability of such a difference if both stages are equally good."]  # fmt: skip
    if any(row["verdict_reported"] or row["verdict_paper"] for row in rows):
        notes += ["Verdict: by a rule fixed in advance (docs/results.md); `cswin verdict` gives its interval."]
    if any(row["attempts_unended"] for row in rows):
        notes += ["An attempt without a recorded end counts up to its last logged step only."]
    if any("-dirty" in row["git_commit"] for row in rows):
        notes += ["Code with +: files differed from that commit."]
    return [*notes, "", "All columns: final_acc.csv, final_acc.json; their meaning: results/README.md."]
