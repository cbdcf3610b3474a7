"""Accuracy by class: bars with names; for many classes a sorted curve and the names of the worst."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from cswin.report.pictures.style import BAR, EMA, FAINT, INK, QUIET, RAW, SMALL, picture

_MOST_BARS = 40  # more classes than this are drawn as a curve
_WORST = 25  # number of classes named beside the curve
_LONGEST = 26  # maximum characters of a class name


def draw_classes(classes: pd.DataFrame, path: Path, *, title: str, weights: str) -> None:
    """Write the picture.

    Args:
        classes: see `cswin.report.classes.accuracy_with_mistakes`.
        path: PNG to write.
        title: above the picture.
        weights: which weights were evaluated, in words.
    """
    right, n = int(classes.right.sum()), int(classes.n.sum())
    subtitle = (
        f"{right:,} of {n:,} validation images correct ({100 * right / n:.2f} %), {weights}; thin lines: 95 % Wilson intervals"
    )
    if len(classes) <= _MOST_BARS:
        with picture(path, 1.3 + 0.3 * len(classes), title, subtitle) as figure:
            _draw_bars(figure.subplots(), classes)
    else:
        with picture(path, 6.4, title, subtitle) as figure:
            curve, worst = figure.subplots(1, 2, width_ratios=(1, 1))
            _draw_curve(curve, classes)
            _draw_bars(worst, classes.sort_values("top1", kind="stable").head(_WORST))
            worst.set_title(f"the {min(_WORST, len(classes))} worst", size=SMALL, color=QUIET, loc="left")


def _draw_bars(axes: Axes, classes: pd.DataFrame) -> None:
    """One bar per row, the first on top; beside it the counts and the most frequent mistake."""
    places = np.arange(len(classes))
    axes.barh(places, classes.top1, height=0.72, color=BAR, zorder=2)
    axes.hlines(places, classes.low, classes.high, color=INK, linewidth=1.0, zorder=3)
    axes.set_yticks(places, [_short(name) for name in classes.name], parse_math=False)
    axes.set(ylim=(len(classes) - 0.4, -0.6), xlim=(0, 100), xlabel="top-1, %")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    for place, row in zip(places, classes.itertuples(), strict=True):
        text = f"{row.right} of {row.n}" + (f", {row.times} as “{_short(row.mistaken)}”" if row.mistaken else "")
        axes.annotate(text, (1, place), xycoords=axes.get_yaxis_transform(), xytext=(6, 0), textcoords="offset points", size=SMALL,
                      va="center", color=RAW if row.mistaken else QUIET, annotation_clip=False, parse_math=False)  # fmt: skip


def _draw_curve(axes: Axes, classes: pd.DataFrame) -> None:
    """Classes sorted by accuracy, with intervals and quartiles."""
    ordered = classes.sort_values("top1", ascending=False, kind="stable")
    rank = np.arange(1, len(ordered) + 1)
    axes.fill_between(rank, ordered.low, ordered.high, color=EMA, alpha=0.18, linewidth=0)
    axes.plot(rank, ordered.top1, color=EMA, drawstyle="steps-mid")
    median = float(ordered.top1.median())
    axes.axhline(median, color=QUIET, linestyle=":", linewidth=1.2)
    axes.annotate(f"median {median:.1f} %", (1, median), xytext=(2, -11), textcoords="offset points", size=SMALL, color=QUIET)
    axes.set(xlabel="class, best to worst", ylabel="top-1, %", xlim=(0, len(ordered) + 1), ylim=(0, 101))
    axes.grid(axis="y", color=FAINT)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
