"""Curves over all stages: loss, learning rate, top-1."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np

from cswin.atomic import atomic_path
from cswin.report.run import StageResult

RAW, EMA, LOSS, RATE, LINE = "#b35900", "#0072b2", "#444444", "#009e73", "#8a8a8a"  # told apart in grey and by the colour-blind


def draw_curves(
    stages: list[StageResult], path: Path, *, title: str, reported: dict[str, float | None], paper: float | None
) -> None:
    """Write the picture: loss (smoothed), learning rate and top-1 of raw and EMA weights by epoch, stage borders marked.

    Args:
        stages: at least one with a history.
        path: PNG to write.
        title: above the picture.
        reported: top-1 in per cent that the source document gives, by stage; short lines in the stage.
        paper: published or expected top-1; a line across.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 8), dpi=150, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title, fontsize=11)
        loss, rate, top1 = figure.subplots(3, 1, sharex=True, height_ratios=(1, 0.6, 1.3))
        _draw_steps(loss, rate, stages)
        _draw_accuracy(top1, stages, reported, paper)
        for axes in (loss, rate, top1):
            _mark_stages(axes, stages, labels=axes is loss)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png")


def _draw_steps(loss, rate, stages: list[StageResult]) -> None:
    rows = [row for stage in stages for row in stage.steps()]
    per_epoch = _steps_per_epoch(stages)
    x = np.array([row["step"] for row in rows]) / per_epoch
    values = np.array([np.nan if row["loss"] is None else row["loss"] for row in rows], float)
    loss.plot(x, values, color=LOSS, alpha=0.25, linewidth=0.6)
    loss.plot(
        x,
        _smooth(values, max(1, per_epoch // 2)),
        color=LOSS,
        linewidth=1.4,
        label="training loss, smoothed over half an epoch",
    )
    loss.set_ylabel("loss")
    loss.legend(frameon=False, loc="upper right")
    rate.plot(x, [row["lr"] for row in rows], color=RATE, linewidth=1.4)
    rate.set_yscale("log")
    rate.set_ylabel("learning rate")


def _draw_accuracy(axes, stages: list[StageResult], reported: dict[str, float | None], paper: float | None) -> None:
    rows = [row for stage in stages for row in stage.epochs()]
    x = [row["epoch"] + 1 for row in rows]
    axes.plot(x, [row["raw"]["top1"] for row in rows], color=RAW, linewidth=1.4, marker=".", label="raw weights")
    axes.plot(x, [row["ema"]["top1"] for row in rows], color=EMA, linewidth=1.4, marker=".", label="EMA")
    best = max(max(row["raw"]["top1"], row["ema"]["top1"]) for row in rows)
    for stage in stages:
        if reported.get(stage.name):
            axes.plot(
                [stage.config.start_epoch, stage.config.epochs],
                [reported[stage.name]] * 2,
                color=LINE,
                linestyle="--",
                label=f"reported, {stage.name}: {reported[stage.name]:.2f} %",
            )
    if paper:
        axes.axhline(paper, color=LINE, linestyle=":", label=f"expected: {paper:.2f} %")
    # The upper part is where epochs differ: the first ones may leave the picture below.
    low = min(np.percentile([row["ema"]["top1"] for row in rows], 25), paper or 100) - 2
    axes.set_ylim(max(0, low), min(100.3, max(best, paper or 0) + 1))
    axes.set_ylabel("top-1, %")
    axes.set_xlabel("epoch on the whole schedule")
    axes.legend(frameon=False, loc="lower right")


def _mark_stages(axes, stages: list[StageResult], labels: bool) -> None:
    for stage in stages:
        if stage.config.start_epoch:
            axes.axvline(stage.config.start_epoch, color=LINE, linewidth=0.8)
        if labels:
            middle = (stage.config.start_epoch + stage.config.epochs) / 2
            axes.text(middle, 1.02, stage.name, transform=axes.get_xaxis_transform(), ha="center", color=LINE)


def _steps_per_epoch(stages: list[StageResult]) -> int:
    epochs = [row for stage in stages for row in stage.epochs()]
    return epochs[0]["step"] // (epochs[0]["epoch"] + 1)


def _smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred moving mean that leaves out what is not finite and shortens at the ends."""
    good = np.isfinite(values)
    kernel = np.ones(2 * (window // 2) + 1)
    total = (
        np.convolve(np.where(good, values, 0), kernel, "same") if len(values) >= len(kernel) else np.full(len(values), np.nan)
    )
    count = np.convolve(good.astype(float), kernel, "same") if len(values) >= len(kernel) else np.zeros(len(values))
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)
