"""Evaluation: every image once, figures that can be recomputed, the same from every source."""

import json

import numpy as np
import pytest

from cswin.checkpoint import load_checkpoint
from cswin.config.runtime import Runtime
from cswin.data.loader.labelled import open_labelled
from cswin.distributed.backend import BACKENDS
from cswin.distributed.ranks import ALONE
from cswin.errors import UserError
from cswin.evaluate import Evaluator
from cswin.predictions import Predictions

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stage(finished_run):
    return finished_run.path / "results/digits/stage3"


@pytest.mark.parametrize(
    "place", ["dataset.json", "", "images", "images/val", "digits.tar.gz", "shards/1MiB/val-00000.mindrecord"]
)
def test_every_source_gives_the_workflow_s_figures(finished_run, stage, place):
    checkpoint = load_checkpoint(stage / "checkpoint.safetensors")
    data = finished_run.path / "data/digits"
    classes_from = data / "dataset.json" if place.endswith(".mindrecord") else None
    source = open_labelled(data / place, "val", checkpoint.record.class_names, classes_from)
    assert source.note is None
    runtime = Runtime(eval_batch_size=77, workers=1, worker_kind="thread")  # 360 is no multiple of it
    evaluator = Evaluator(checkpoint, checkpoint.record.preprocessing, runtime, ALONE, BACKENDS["CPU"])
    figures = evaluator(source)["ema"].figures()
    wanted = json.loads((stage / "evaluation.json").read_text())["ema"]
    for key in ("n", "right1", "right5"):
        assert figures[key] == wanted[key]
    assert figures["loss"] == pytest.approx(wanted["loss"], rel=1e-6)


def test_an_image_that_was_not_judged_is_noticed(finished_run, stage, monkeypatch):
    checkpoint = load_checkpoint(stage / "checkpoint.safetensors")
    source = open_labelled(finished_run.path / "data/digits/dataset.json", "val", checkpoint.record.class_names)
    three = Predictions(np.zeros(3, np.int32), np.zeros((3, 5), np.int32), np.zeros(3), np.arange(3))
    monkeypatch.setattr("cswin.evaluate.judge", lambda *_: {"raw": three, "ema": three})  # as if a device had lost its share
    runtime = Runtime(workers=1, worker_kind="thread")
    evaluator = Evaluator(checkpoint, checkpoint.record.preprocessing, runtime, ALONE, BACKENDS["CPU"])
    with pytest.raises(RuntimeError, match="3 of 360 images were judged"):
        evaluator(source)


def test_strange_classes_are_named(tmp_path):
    for name in ("3", "zebra"):
        (tmp_path / "val" / name).mkdir(parents=True)
    with pytest.raises(UserError, match="zebra"):
        open_labelled(tmp_path, "val", tuple("0123456789"))
