"""Choosing the epoch on held-out training images: a run that is really made like that."""

import json

import numpy as np
import pandas as pd
import pytest
from recipes import DIGITS, recipe

from cswin.checkpoint import load_checkpoint
from cswin.config.resolve import load_stage, parse_settings, resolve_stage
from cswin.config.runtime import Runtime
from cswin.data.loader.batches import training_positions
from cswin.data.loader.labelled import Labelled
from cswin.data.store.dataset import Dataset, read_rows
from cswin.distributed.backend import BACKENDS
from cswin.distributed.ranks import ALONE
from cswin.errors import UserError
from cswin.evaluate import Evaluator
from cswin.run.history import read_history

HELD, IMAGES = 137, 1437


def settings(**changes) -> dict:
    return recipe(DIGITS, evaluation={"select_on": "minival", "minival_images": HELD}) | changes


@pytest.fixture(scope="module")
def mini(finished_run, tmp_path_factory):
    """A second run beside the finished one: one stage of three epochs, every second one validated, on held-out images."""
    workspace = finished_run.copy(tmp_path_factory.mktemp("mini") / "workspace")

    def change(values):
        values["run"] = "mini"
        values["evaluation"] |= {"select_on": "minival", "minival_images": HELD, "every": 2}
        values["stages"] = {"only": {"start_epoch": 0, "epochs": 3}}

    workspace.edit("config/config.yaml", change)
    workspace.snakemake("results/final_acc.csv", timeout=900)
    return workspace


@pytest.mark.slow
def test_held_out_images_choose_and_are_not_trained_on(mini):
    folder = mini.path / "results/mini/only"
    config, history = load_stage(mini.path / "results/mini/config/only.yaml"), read_history(folder / "history.jsonl")
    epochs = [row for row in history if row["kind"] == "epoch"]
    assert [row["epoch"] for row in epochs] == [1, 2]  # every second epoch, and the last one
    assert {(row["on"], row["raw"]["n"], row["ema"]["n"]) for row in epochs} == {("minival", HELD, HELD)}
    assert sum(row["kind"] == "step" for row in history) == 3 * ((IMAGES - HELD) // 32)

    # The held-out images as a source of their own, with the preprocessing of evaluation, give the figures that chose the epoch.
    _, held = training_positions(IMAGES, config)
    dataset = Dataset.load(mini.path / "data/digits/dataset.json")
    checkpoint = load_checkpoint(folder / "checkpoint.safetensors")
    source = Labelled(lambda part: read_rows(dataset, "train", held[part]), HELD)
    runtime = Runtime(eval_batch_size=50, workers=1, worker_kind="thread")
    found = Evaluator(checkpoint, checkpoint.record.preprocessing, runtime, ALONE, BACKENDS["CPU"])(source)
    record = json.loads((folder / "record.json").read_text())
    assert record["best_epoch"] == max(epochs, key=lambda row: row["ema"]["right1"])["epoch"]
    for which, predictions in found.items():
        assert np.array_equal(predictions.positions, held)
        for key in ("n", "right1", "right5"):
            assert predictions.figures()[key] == record["figures"][which][key]
        assert predictions.figures()["loss"] == pytest.approx(record["figures"][which]["loss"], rel=1e-5)


@pytest.mark.slow
def test_table_says_so(mini):
    table = pd.read_csv(mini.path / "results/final_acc.csv")
    assert (table.run.item(), table.select_on.item(), table.n.item()) == ("mini", "minival", 360)
    text = (mini.path / "results/final_acc.md").read_text()
    assert "held out" in text and "optimistic" not in text


@pytest.mark.slow
def test_final_table_is_that_of_the_configured_run(mini, finished_run, tmp_path):
    back = mini.copy(tmp_path / "back")
    (back.path / "config/config.yaml").write_bytes((finished_run.path / "config/config.yaml").read_bytes())
    assert back.planned() == {}  # nothing but the copy of the table
    back.snakemake("results/final_acc.csv")
    for suffix in ("csv", "md", "json"):
        final = back.path / f"results/final_acc.{suffix}"
        assert final.read_bytes() == (back.path / f"results/digits/final_acc.{suffix}").read_bytes()


def test_one_part_is_held_out_from_all_stages():
    parsed = parse_settings(settings())
    parts = [training_positions(IMAGES, resolve_stage(parsed, name)) for name in parsed.stages]
    for train, held in parts:
        assert len(held) == HELD and not set(train) & set(held) and len(train) == IMAGES - HELD
        assert np.array_equal(held, parts[0][1])
    other = training_positions(IMAGES, resolve_stage(parse_settings(settings(seed=43)), "stage1"))[1]
    assert 0 < len(set(other) & set(parts[0][1])) < HELD // 2  # another seed, another part


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ({"select_on": "val"}, "stages.stage2.evaluation.select_on: val must be minival, as in stage1"),
        ({"minival_images": 99}, "stages.stage2.evaluation.minival_images: 99 must be 137, as in stage1"),
    ],
)
def test_no_stage_trains_on_what_another_selects_on(stage, words):
    values = settings()
    values["stages"]["stage2"]["evaluation"] = stage
    with pytest.raises(UserError) as error:
        parse_settings(values)
    assert words in str(error.value) and "trains on images that another selects on" in str(error.value)


def test_something_must_be_left_to_train_on():
    too_many = recipe(DIGITS, evaluation={"select_on": "minival", "minival_images": 10000})
    with pytest.raises(UserError, match=r"evaluation.minival_images: 10000 must be less than the 1437 training images"):
        parse_settings(too_many)
    unknown = too_many
    unknown["data"].pop("expect_train")  # known when the data are there
    with pytest.raises(UserError, match=r"evaluation.minival_images: 10000 must be less than the 1437 training images"):
        training_positions(IMAGES, resolve_stage(parse_settings(unknown), "stage1"))
