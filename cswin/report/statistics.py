"""Statistics: an interval for an accuracy, and a test for the difference of two accuracies on the same images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest


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
