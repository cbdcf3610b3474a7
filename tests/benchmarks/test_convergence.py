"""The test of convergence on the reference's own runs, and this project by its shorter form: three seeds, last epochs."""

import json

import convergence
import numpy as np
import pytest
from convergence import EPOCHS, METRICS, OURS, REFERENCE, WINDOWS, Comparison, draw, figures, read_runs, report, train

RUNS = read_runs(REFERENCE)
KNOWN = RUNS["report_order"]


def test_the_reference_is_whole():
    assert {name: len(runs) for name, runs in RUNS.items()} == {
        "report_order": 40,
        "paper_order": 20,
        "report_order_without_erasing": 12,
    }
    assert all(len(run["epochs"]) == EPOCHS for runs in RUNS.values() for run in runs)


def test_runs_of_the_same_recipe_are_equal_and_those_without_erasing_are_not():
    ten = {name: Comparison.of(figures(KNOWN), figures(runs[:10])) for name, runs in RUNS.items()}
    assert ten["report_order"].verdict == "equal" and ten["report_order_without_erasing"].verdict == "different"
    assert ten["paper_order"].verdict == "equal"  # the order of erasing and mixing makes no difference that ten runs show


def test_how_often_it_errs():
    """Normal figures with the reference's covariances: an equal program is called equal, and almost never different."""
    known, rng, found = figures(KNOWN), np.random.default_rng(0), []
    for _ in range(300):
        drawn = rng.multivariate_normal(known.mean(0), np.cov(known.T), 50)
        found.append(Comparison.of(drawn[:40], drawn[40:]).verdict)
    assert found.count("equal") > 0.92 * len(found) and found.count("different") < 0.03 * len(found)


def test_a_shift_of_one_figure_is_found_and_too_few_runs_decide_nothing():
    known = figures(KNOWN)
    shifted = known[:10].copy()
    shifted[:, 7] += 2.5 * known[:, 7].std(ddof=1)
    compared = Comparison.of(known, shifted)
    assert compared.verdict == "different" and int(np.argmax(compared.difference)) == 7
    assert Comparison.of(known, known[:2]).verdict == "undecided"


def test_seeds_needed():
    """Two-sample formula of a normal test: 2 ((z of 0.01 / 36 + z of 0.1) / d)^2."""
    compared = Comparison(np.array([0.5] * 18), *np.zeros((2, 18)), p=np.ones(18))
    assert compared.runs_needed == int(np.ceil(2 * ((3.4524 + 1.2816) / 0.5) ** 2))


def test_epochs_of_a_history():
    rows = [{"kind": "step", "epoch": e, "loss": e + s, "grad_norm": 2.0 * s} for e in range(2) for s in range(3)]
    sets = {"raw": {"loss": 0.5, "top1": 95.0}, "ema": {"loss": 0.25, "top1": 100 * 349 / 360}}
    rows += [{"kind": "epoch", "epoch": e, **sets} for e in range(2)] + [{"kind": "start"}]
    assert convergence.epochs(rows)[1] == {
        "epoch": 1, "train": 2.0, "grad_norm": 2.0, "raw_loss": 0.5, "ema_loss": 0.25, "raw_right": 342, "ema_right": 349,
    }  # fmt: skip


def test_the_table_and_the_picture(tmp_path):
    runs = {OURS: KNOWN[:10], "no erasing": RUNS["report_order_without_erasing"]}
    table = report(KNOWN, runs)
    assert "| this project | 10 " in table and "| different | -2.66: training loss, middle " in table
    assert all(f"{label}, {window}" in table for label in METRICS.values() for window in WINDOWS)
    draw(KNOWN, runs, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 50_000


@pytest.mark.slow
@pytest.mark.variant
def test_this_project_converges_as_the_authors_code(finished_run, record_property):
    """With so few runs only a fault of about three standard deviations is found; `make convergence` has ten."""
    runs = [train(OURS, seed, finished_run.path / "data/digits/dataset.json") for seed in range(3)]
    last = {"last": WINDOWS["last"]}
    compared = Comparison.of(figures(KNOWN, last), figures(runs, last))
    assert compared.verdict != "different" and (np.abs(compared.difference) < 2.5).all(), json.dumps(
        dict(zip(METRICS, compared.difference.round(2).tolist(), strict=True))
    )
