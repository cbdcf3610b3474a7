"""Intervals and tests against textbook formulas and known values."""

import math

import numpy as np
import pytest
from scipy.stats import chi2, norm

from cswin.report.statistics import MARGIN, ROUNDING, SEED_SPREAD, mcnemar, reproduction, wilson


@pytest.mark.parametrize(("right", "n"), [(0, 10), (350, 360), (360, 360), (41_642, 49_920)])
def test_wilson_interval(right, n):
    """Its ends are the proportions q of which right / n is 1.96 standard errors away: (p - q)^2 = z^2 q (1 - q) / n."""
    p, z2 = right / n, norm.ppf(0.975) ** 2
    ends = np.sort(np.roots([1 + z2 / n, -2 * p - z2 / n, p * p]))
    assert wilson(right, n) == pytest.approx(100 * ends, abs=1e-9)


def pair(both, lost, gained, neither):
    """Right or wrong of two classifiers, in mixed order."""
    before = np.repeat([True, True, False, False], [both, lost, gained, neither])
    after = np.repeat([True, False, True, False], [both, lost, gained, neither])
    order = np.random.default_rng(0).permutation(len(before))
    return before[order], after[order]


@pytest.mark.parametrize(("lost", "gained"), [(1, 0), (3, 4), (2, 9), (9, 2), (0, 12), (30, 55)])
def test_mcnemar_is_the_exact_binomial_test(lost, gained):
    test = mcnemar(*pair(300, lost, gained, 7))
    total = lost + gained
    tail = sum(math.comb(total, k) for k in range(min(lost, gained) + 1))
    assert (test.lost, test.gained) == (lost, gained)
    assert test.p == pytest.approx(min(1.0, 2 * tail / 2**total), rel=1e-9)


def test_mcnemar_of_many_images_agrees_with_the_chi_square_form():
    lost, gained = 900, 1010  # of 50,000: a difference of 0.22 points
    test = mcnemar(*pair(41_000, lost, gained, 50_000 - 41_000 - lost - gained))
    corrected = (abs(lost - gained) - 1) ** 2 / (lost + gained)
    assert test.p == pytest.approx(chi2.sf(corrected, 1), rel=0.01)


def test_mcnemar_without_a_difference():
    assert mcnemar(*pair(5, 0, 0, 5)).p == 1.0
    assert mcnemar(*pair(5, 4, 4, 5)).p == 1.0


def answer(difference: float, runs: int) -> str:
    """The rule in words, with the table's 1.6449: the published figure is one run, rounded to one decimal."""
    half = 1.6449 * (0.1**2 / runs + 0.1**2 + 0.1**2 / 12) ** 0.5
    return "reproduced" if difference > half - 0.3 else "not reproduced" if difference < -half else "undecided"


@pytest.mark.parametrize("runs", [1, 2, 3, 10])
@pytest.mark.parametrize("difference", [-0.5, -0.35, -0.25, -0.22, -0.15, -0.1, -0.07, -0.05, 0.0, 0.4])
def test_verdict_follows_the_rule(difference, runs):
    spread = np.linspace(-0.1, 0.1, runs) if runs > 1 else [0.0]
    verdict = reproduction([83.6 + difference + x for x in spread], 83.6)
    assert verdict.answer == answer(difference, runs)
    assert verdict.difference == pytest.approx(difference)
    assert verdict.low < verdict.difference < verdict.high
    if verdict.answer != "undecided":
        assert verdict.seeds_missing == 0
    elif verdict.seeds_missing is None:
        assert answer(difference, 10**9) == "undecided"
    else:
        first = next(k for k in range(1, 1000) if answer(difference, k) != "undecided")
        assert runs + verdict.seeds_missing == first


def test_verdict_is_wrong_as_seldom_as_it_says():
    """Equal trainings are called not reproduced in 5 %, trainings that are worse by the margin reproduced in 5 %."""
    rng, count = np.random.default_rng(0), 4000
    published = np.round(rng.normal(83.6, SEED_SPREAD, count) / ROUNDING) * ROUNDING
    for runs in (1, 4):
        equal = [reproduction(rng.normal(83.6, SEED_SPREAD, runs), p).answer for p in published]
        worse = [reproduction(rng.normal(83.6 - MARGIN, SEED_SPREAD, runs), p).answer for p in published]
        assert equal.count("not reproduced") / count == pytest.approx(0.05, abs=0.012)
        assert worse.count("reproduced") / count == pytest.approx(0.05, abs=0.012)
