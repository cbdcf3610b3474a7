"""How sure a figure is: an interval for an accuracy, a test for the difference of two on the same images, a verdict on a published one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, norm

# The rule of `reproduction`, fixed before any run at full size; docs/results.md gives the reasons. Percentage points.
SEED_SPREAD = 0.1  # standard deviation of ImageNet's top-1 between seeds, on the same images (arXiv 2109.08203)
MARGIN = 0.3  # a run that is this much worse has not reproduced
ROUNDING = 0.1  # published figures are given to this
LEVEL = 0.95  # of each of the two one-sided statements


def wilson(right: int, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of right / n, in per cent (Wilson 1927)."""
    interval = binomtest(right, n).proportion_ci(0.95, method="wilson")
    return 100 * interval.low, 100 * interval.high


@dataclass(frozen=True)
class McNemar:
    """Two classifiers on the same images. Images on which both are correct or both are wrong do not count.

    Attributes:
        lost: images on which only the first is correct (b).
        gained: images on which only the second is correct (c).
        p: two-sided p-value of the hypothesis that both are equally good.
    """

    lost: int
    gained: int
    p: float


def mcnemar(before: np.ndarray, after: np.ndarray) -> McNemar:
    """McNemar's test (1947) in its exact form: a binomial test of b against b + c. It is valid for any number of images.

    Args:
        before, after: (n,) bool, whether the image was correct; the same images in the same order.
    """
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    p = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    return McNemar(lost, gained, float(p))


@dataclass(frozen=True)
class Verdict:
    """What runs say of a published accuracy, in percentage points.

    Attributes:
        answer: "reproduced", "not reproduced" or "undecided".
        difference: their mean minus the published figure.
        low, high: 90 % interval of the difference, so that each end alone holds at 95 %.
        seeds_missing: how many more seeds would decide, were their mean the same; 0: decided; None: no number would.
    """

    answer: str
    difference: float
    low: float
    high: float
    seeds_missing: int | None


def reproduction(top1: Sequence[float], published: float) -> Verdict:
    """A verdict by non-inferiority: reproduced if the difference is surely above -`MARGIN`, not reproduced if it is surely below 0.

    Both sides are runs with a spread of `SEED_SPREAD`: the published figure is one of them, rounded. The images are the same on both
    sides, and the spread was measured on the same images, so their number does not enter.

    Args:
        top1: per cent, of runs that differ in the seed alone.
        published: per cent.
    """
    z, fixed = norm.ppf(LEVEL), SEED_SPREAD**2 + ROUNDING**2 / 12
    difference = float(np.mean(top1)) - published
    half = z * math.sqrt(SEED_SPREAD**2 / len(top1) + fixed)
    if difference - half > -MARGIN:
        answer, missing = "reproduced", 0
    elif difference + half < 0:
        answer, missing = "not reproduced", 0
    else:  # half must fall below the wider of the two gaps
        room = (max(difference + MARGIN, -difference) / z) ** 2 - fixed
        answer = "undecided"
        missing = math.floor(SEED_SPREAD**2 / room) + 1 - len(top1) if room > 0 else None
    return Verdict(answer, difference, difference - half, difference + half, missing)
