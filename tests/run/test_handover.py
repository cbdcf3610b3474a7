"""What a stage takes from the one before it, or from a pretrained checkpoint."""

import json
import shutil

import numpy as np
import pytest

from cswin.checkpoint import load_checkpoint
from cswin.run.history import read_history

pytestmark = pytest.mark.slow


def test_weights_are_carried_and_written_down(finished_run):
    results = finished_run.path / "results/digits"
    first = read_history(results / "stage1/history.jsonl")[0]
    assert (first["kind"], first["carry"]) == ("start", "nothing")
    second = read_history(results / "stage2/history.jsonl")[0]
    assert (second["carry"], second["which"]) == ("weights", "raw")
    assert second["from"] == "results/digits/stage1/checkpoint.safetensors"
    assert second["anew"] == ["moments", "EMA", "loss scale"]


@pytest.mark.variant  # of a resumption
def test_carrying_everything_equals_training_in_one_run(finished_run, tmp_path):
    """Two stages with `carry: all` and one stage of the same length end with the same bits."""
    run = finished_run.copy(tmp_path / "copy")
    common = {"evaluation": {"select": "last"}}
    halves = {
        "stage1": {"start_epoch": 0, "epochs": 1},
        "stage2": {"start_epoch": 1, "epochs": 2, "carry": "all", "schedule": {"cool_length": 1}},
    }
    whole = {"train": {"start_epoch": 0, "epochs": 2, "schedule": {"cool_length": 1}}}
    for name, stages in (("halves", halves), ("whole", whole)):
        run.edit(
            "config/config.yaml",
            lambda v, n=name, s=stages: v.update(run=n, stages=s, evaluation=v["evaluation"] | common["evaluation"]),
        )
        run.snakemake("--until", f"train_{list(stages)[-1]}")
    cut = load_checkpoint(run.path / "results/halves/stage2/checkpoint.safetensors")
    uncut = load_checkpoint(run.path / "results/whole/train/checkpoint.safetensors")
    for name, value in uncut.weights.items():
        assert np.array_equal(cut.weights[name], value) and np.array_equal(cut.ema[name], uncut.ema[name])
    start = read_history(run.path / "results/halves/stage2/history.jsonl")[0]
    assert start["carry"] == "all" and start["step"] == 1437 // 32


def test_fine_tuning_on_a_folder_of_images(finished_run, tmp_path):
    """config/finetune.yaml on half of the digits' classes, from the finished run's checkpoint."""
    run = finished_run.copy(tmp_path / "copy")
    for split in ("train", "val"):
        for label in range(5):
            target = run.path / "images" / split / f"digit_{label}"
            shutil.copytree(run.path / "data/digits/images" / split / str(label), target)
    settings = {
        "pretrained": "results/digits/stage3/checkpoint.safetensors",
        "data": "{folder: images, classes: 5, shard_mb: 1}",
        "model": "{arch: cswin_32_1121_digits_32}",
        "augment": "{mixup_group: 32, hflip: 0.0, rand_augment: null, scale: [0.8, 1.0], mixup_prob: 0.0}",
        "optimizer": "{global_batch: 32, amp_level: O0, ema_decay: 0.9}",
        "schedule": "{base_lr: 0.001, warmup_length: 0, cool_lr: 1.0e-5}",
        "stages": "{finetune: {epochs: 2, schedule: {cool_length: 1}}}",
        "runtime": "{device_target: CPU, batch_size: 32, workers: 2, worker_kind: thread}",
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    run.snakemake("--configfile", "config/finetune.yaml", "--config", *overrides)
    start = read_history(run.path / "results/finetune/finetune/history.jsonl")[0]
    assert start["new"] == ["head.weight", "head.bias"]
    figures = json.loads((run.path / "results/finetune/finetune/evaluation.json").read_text())
    assert figures["raw"]["n"] == 180 and figures["raw"]["top1"] > 90
    record = load_checkpoint(run.path / "results/finetune/finetune/checkpoint.safetensors").record
    assert record.class_names == tuple(f"digit_{label}" for label in range(5))
