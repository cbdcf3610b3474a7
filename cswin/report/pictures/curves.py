"""Curves over all stages: loss, learning rate, top-1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator

from cswin.report.pictures.style import EMA, INK, NEUTRAL, QUIET, RATE, RAW, SMALL, mark_stages, picture
from cswin.report.run import StageResult

_COLOURS = {"raw": RAW, "ema": EMA}
_NAMES = {"raw": "raw weights", "ema": "EMA"}


def draw_curves(
    stages: list[StageResult], path: Path, *, title: str, reported: dict[str, float | None], paper: float | None
) -> None:
    """Write the picture: loss, learning rate and top-1 of raw and EMA weights by epoch, stage borders marked.

    Args:
        stages: at least one, with a validated epoch in each.
        path: PNG to write.
        title: above the picture.
        reported: reported top-1 in per cent by stage; a line over the epochs of the stage.
        paper: published or expected top-1; a line over all epochs.
    """
    spans = [(stage.name, stage.config.start_epoch, stage.config.epochs) for stage in stages]
    subtitle = "by epoch on the whole schedule; only the training loss includes mixing and label smoothing"
    with picture(path, 9.4, title, subtitle) as figure:
        loss, rate, top1, enlarged = figure.subplots(4, 1, sharex=True, height_ratios=(1.1, 0.6, 0.9, 1.2))
        _draw_loss(loss, stages)
        _draw_rate(rate, stages)
        _draw_accuracy(top1, stages)
        top1.set(ylim=(0, 103), ylabel="top-1, %")
        top1.legend(loc="lower right")
        _draw_accuracy(enlarged, stages)
        _draw_references(enlarged, stages, reported, paper)
        enlarged.set_xlabel("epoch")
        for axes in (loss, rate, top1, enlarged):
            axes.grid(axis="y")
            mark_stages(axes, spans, names=axes is loss)


def binned_loss(stage: StageResult, per_epoch: int) -> pd.DataFrame:
    """The training loss in bins of half an epoch.

    Returns:
        One row per bin: epoch (middle of the bin), mean, low and high (5 % and 95 % of its steps). Steps whose loss was not
        finite are left out.
    """
    steps, width = stage.history.steps, max(1, per_epoch // 2)
    groups = steps.groupby((steps.step - steps.step.iloc[0]) // width)
    return pd.DataFrame(
        {
            "epoch": groups.step.mean() / per_epoch,
            "mean": groups.loss.mean(),
            "low": groups.loss.quantile(0.05),
            "high": groups.loss.quantile(0.95),
        }
    )


def steps_per_epoch(stages: list[StageResult]) -> int:
    """Optimizer steps in an epoch, from the first validated one."""
    first = next(row for stage in stages for row in stage.history.epochs)
    return first["step"] // (first["epoch"] + 1)


def _draw_loss(axes: Axes, stages: list[StageResult]) -> None:
    per_epoch, dashed = steps_per_epoch(stages), (0, (4, 1.5))
    for stage in stages:
        bins, rows = binned_loss(stage, per_epoch), stage.history.epochs
        axes.fill_between(bins.epoch, bins.low, bins.high, color=NEUTRAL, alpha=0.18, linewidth=0)
        axes.plot(bins.epoch, bins["mean"], color=NEUTRAL, marker="." if len(bins) < 3 else None)
        axes.plot([row["epoch"] + 1 for row in rows], [row["ema"]["loss"] for row in rows], color=EMA, linestyle=dashed,
                  marker="." if len(rows) < 3 else None)  # fmt: skip
    axes.plot([], [], color=NEUTRAL, label="training, mean of half an epoch")
    axes.fill_between([], [], [], color=NEUTRAL, alpha=0.18, linewidth=0, label="5 to 95 % of its steps")
    axes.plot([], [], color=EMA, linestyle=dashed, label="validation, EMA")
    axes.set(ylabel="loss", ylim=(0, None))
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.08), ncols=3, borderaxespad=0)


def _draw_rate(axes: Axes, stages: list[StageResult]) -> None:
    steps, per_epoch = pd.concat([stage.history.steps for stage in stages]), steps_per_epoch(stages)
    axes.plot(steps.step / per_epoch, steps.lr, color=RATE)
    axes.set(yscale="log", ylabel="learning rate")
    axes.yaxis.set_major_locator(LogLocator(numticks=5))
    axes.yaxis.set_minor_locator(NullLocator())


def _draw_accuracy(axes: Axes, stages: list[StageResult]) -> None:
    """Top-1 by epoch, and a ring around each epoch that became a checkpoint."""
    rows = [row for stage in stages for row in stage.history.epochs]
    for which, marker in (("raw", "o"), ("ema", "s")):
        values = [row[which]["top1"] for row in rows]
        style = {"marker": marker, "markersize": 3} if len(rows) <= 60 else {"linewidth": 1.1}
        axes.plot([row["epoch"] + 1 for row in rows], values, color=_COLOURS[which], label=_NAMES[which], **style)
    chosen = selected(stages)
    axes.plot([epoch + 1 for epoch, _, _ in chosen], [value for _, value, _ in chosen], color=INK, marker="o", markersize=8,
              markerfacecolor="none", linestyle="", zorder=5, label="epoch of the checkpoint")  # fmt: skip


def selected(stages: list[StageResult]) -> list[tuple[int, float, str]]:
    """(epoch, top-1 in per cent, raw or ema) of the epochs that became the checkpoints of the stages that have ended."""
    found = []
    for stage in stages:
        which, epoch = stage.config.evaluation.select_by, (stage.record or {}).get("best_epoch")
        found += [(epoch, row[which]["top1"], which) for row in stage.history.epochs if row["epoch"] == epoch]
    return found


def _draw_references(axes: Axes, stages: list[StageResult], reported: dict[str, float | None], paper: float | None) -> None:
    """Axis limits that show the differences between epochs; reported, expected and checkpoint values."""
    rows = [row for stage in stages for row in stage.history.epochs]
    low, high = accuracy_limits(rows, [value for value in [*reported.values(), paper] if value])
    axes.set(ylim=(low, high), ylabel="top-1, %, enlarged")
    for stage in stages:
        if value := reported.get(stage.name):
            start, end = stage.config.start_epoch, stage.config.epochs
            axes.plot([start, end], [value] * 2, color=INK, linestyle="--", linewidth=1.2)
            _note(axes, f"reported\n{value:.2f}", ((start + end) / 2, low), (0, 4), ha="center", color=INK)
    if paper:
        axes.axhline(paper, color=QUIET, linestyle=":", linewidth=1.2)
        _note(axes, f"expected {paper:.2f}", (stages[0].config.start_epoch, paper), (4, 3), ha="left", color=QUIET)
    for epoch, value, which in selected(stages):
        _note(axes, f"{value:.2f}", (epoch + 1, value), (0, 7), ha="center", color=_COLOURS[which], weight="bold")


def accuracy_limits(rows: list[dict], references: list[float]) -> tuple[float, float]:
    """Limits of the enlarged axis in per cent: from the median epoch (or a lower reference, or 1 point) to the best."""
    values = [row[which]["top1"] for row in rows for which in ("raw", "ema")]
    high = max(values + references)
    low = min([float(np.median([row["ema"]["top1"] for row in rows])), high - 1, *references])
    room = max(0.15 * (high - low), 0.1)
    return max(0.0, low - room), min(high + 2 * room, 100 + room)


def _note(axes: Axes, text: str, place: tuple[float, float], offset: tuple[float, float], **style) -> None:
    """Small text beside a point; not drawn if the point is outside the axes."""
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5}
    axes.annotate(text, place, xytext=offset, textcoords="offset points", size=SMALL, zorder=6, bbox=box, **style)
