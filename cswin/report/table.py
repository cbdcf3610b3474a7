"""The results table: one row per stage."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from cswin.report.run import StageResult

Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


def wilson(right: int, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of right / n, in per cent (Wilson 1927)."""
    p, z2 = right / n, Z95**2
    centre, half = p + z2 / (2 * n), Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return 100 * (centre - half) / (1 + z2 / n), 100 * (centre + half) / (1 + z2 / n)


def results_table(run: str, stages: list[StageResult], reported: dict[str, float | None], paper: float | None) -> pd.DataFrame:
    """One row per evaluated stage.

    Args:
        run: the run's name.
        stages: of the run, evaluated.
        reported: top-1 in per cent that the source document gives, by stage.
        paper: published top-1 in per cent.
    """
    return pd.DataFrame([_row(run, stage, reported.get(stage.name), paper) for stage in stages])


def _row(run: str, stage: StageResult, reported: float | None, paper: float | None) -> dict[str, Any]:
    config, record, evaluation = stage.config, stage.record, stage.evaluation
    row = {
        "run": run,
        "arch": config.model.arch,
        "stage": stage.name,
        "epochs": f"{config.start_epoch}-{config.epochs}",
        "best_epoch": record["best_epoch"],
        "select_on": record["select_on"],
        "n": evaluation["raw"]["n"],
    }
    for which in ("raw", "ema"):
        row |= _accuracy(which, evaluation[which])
    best = max(row["top1_raw"], row["top1_ema"])
    return row | {
        "reported_top1": reported,
        "paper_top1": paper,
        "minus_reported": None if reported is None else round(best - reported, 4),
        "minus_paper": None if paper is None else round(best - paper, 4),
        **_effort(stage),
        "checkpoint_sha256": record["sha256"],
        "manifest": record["manifest"],
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


def _effort(stage: StageResult) -> dict[str, Any]:
    """Training time over all attempts, from the history."""
    logged = [row for row in stage.steps() if "seconds" in row]
    seconds = sum(row["seconds"] for row in logged)
    images = len(stage.steps()) * stage.config.optimizer.global_batch
    waited = sum(row["seconds"] * row["wait"] for row in logged)
    return {
        "images_per_s": round(images / seconds, 2) if seconds else None,
        "train_hours": round(seconds / 3600, 4),
        "data_wait_hours": round(waited / 3600, 4),
        "attempts": sum(row["event"] == "start" for row in stage.attempts),
        "resumes": sum(row["event"] == "resume" for row in stage.attempts),
    }
