"""Appearance of the pictures: size, type, colours. Opaque white, so they are legible in print and on a dark page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cswin import __version__
from cswin.atomic import atomic_path

WIDTH, DPI = 8.0, 160  # inches: 1,280 pixels across; 7.5 point type when printed across an A4 page
SMALL, TITLE = 8.5, 12

# Okabe and Ito's palette, darkened to 4.5:1 or more against white (WCAG AA for text): distinguishable in grey and by the colour-blind.
RAW, EMA = "#b24a00", "#0067a8"
RIGHT, WRONG = EMA, RAW
RATE, NEUTRAL = "#007a5a", "#5a3d8a"
BAR = "#4f95c4"  # 3:1 against white (WCAG for graphics), and INK on it 5:1
INK, QUIET, FAINT = "#1a1a1a", "#5c5c5c", "#d9d9d9"  # text; secondary text and reference lines; grid

# DejaVu Sans comes with matplotlib; the others have Chinese, Japanese and Korean characters, if one of them is installed.
_FAMILIES = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Micro Hei", "Microsoft YaHei", "PingFang SC")
_STYLE = {
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.color": QUIET,
    "ytick.labelcolor": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "legend.fancybox": False,
    "legend.fontsize": SMALL,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}


@contextmanager
def picture(path: Path, height: float, title: str, subtitle: str = "") -> Iterator[Figure]:
    """A figure to draw on; written as PNG, completely or not at all, when the block ends.

    Args:
        path: PNG to write.
        height: in inches; the width is that of all pictures.
        title: what the picture shows, of which run.
        subtitle: how to read it, in smaller type; may have several lines.
    """
    available = set(font_manager.get_font_names())
    with mpl.rc_context({**_STYLE, "font.family": [f for f in _FAMILIES if f in available]}):
        figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        top = 1 - heading_height(subtitle) / height
        figure.get_layout_engine().set(rect=(0.008, 0.008, 0.984, top - 0.008))
        figure.text(0.08 / WIDTH, 1 - 0.07 / height, title, size=TITLE, weight="bold", va="top", parse_math=False)
        if subtitle:
            place = (0.08 / WIDTH, 1 - 0.30 / height)
            figure.text(*place, subtitle, size=SMALL, color=QUIET, va="top", linespacing=1.3, parse_math=False)
        yield figure
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", metadata={"Title": title, "Software": f"cswin {__version__}"})


def heading_height(subtitle: str) -> float:
    """Inches that a picture's title and subtitle take."""
    return 0.36 + (0.16 * (subtitle.count("\n") + 1) if subtitle else 0)


def mark_stages(axes: Axes, spans: list[tuple[str, float, float]], *, names: bool) -> None:
    """Thin lines where a stage begins; with `names`, the names of the stages above the axes.

    Args:
        axes: where.
        spans: (name, first x, last x) of each stage.
        names: whether to write the names; once in a column of axes is enough.
    """
    low, high = spans[0][1], spans[-1][2]
    axes.set_xlim(low - 0.01 * (high - low), high + 0.01 * (high - low))
    for number, (name, first, last) in enumerate(spans):
        if number:
            axes.axvline(first, color=QUIET, linewidth=0.8, zorder=1)
        if names:
            axes.annotate(
                name, ((first + last) / 2, 1), xycoords=axes.get_xaxis_transform(), xytext=(0, 4), textcoords="offset points",
                ha="center", color=QUIET, size=SMALL,
            )  # fmt: skip
