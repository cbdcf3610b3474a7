"""Evaluation: every image once, figures that can be recomputed, the same from every source."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from cswin.checkpoint import load_checkpoint
from cswin.config.settings import Runtime
from cswin.data.sources import open_source
from cswin.errors import UserError
from cswin.evaluate import Predictions, evaluate_checkpoint
from cswin.report.table import wilson

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stage(finished_run):
    return finished_run.path / "results/digits/stage3"


@pytest.mark.parametrize("place", ["dataset.json", "", "images", "images/val", "digits.tar.gz", "shards/val-00000.mindrecord"])
def test_every_source_gives_the_workflow_s_figures(finished_run, stage, place):
    checkpoint = load_checkpoint(stage / "checkpoint.safetensors")
    source = open_source(finished_run.path / "data/digits" / place, "val", checkpoint.record.class_names)
    runtime = Runtime(eval_batch_size=77, workers=1, worker_kind="thread")  # 360 is no multiple of it
    figures = evaluate_checkpoint(checkpoint, source, checkpoint.record.preprocessing, runtime)["ema"].figures()
    wanted = json.loads((stage / "evaluation.json").read_text())["ema"]
    for key in ("n", "right1", "right5"):
        assert figures[key] == wanted[key]
    assert figures["loss"] == pytest.approx(wanted["loss"], rel=1e-6)


def test_table_can_be_recomputed_from_the_predictions(finished_run):
    table = pd.read_csv(finished_run.path / "results/final_acc.csv").set_index("stage")
    for stage, row in table.iterrows():
        saved = np.load(finished_run.path / f"results/digits/{stage}/predictions.npz")
        assert row.n == len(saved["labels"]) == 360
        for which in ("raw", "ema"):
            frame = pd.DataFrame(saved[f"{which}_top5"]).eq(saved["labels"], axis=0)
            assert row[f"right1_{which}"] == frame[0].sum()
            assert row[f"right5_{which}"] == frame.any(axis=1).sum()
            assert row[f"top1_{which}"] == pytest.approx(100 * frame[0].mean(), abs=1e-4)
            whole = frame[0][:256]  # two whole batches of 128
            assert row[f"top1_{which}_whole_batches"] == pytest.approx(100 * whole.mean(), abs=1e-4)


@pytest.mark.parametrize(("right", "n"), [(0, 10), (350, 360), (360, 360), (41_642, 49_920)])
def test_wilson_interval(right, n):
    interval = binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert wilson(right, n) == pytest.approx((100 * interval.low, 100 * interval.high), abs=1e-9)


def test_the_reports_counting_drops_the_last_batch():
    labels = np.zeros(300, np.int32)
    top5 = np.zeros((300, 5), np.int32)
    top5[256:, 0] = 1  # wrong, but not in a whole batch of 128
    figures = Predictions(labels, top5, np.zeros(300)).figures()
    assert figures["top1_whole_batches"] == 100.0 and figures["right1"] == 256 and figures["right5"] == 300


def test_strange_classes_are_named(tmp_path):
    for name in ("3", "zebra"):
        (tmp_path / "val" / name).mkdir(parents=True)
    with pytest.raises(UserError, match="zebra"):
        open_source(tmp_path, "val", tuple("0123456789"))
