"""Verdicts on runs that were not made: what `cswin verdict`, the table and the card's lines say of invented predictions."""

import dataclasses
import json

import numpy as np
import pytest
from recipes import DIGITS, REPORT, recipe

from cswin.cli import main
from cswin.config.resolve import dump, expectations, parse_settings, resolve_stage
from cswin.predictions import Predictions, save_predictions
from cswin.report.card import Run, _comparison
from cswin.report.run import load_run
from cswin.report.table import results_table

STAGES = ("stage1", "stage2", "stage3")


@pytest.fixture
def invent(tmp_path, monkeypatch):
    """Makes results/<name>, evaluated; `right` images of `n` are right in each stage."""
    monkeypatch.chdir(tmp_path)

    def make(name, right, n=50_000, file=REPORT, **changes):
        settings = parse_settings(recipe(file, run=name, **changes))
        folder = tmp_path / "results" / name
        (folder / "config").mkdir(parents=True)
        (folder / "config/expectations.yaml").write_text(dump(expectations(settings)))
        top5 = np.arange(5, dtype=np.int32) + np.repeat([0, 1], [right, n - right])[:, None].astype(np.int32)
        found = Predictions(np.zeros(n, np.int32), top5, np.ones(n), np.random.default_rng(0).permutation(n))
        found = Predictions.join([found])
        for stage in settings.stages:
            (folder / f"config/{stage}.yaml").write_text(dump(resolve_stage(settings, stage)))
            (folder / stage).mkdir()
            save_predictions(folder / stage / "predictions.npz", {"raw": found, "ema": found}, ["x"] * 10)
            evaluation = {"checkpoint": "a", "raw": found.figures(), "ema": found.figures()}
            (folder / stage / "evaluation.json").write_text(json.dumps(evaluation))
            record = {"sha256": "a", "best_epoch": 1, "select_on": "val", "manifest": "m"}
            (folder / stage / "record.json").write_text(json.dumps(record))
        return folder, settings

    return make


def lines(capsys, *runs) -> list[str]:
    assert main(["verdict", *runs]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_run_is_judged_against_the_report_and_the_paper(invent, capsys):
    invent("good", 41_830)  # 83.66: above all three reported figures, +0.06 against the paper's 83.6
    said = lines(capsys, "good")
    assert [line.split(" %: ")[0] for line in said if "seed 42" not in line] == [
        "stage1, reported 83.42", "stage2, reported 83.51", "stage3, reported 83.60", "stage3, published 83.60"
    ]  # fmt: skip
    assert said[-1].startswith(
        "stage3, published 83.60 %: reproduced (+0.06; 90 % interval -0.18 to +0.30 points, for a spread of 0.1"
    )
    assert "stage1, seed 42: top-1 83.66 % (ema), 95 % interval 83.33 to 83.98 from 50,000 images" in said


@pytest.mark.parametrize(
    ("right", "answer"),
    [
        (41_625, "not reproduced (-0.35; "),
        (41_750, "undecided (-0.10; "),
        (41_725, "no number of seeds would decide"),
        (41_750, "2 more with the same mean would decide"),
        (42_500, "reproduced (+1.40; "),
    ],
)
def test_the_answers(invent, capsys, right, answer):
    invent("one", right)
    assert answer in lines(capsys, "one")[-1]


def test_seeds_are_judged_by_their_mean(invent, capsys):
    for seed, right in enumerate((41_730, 41_750, 41_770)):
        invent(f"seed{seed}", right, seed=seed)
    assert "reproduced (-0.10; 90 % interval -0.30 to" in lines(capsys, "seed0", "seed1", "seed2")[-1]


def test_runs_that_differ_otherwise_are_refused(invent, capsys):
    invent("a", 41_800)
    invent("b", 41_800, seed=1, optimizer={"ema_decay": 0.9999})
    invent("c", 41_800)
    for other, words in (("b", "another configuration"), ("c", "different seeds")):
        assert main(["verdict", "a", other]) == 2
        assert words in capsys.readouterr().err


def test_an_unevaluated_run_is_refused(invent, capsys):
    folder, _ = invent("a", 41_800)
    (folder / "stage2/evaluation.json").unlink()
    assert main(["verdict", "a"]) == 2
    assert "stage2: the stage is not trained and evaluated yet" in capsys.readouterr().err


@pytest.mark.parametrize("n", [360, 50_000])
def test_the_digits_reproduce_nothing(invent, capsys, n):
    folder, settings = invent("digits", n * 99 // 100, n, DIGITS)
    said = "\n".join(lines(capsys, "digits"))
    assert "no verdict, because these are not ImageNet's 50,000 validation images" in said
    assert "reproduced" not in said
    table = results_table("digits", load_run(folder, list(STAGES)), dict.fromkeys(STAGES, 99.0), settings.paper_top1)
    assert table.verdict_paper.isna().all()
    assert table.verdict_reported.isna().all()


def test_table_and_card_say_the_same(invent):
    folder, settings = invent("run", 41_700)  # 83.40
    stages, expected = load_run(folder, list(STAGES)), expectations(settings)
    table = results_table("run", stages, expected.stages, expected.paper_top1)
    assert table.verdict_reported.to_list() == ["reproduced", "undecided", "undecided"]
    assert table.verdict_paper.fillna("").to_list() == ["", "", "undecided"]
    said = _comparison(Run(folder, expected, stages, settings.runtime, None))
    answers = ["reproduced", "undecided", "undecided", "undecided"]
    assert [f": {answer} (" in line for answer, line in zip(answers, said, strict=True)] == [True] * 4
    unlike = dataclasses.replace(
        stages[0], evaluation=stages[0].evaluation | {"ema": stages[0].evaluation["ema"] | {"n": 49_999}}
    )
    assert "reproduced" not in _comparison(Run(folder, expected, [unlike], settings.runtime, None))[0]
