"""The results table: one row per stage."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from cswin.checkpoint import file_sha256
from cswin.errors import UserError
from cswin.predictions import Predictions, load_predictions
from cswin.report.columns import COLUMNS, DTYPES
from cswin.report.effort import measure_effort
from cswin.report.run import StageResult
from cswin.report.statistics import mcnemar, wilson
from cswin.report.verdict import WHOLE_BATCHES, verdict_of

FORMAT = "cswin-results-1"


def results_table(run: str, stages: list[StageResult], reported: dict[str, float | None], paper: float | None) -> pd.DataFrame:
    """One row per stage, with the columns of `COLUMNS`.

    Args:
        run: the run's name.
        stages: of the run, in order, evaluated.
        reported: top-1 in the report by stage, in per cent.
        paper: published top-1 in per cent.

    Raises:
        UserError: if a stage is not evaluated yet, or its files do not belong together.
    """
    rows, before = [], None
    for stage in stages:
        predictions = _checked_predictions(stage)
        rows.append(_row(run, stage, reported.get(stage.name), paper) | _against(before, predictions))
        rows[-1] |= _verdicts(stage, reported.get(stage.name), paper if stage is stages[-1] else None)
        before = predictions
    table = pd.DataFrame(rows)[[column.name for column in COLUMNS]]
    return table.astype({column.name: DTYPES[column.kind] for column in COLUMNS})


def table_json(run: str, table: pd.DataFrame) -> str:
    """The table for programs: format, run, columns with type and meaning, one object per stage. Empty values are null."""
    columns = [{"name": column.name, "type": column.kind, "meaning": column.meaning} for column in COLUMNS]
    content = {"format": FORMAT, "run": run, "columns": columns, "rows": json.loads(table.to_json(orient="records"))}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _checked_predictions(stage: StageResult) -> Predictions:
    """Predictions of the weights that chose the stage's epoch.

    The figures of a row come from evaluation.json. So both files must come from the same evaluation of this checkpoint.
    """
    files = stage.files
    if stage.record is None or stage.evaluation is None:
        raise UserError(f"{files.folder}: the stage is not trained and evaluated yet; `snakemake` does both")
    again = f"run `snakemake {files.evaluation} --forcerun evaluate`"
    if stage.evaluation["checkpoint"] != stage.record["sha256"]:
        raise UserError(f"{files.evaluation}: is of another checkpoint than {files.record}; {again}")
    results, _ = load_predictions(files.predictions)
    for which, predictions in results.items():
        if predictions.figures() != stage.evaluation.get(which):
            raise UserError(f"{files.predictions}: does not give the figures of {files.evaluation}; {again}")
    return results[stage.config.evaluation.select_by]


def _row(run: str, stage: StageResult, reported: float | None, paper: float | None) -> dict[str, Any]:
    config, record, evaluation = stage.config, stage.record, stage.evaluation
    chosen = evaluation[config.evaluation.select_by]
    return {
        "run": run,
        "arch": config.model.arch,
        "stage": stage.name,
        "start_epoch": config.start_epoch,
        "epochs": config.epochs,
        "best_epoch": record["best_epoch"],
        "select_on": "none" if config.evaluation.select == "last" else record["select_on"],
        "select_by": config.evaluation.select_by,
        "n": evaluation["raw"]["n"],
        **_accuracy("raw", evaluation["raw"]),
        **_accuracy("ema", evaluation["ema"]),
        "reported_top1": reported,
        "paper_top1": paper,
        "minus_reported": _difference(chosen["top1_whole_batches"], reported),
        "minus_paper": _difference(chosen["top1"], paper),
        **_effort(stage),
        "checkpoint_sha256": record["sha256"],
        "config_sha256": file_sha256(stage.config_file),
        "manifest_sha256": record["manifest"],
    }


def _accuracy(which: str, figures: dict[str, Any]) -> dict[str, Any]:
    columns = {f"right1_{which}": figures["right1"], f"right5_{which}": figures["right5"]}
    for k in (1, 5):
        low, high = wilson(figures[f"right{k}"], figures["n"])
        columns |= {
            f"top{k}_{which}": round(figures[f"top{k}"], 4),
            f"top{k}_{which}_low": round(low, 4),
            f"top{k}_{which}_high": round(high, 4),
        }
    whole = figures["top1_whole_batches"]
    return columns | {f"top1_{which}_whole_batches": None if whole is None else round(whole, 4)}


def _difference(found: float | None, wanted: float | None) -> float | None:
    return None if found is None or wanted is None else round(found - wanted, 4)


def _verdicts(stage: StageResult, reported: float | None, paper: float | None) -> dict[str, str | None]:
    found = {"reported": verdict_of([stage], reported, WHOLE_BATCHES), "paper": verdict_of([stage], paper)}
    return {f"verdict_{name}": verdict.answer if verdict else None for name, verdict in found.items()}


def _against(before: Predictions | None, now: Predictions) -> dict[str, Any]:
    """McNemar's test against the previous stage, if both were evaluated on the same images."""
    if before is None or not (np.array_equal(before.positions, now.positions) and np.array_equal(before.labels, now.labels)):
        return {"mcnemar_lost": None, "mcnemar_gained": None, "mcnemar_p": None}
    test = mcnemar(before.right1, now.right1)
    return {"mcnemar_lost": test.lost, "mcnemar_gained": test.gained, "mcnemar_p": float(f"{test.p:.4g}")}


def _effort(stage: StageResult) -> dict[str, Any]:
    effort = measure_effort(stage.attempts, stage.history.steps, stage.config.optimizer.global_batch)
    return {
        "images_per_s": None if effort.images_per_s is None else round(effort.images_per_s, 2),
        "train_hours": round(effort.train_hours, 4),
        "data_wait_hours": round(effort.data_wait_hours, 4),
        "between_hours": round(effort.between_hours, 4),
        "attempts": effort.attempts,
        "resumes": effort.resumes,
        "attempts_unended": effort.unended,
        "devices": effort.devices,
        "git_commit": " ".join(effort.commits),
    }
