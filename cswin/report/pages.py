"""Pages of a run for people: table, configuration, data, provenance. HTML that needs nothing but itself."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from string import Template
from typing import Any

import pandas as pd

from cswin.config.compare import flat
from cswin.config.settings import Section
from cswin.progress import size_text
from cswin.report.run import StageResult
from cswin.train.attempts import summaries

_PAGE = Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root { --ink: #1a1a1a; --quiet: #5c5c5c; --paper: #ffffff; --line: #d0d0d0; --mark: #fff1cc; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #ececec; --quiet: #b0b0b0; --paper: #17191c; --line: #45484d; --mark: #4a3a10; }
}
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 1.5rem; max-width: 78rem; }
h1 { font-size: 1.35rem; margin: 0 0 .3rem; } h2 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
p, summary { color: var(--quiet); max-width: 48rem; } summary { cursor: pointer; margin-top: 1rem; }
.wide { overflow-x: auto; } .wide + .wide { margin-top: 1.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); }
td { overflow-wrap: anywhere; min-width: 5rem; } th { font-weight: 600; white-space: nowrap; }
tr.differs { background: var(--mark); }
</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
"""
)


def table_page(run: str, table: pd.DataFrame) -> str:
    """The results table, a column per stage.

    Args:
        run: its name.
        table: final_acc.csv as text, as written: nothing is rounded or converted.
    """
    headings = [row["stage"] for _, row in table.iterrows()]
    rows = [[name, *table[name]] for name in table.columns if name != "stage"]
    intro = "One column per stage, figures as in final_acc.csv; accuracies in per cent with 95 % Wilson intervals (low, high)."
    return _page(f"{run}: results", [_paragraph(intro), _table(["", *headings], rows)])


def configuration_page(run: str, stages: list[StageResult], runtime: Section) -> str:
    """The resolved configuration of each stage, first what differs between them, and the settings of speed."""
    columns = [flat(stage.config.model_dump(mode="json")) for stage in stages]
    rows = [[key, *(column[key] for column in columns)] for key in columns[0]]
    differs = [len({str(value) for value in row[1:]}) > 1 for row in rows]
    headings = ["", *(stage.name for stage in stages)]
    some = [row for row, different in zip(rows, differs, strict=True) if different]
    return _page(
        f"{run}: configuration",
        [
            _paragraph("The resolved configuration: the only way by which settings reach the trainer."),
            _heading("What differs between stages") if some else "",
            _table(headings, some) if some else "",
            _heading("Every setting"),
            _table(headings, rows, marked=differs),
            _heading("What changes speed only"),
            _table(["", "value"], flat(runtime.model_dump(mode="json")).items()),
        ],
    )


def data_page(summary: dict[str, Any], shards: dict[str, int]) -> str:
    """Counts of a dataset.

    Args:
        summary: content of manifest.json.
        shards: number of MindRecord shards by split.
    """
    splits, names = summary["splits"], summary["class_names"]
    rows = []
    for split, facts in splits.items():
        counts = pd.Series(facts["counts"], index=names)
        rows.append(
            [
                split, f"{facts['images']:,}", size_text(facts["bytes"]), size_text(facts["largest"]), shards.get(split, 0),
                f"{counts.min():,} ({counts.idxmin()})", f"{counts.median():,.0f}", f"{counts.max():,} ({counts.idxmax()})",
            ]
        )  # fmt: skip
    headings = ["", "images", "size", "largest image", "shards", "smallest class", "median class", "largest class"]
    by_class = [[name, *(f"{splits[split]['counts'][i]:,}" for split in splits)] for i, name in enumerate(names)]
    return _page(
        "Data",
        [
            _paragraph(f"{len(names):,} classes; every image was decoded once before it was counted."),
            _table(headings, rows),
            _heading("Identity"),
            _table(["", "value"], [["manifest_hash", summary["manifest_hash"]], ["seed of the order", summary.get("seed")]]),
            _details("Images by class", _table(["class", *splits], by_class), opened=len(names) <= 50),
        ],
    )


def provenance_page(run: str, stages: list[StageResult]) -> str:
    """Who trained what when: each stage's result and each of its attempts."""
    parts = [
        _paragraph("One table per stage: its checkpoint, then one column per attempt, from attempts.jsonl. Times are UTC.")
    ]
    for stage in stages:
        record = stage.record or {}
        facts = [["checkpoint sha256", record.get("sha256")], ["best epoch", record.get("best_epoch")],
                 ["selected on", record.get("select_on")], ["manifest", record.get("manifest")]]  # fmt: skip
        tries = attempts(stage)
        keys = list(dict.fromkeys(key for facts_ in tries for key in facts_))
        rows = [[key, *(facts_.get(key) for facts_ in tries)] for key in keys]
        parts += [_heading(stage.name), _table(["", "value"], facts) if record else _paragraph("not finished")]
        parts += [_table(["", *(f"attempt {number}" for number in range(1, len(tries) + 1))], rows)] if tries else []
    return _page(f"{run}: provenance", parts)


def attempts(stage: StageResult) -> list[dict[str, Any]]:
    """The attempts at a stage, oldest first, as one flat mapping each; the configuration has a page of its own."""
    found = []
    for one in summaries(stage.attempts):
        start = {
            key: value for key, value in one.start.items() if key not in ("attempt", "event", "identity", "time", "config")
        }
        began = {} if one.from_step is None else {"resumed from step" if one.resumed else "from step": one.from_step}
        end = {"ended": one.ended, "reason": one.reason, "last step": one.step} if one.ended else {}
        found.append({"started": one.start["time"], **flat(start), **began, **end})
    return found


def _page(title: str, parts: Iterable[str]) -> str:
    return _PAGE.substitute(title=html.escape(title), body="\n".join(part for part in parts if part))


def _heading(text: str) -> str:
    return f"<h2>{html.escape(text)}</h2>"


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def _details(summary: str, body: str, opened: bool) -> str:
    return f"<details{' open' if opened else ''}><summary>{html.escape(summary)}</summary>\n{body}\n</details>"


def _table(headings: Sequence[str], rows: Iterable[Sequence[Any]], marked: Sequence[bool] = ()) -> str:
    """A table whose first column names the rows; `marked` rows stand out."""
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in headings)
    lines = []
    for number, (name, *values) in enumerate(rows):
        cells = "".join(f"<td>{html.escape(_text(value))}</td>" for value in values)
        style = ' class="differs"' if number < len(marked) and marked[number] else ""
        lines.append(f'<tr{style}><th scope="row">{html.escape(str(name))}</th>{cells}</tr>')
    return (
        f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n' + "\n".join(lines) + "\n</tbody></table></div>"
    )


def _text(value: Any) -> str:
    """A value as a person reads it: nothing for None, yes and no, lists with commas."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return str(value) or "–"
