"""How sure a figure is: an interval for an accuracy, a test for the difference of two on the same images."""

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
    """Two classifiers on the same images; images on which both are right or both wrong say nothing of their difference.

    Attributes:
        lost: images that the first has right and the second wrong (b).
        gained: images that the first has wrong and the second right (c).
        p: two-sided p-value of "neither is better".
    """

    lost: int
    gained: int
    p: float


def mcnemar(before: np.ndarray, after: np.ndarray) -> McNemar:
    """McNemar's test (1947) in its exact form, a binomial test of b against b + c, which holds for few such images as for many.

    Args:
        before, after: (n,) bool, right or wrong, of the same images in the same order.
    """
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    p = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    return McNemar(lost, gained, float(p))
