"""HTML pages about a run: results, configuration, data, provenance. Each page is a single file without external resources."""

from __future__ import annotations

import base64
from typing import Any

import pandas as pd

from cswin.config.compare import flat
from cswin.config.fields import Section
from cswin.data.store.duplicates import sentence
from cswin.progress import size_text
from cswin.report import headline
from cswin.report.render import render
from cswin.report.run import StageResult
from cswin.run.attempts import summaries


def table_page(run: str, table: pd.DataFrame, curves: bytes) -> str:
    """The results: top-1 beside the expected figures, the curves, then all figures with one column per stage.

    Args:
        run: name of the run.
        table: final_acc.csv as text; the values below the curves are shown unchanged.
        curves: curves.png.
    """
    return render(
        "results.html",
        title=f"{run}: results",
        head=headline.HEAD,
        headline=[headline.headline(row) for row in table.to_dict("records")],
        note=headline.NOTE,
        curves=base64.b64encode(curves).decode(),
        stages=["", *table.stage],
        figures=[[name, *table[name]] for name in table.columns if name != "stage"],
    )


def configuration_page(run: str, stages: list[StageResult], runtime: Section) -> str:
    """The resolved configuration of each stage, differing keys first, and section `runtime`."""
    columns = [flat(stage.config.model_dump(mode="json")) for stage in stages]
    rows = [[key, *(column[key] for column in columns)] for key in columns[0]]
    differing = [number for number, row in enumerate(rows) if len(set(map(str, row[1:]))) > 1]
    return render(
        "configuration.html",
        title=f"{run}: configuration",
        head=["", *(stage.name for stage in stages)],
        settings=rows,
        differing=differing,
        differs=[rows[number] for number in differing],
        runtime=list(flat(runtime.model_dump(mode="json")).items()),
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
    return render(
        "data.html",
        title="Data",
        duplicates=sentence(summary["duplicates"]) if summary.get("duplicates") else None,
        splits=rows,
        identity=[["manifest_hash", summary["manifest_hash"]], ["seed of the order", summary.get("seed")]],
        names=list(splits),
        by_class=[[name, *(f"{splits[split]['counts'][i]:,}" for split in splits)] for i, name in enumerate(names)],
    )


def provenance_page(run: str, stages: list[StageResult]) -> str:
    """Each stage's checkpoint and attempts."""
    return render("provenance.html", title=f"{run}: provenance", stages=[_provenance(stage) for stage in stages])


def _provenance(stage: StageResult) -> dict[str, Any]:
    record, tries = stage.record or {}, attempts(stage)
    names = {"checkpoint sha256": "sha256", "best epoch": "best_epoch", "selected on": "select_on", "manifest": "manifest"}
    return {
        "name": stage.name,
        "facts": [[name, record.get(key)] for name, key in names.items()] if record else [],
        "head": ["", *(f"attempt {number}" for number in range(1, len(tries) + 1))],
        "attempts": [[key, *(one.get(key) for one in tries)] for key in dict.fromkeys(key for one in tries for key in one)],
    }


def attempts(stage: StageResult) -> list[dict[str, Any]]:
    """The attempts of a stage, oldest first, as flat mappings without the configuration, which has its own page."""
    found = []
    for one in summaries(stage.attempts):
        start = {
            key: value for key, value in one.start.items() if key not in ("attempt", "event", "identity", "time", "config")
        }
        began = {} if one.from_step is None else {"resumed from step" if one.resumed else "from step": one.from_step}
        end = {"ended": one.ended, "reason": one.reason, "last step": one.step} if one.ended else {}
        found.append({"started": one.start["time"], **flat(start), **began, **end})
    return found
