"""The table of a suite: one row per set, with the columns of timm's results files and what stands beside them."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from cswin.convert.published import ACCURACY
from cswin.data.images.preprocessing import Preprocessing
from cswin.model.variants import Architecture, name_of
from cswin.model.weights import GROUPS, Layout
from cswin.report.statistics import wilson
from cswin.report.tables import text_table
from cswin.suite.suite import Score

COLUMNS = (
    *("set", "model", "img_size", "top1", "top1_err", "top5", "top5_err", "param_count", "crop_pct", "interpolation"),
    *("top1_diff", "top5_diff", "n", "right1", "right5", "top1_low", "top1_high", "top5_low", "top5_high", "weights"),
    *("published_top1", "published_top5"),
)
SHOWN = ("set", "n", "top1", "top1_low", "top1_high", "top5", "top1_diff", "top5_diff", "published_top1", "published_top5")


def suite_table(
    scores: Sequence[Score], arch: Architecture, preprocessing: Preprocessing, model: str, which: str
) -> pd.DataFrame:
    """One row per set. docs/suite.md lists the columns; accuracies in per cent, parameters in millions, as timm's files have them.

    Args:
        scores: of the sets.
        arch: of the checkpoint.
        preprocessing: that was used.
        model: its name where the architecture has none.
        which: set of weights.
    """
    name, layout = name_of(arch), Layout.of(arch)
    same = {
        "model": name or model,
        "img_size": arch.image_size,
        "param_count": f"{sum(map(layout.size, GROUPS)) / 1e6:.2f}",
        "crop_pct": preprocessing.crop_ratio,
        "interpolation": preprocessing.interpolation,
        "weights": which,
    }
    accuracy = {score.test_set.name: (100 * score.right1 / score.n, 100 * score.right5 / score.n) for score in scores}
    rows = []
    for score in scores:
        top1, top5 = accuracy[score.test_set.name]
        base = accuracy.get(score.test_set.base)
        published = ACCURACY.get(name) if score.test_set.name == "imagenet" else None
        row = same | {"set": score.test_set.name, "n": score.n, "right1": score.right1, "right5": score.right5}
        row |= {"top1": top1, "top1_err": 100 - top1, "top5": top5, "top5_err": 100 - top5}
        row |= dict(zip(("top1_low", "top1_high"), wilson(score.right1, score.n), strict=True))
        row |= dict(zip(("top5_low", "top5_high"), wilson(score.right5, score.n), strict=True))
        row |= {"top1_diff": top1 - base[0], "top5_diff": top5 - base[1]} if base else {}
        row |= {"published_top1": published[0], "published_top5": published[1]} if published else {}
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def csv_text(table: pd.DataFrame) -> str:
    """The table as CSV, with timm's three decimals."""
    return table.to_csv(index=False, float_format="%.3f")


def shown_text(table: pd.DataFrame) -> str:
    """Its main columns for a terminal."""
    cells = table[list(SHOWN)].astype(object).map(lambda value: f"{value:.2f}" if isinstance(value, float) else value)
    return text_table(SHOWN, cells.replace("nan", "").values.tolist(), style="simple", align="right")
