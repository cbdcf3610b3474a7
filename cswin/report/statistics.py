"""Statistics of accuracies: an interval, a test of the difference on the same images, and a verdict on a published figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, norm

# The rule of `reproduction`, fixed before any run at full size; docs/results.md gives the reasons. Percentage points.
SEED_SPREAD = 0.1  # standard deviation of ImageNet's top-1 between seeds, on the same images (arXiv 2109.08203)
MARGIN = 0.3  # a run that is worse by this margin does not reproduce the figure
ROUNDING = 0.1  # published figures are rounded to this
LEVEL = 0.95  # confidence of each of the two one-sided tests


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
    """The result of comparing runs with a published accuracy, in percentage points.

    Attributes:
        answer: "reproduced", "not reproduced" or "undecided".
        difference: the mean of the runs minus the published figure.
        low, high: 90 % interval of the difference, so that each bound alone has a confidence of 95 %.
        seeds_missing: number of further seeds that would decide if the mean stays the same; 0: decided; None: no number would.
    """

    answer: str
    difference: float
    low: float
    high: float
    seeds_missing: int | None


def reproduction(top1: Sequence[float], published: float) -> Verdict:
    """A verdict by a non-inferiority test: reproduced if the lower bound of the difference is above -`MARGIN`, not reproduced if the
    upper bound is below 0.

    Runs vary by `SEED_SPREAD`; the published figure is also a single run, and rounded. All figures, and the spread, are of the same
    images, so the number of images does not matter.

    Args:
        top1: per cent, of runs that differ only in the seed.
        published: per cent.
    """
    z, fixed = norm.ppf(LEVEL), SEED_SPREAD**2 + ROUNDING**2 / 12
    difference = float(np.mean(top1)) - published
    half = z * math.sqrt(SEED_SPREAD**2 / len(top1) + fixed)
    if difference - half > -MARGIN:
        answer, missing = "reproduced", 0
    elif difference + half < 0:
        answer, missing = "not reproduced", 0
    else:  # decided as soon as `half` is below the larger of the two gaps
        room = (max(difference + MARGIN, -difference) / z) ** 2 - fixed
        answer = "undecided"
        missing = math.floor(SEED_SPREAD**2 / room) + 1 - len(top1) if room > 0 else None
    return Verdict(answer, difference, difference - half, difference + half, missing)
