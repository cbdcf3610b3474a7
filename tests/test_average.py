"""Averages against `math.fsum`, and what is refused."""

import dataclasses
import hashlib
import json
import math

import numpy as np
import pytest
from safetensors import safe_open

from cswin.average import average_checkpoints
from cswin.checkpoint import Checkpoint, CheckpointRecord, load_checkpoint, save_checkpoint
from cswin.cli import main
from cswin.data.images.preprocessing import Preprocessing
from cswin.errors import UserError
from cswin.model.variants import Architecture
from cswin.model.weights import initial_weights

ARCH = Architecture(8, (1, 1, 1, 1), (1, 1, 1, 1), (2, 2, 2, 2), image_size=32, num_classes=3)
RECORD = CheckpointRecord(ARCH, ("a", "b", "c"), Preprocessing(32, 0.9, (0.5,) * 3, (0.2,) * 3), {"stage": "s"})


@pytest.fixture
def write(tmp_path):
    def save(name, seed=0, ema=True, record=RECORD, **changes):
        weights = initial_weights(record.architecture, np.random.default_rng(seed)) | changes
        averages = {k: v * np.float32(3) for k, v in weights.items()} if ema else None
        save_checkpoint(tmp_path / name, Checkpoint(record, weights, averages))
        return tmp_path / name

    return save


@pytest.mark.parametrize("ema", [True, False])
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_the_mean_to_the_last_bit(write, tmp_path, capsys, ema, suffix):
    paths = [write(f"{seed}{suffix}", seed, ema) for seed in range(3)]
    assert main(["average", *map(str, paths), "--output", str(tmp_path / "mean.safetensors")]) == 0
    assert "the mean of 3 checkpoints' weights" in capsys.readouterr().out
    mean, parts = load_checkpoint(tmp_path / "mean.safetensors"), [load_checkpoint(path) for path in paths]
    assert (mean.ema is not None) == ema
    for which in ("weights", "ema") if ema else ("weights",):
        for name, value in getattr(mean, which).items():
            columns = zip(*(getattr(part, which)[name].ravel().tolist() for part in parts), strict=True)
            wanted = np.array([math.fsum(column) / 3 for column in columns], np.float32).reshape(value.shape)
            np.testing.assert_array_equal(value, wanted)


def test_float32_sums_would_lose_what_float64_keeps(write):
    biases = [np.full(3, value, np.float32) for value in (2e7, 1, 1, 1)]
    paths = [write(f"{i}.safetensors", i, False, **{"head.bias": bias}) for i, bias in enumerate(biases)]
    np.testing.assert_array_equal(average_checkpoints(paths).weights["head.bias"], np.full(3, 20_000_003 / 4, np.float32))


def test_the_record_names_the_files_with_their_hashes(write, tmp_path):
    paths = [write("a.safetensors", 1), write("b.safetensors", 2)]
    assert main(["average", *map(str, paths), "--output", str(tmp_path / "m.safetensors")]) == 0
    with safe_open(tmp_path / "m.safetensors", framework="numpy") as file:
        record = json.loads(file.metadata()["cswin_record"])
    assert record["provenance"]["average_of"] == [
        {"file": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()} for path in paths
    ]
    assert record["class_names"] == ["a", "b", "c"]
    assert record["architecture"]["embed_dim"] == 8


def other(**changes):
    return dataclasses.replace(RECORD, **changes)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"record": other(architecture=ARCH.replace(num_heads=(4, 2, 2, 2)))}, "num_heads: [4, 2, 2, 2], not [2, 2, 2, 2]"),
        ({"record": other(architecture=dataclasses.replace(ARCH, embed_dim=16))}, "embed_dim: 16, not 8"),
        ({"record": other(class_names=("a", "c", "b"))}, "class 1: 'c', not 'b'"),
        ({"record": other(preprocessing=dataclasses.replace(RECORD.preprocessing, crop_ratio=1.0))}, "crop_ratio=1.0"),
        ({"ema": False}, "no moving average, not one"),
        ({"surplus": np.zeros(1, np.float32)}, "1 surplus"),
        ({"seed": 0}, "holds the same as"),
    ],
)
def test_what_does_not_belong_together_is_refused(write, second, words):
    paths = [write("a.safetensors"), write("b.safetensors", **{"seed": 1} | second)]
    with pytest.raises(UserError) as error:
        average_checkpoints(paths)
    assert words in str(error.value)
    assert "b.safetensors" in str(error.value)


def test_one_file_and_an_input_as_output_are_refused(write, capsys):
    path = str(write("a.safetensors"))
    for arguments, words in (
        ([path, "--output", f"{path}.safetensors"], "two or more"),
        ([path, path, "--output", path], "is one of"),
    ):
        assert main(["average", *arguments]) == 2
        assert words in capsys.readouterr().err
