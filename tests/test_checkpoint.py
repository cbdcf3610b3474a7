"""Checkpoint files: what is written comes back, damage and mismatches are refused, interrupted writing loses nothing."""

import dataclasses
import json
import re
import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest
from networks import cut
from safetensors import safe_open

from cswin import checkpoint as module
from cswin.checkpoint import Checkpoint, CheckpointRecord, Preprocessing, fitting_weights, load_checkpoint, save_checkpoint
from cswin.errors import UserError
from cswin.inference import Predictor
from cswin.model.cswin import CSWin
from cswin.model.variants import Architecture
from cswin.model.weights import initial_weights
from cswin.provenance import cann_version, git_commit, versions

ARCH = Architecture(8, (1, 1, 1, 1), (1, 1, 1, 1), (2, 2, 2, 2), image_size=32, num_classes=3)
SUFFIXES = (".ckpt", ".safetensors")
NAMES = ("tench", "grey “whale”", "海豚")


def preprocessing(arch=ARCH):
    return Preprocessing(arch.image_size, 0.9, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture
def example():
    weights = initial_weights(ARCH, np.random.default_rng(0))
    ema = {k: v + np.float32(1) for k, v in weights.items()}
    provenance = {"config": {"base_lr": 1e-3}, "stage": "stage1", "epoch": 7, "git": None}
    return Checkpoint(CheckpointRecord(ARCH, NAMES, preprocessing(), provenance), weights, ema)


@pytest.mark.parametrize("with_ema", [True, False])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip(tmp_path, example, suffix, with_ema):
    example = dataclasses.replace(example, ema=example.ema if with_ema else None)
    path = tmp_path / f"model{suffix}"
    sha = save_checkpoint(path, example)
    assert sha == module.file_sha256(path)
    loaded = load_checkpoint(path)
    assert loaded.record == example.record
    assert list(loaded.weights) == sorted(example.weights)
    for key, value in example.weights.items():
        assert loaded.weights[key].dtype == np.float32
        np.testing.assert_array_equal(loaded.weights[key], value)
        if with_ema:
            np.testing.assert_array_equal(loaded.ema[key], value + 1)
    assert (loaded.ema is not None) == with_ema
    assert loaded.select()[1] is (loaded.ema if with_ema else loaded.weights)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.stat().st_mode & 0o200, "the writer's user can replace the file"


@pytest.mark.parametrize(("select_by", "asked", "found"), [
    (None, None, "ema"), ("raw", None, "raw"), ("ema", None, "ema"), ("raw", "ema", "ema"), ("ema", "raw", "raw")
])  # fmt: skip
def test_the_set_that_selected_the_epoch_is_the_default(example, select_by, asked, found):
    config = {"evaluation": {"select_by": select_by}} if select_by else {"base_lr": 1e-3}
    example.record.provenance["config"] = config
    which, weights = example.select(asked)
    assert which == found and weights is {"raw": example.weights, "ema": example.ema}[found]


def test_one_set_of_weights_is_what_it_is(example):
    example.record.provenance["config"] = {"evaluation": {"select_by": "ema"}}
    alone = dataclasses.replace(example, ema=None)
    assert alone.select()[0] == "raw" and alone.select("raw")[1] is example.weights
    with pytest.raises(UserError, match="ema: the checkpoint holds one set of weights and no moving average; use raw"):
        alone.select("ema")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_bytes_depend_on_the_content_alone(tmp_path, example, suffix):
    reordered = dataclasses.replace(example, weights=dict(reversed(example.weights.items())))
    shas = {save_checkpoint(tmp_path / f"{i}{suffix}", c) for i, c in enumerate((example, reordered, example))}
    assert len(shas) == 1
    changed = dict(example.weights) | {"head.bias": example.weights["head.bias"] + np.float32(1e-3)}
    assert save_checkpoint(tmp_path / f"x{suffix}", dataclasses.replace(example, weights=changed)) not in shas


def test_mindspore_reads_the_weights_under_their_plain_names(tmp_path, example):
    save_checkpoint(tmp_path / "model.ckpt", example)
    read = ms.load_checkpoint(str(tmp_path / "model.ckpt"), crc_check=True)
    assert set(example.weights) == {k for k in read if not k.startswith("ema.") and k != "cswin_record"}
    for key, value in example.weights.items():
        np.testing.assert_array_equal(read[key].asnumpy(), value)


def test_other_tools_read_the_safetensors(tmp_path, example):
    save_checkpoint(tmp_path / "model.safetensors", example)
    with safe_open(tmp_path / "model.safetensors", framework="numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("ema.head.weight"), example.ema["head.weight"])
        assert json.loads(file.metadata()["cswin_record"])["architecture"]["split_size"] == [1, 1, 1, 1]


def test_safetensors_need_no_mindspore(tmp_path, example):
    save_checkpoint(tmp_path / "a.safetensors", example)
    code = (
        "import sys; from cswin.checkpoint import *; c = load_checkpoint(sys.argv[1]); save_checkpoint(sys.argv[2], c);"
        "assert not any(m.split('.')[0] == 'mindspore' for m in sys.modules)"
    )
    names = [str(tmp_path / f"{n}.safetensors") for n in "ab"]
    subprocess.run([sys.executable, "-c", code, *names], check=True)
    assert module.file_sha256(names[0]) == module.file_sha256(names[1])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damage_is_refused(tmp_path, example, suffix):
    path = tmp_path / f"model{suffix}"
    save_checkpoint(path, example)
    content = path.read_bytes()
    for position in (len(content) // 3, len(content) - 40):
        broken = bytearray(content)
        broken[position] ^= 0x10
        path.write_bytes(broken)
        with pytest.raises(UserError, match=str(path)):
            load_checkpoint(path)
    for length in (len(content) - 1, len(content) // 2, 10, 0):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=str(path)):
            load_checkpoint(path)


def test_a_changed_record_is_refused(tmp_path, example):
    """The stripes are not to be seen in any shape: the record must be as safe as the weights."""
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, example)
    content = path.read_bytes()
    assert content.count(b"num_heads") == 1
    path.write_bytes(content.replace(b"[2, 2, 2, 2]", b"[2, 2, 2, 4]"))
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(path)


def test_foreign_missing_and_misnamed_files(tmp_path, example):
    ms.save_checkpoint(ms.nn.Dense(2, 3), str(tmp_path / "foreign.ckpt"))
    for name, message in (
        ("foreign.ckpt", "convert-weights"),
        ("none.ckpt", "is not a file"),
        ("a.pth", "convert-weights"),
        ("a.npz", "suffix"),
    ):
        with pytest.raises(UserError, match=message):
            load_checkpoint(tmp_path / name)
    with pytest.raises(UserError, match="suffix"):
        save_checkpoint(tmp_path / "model.pt", example)
    with pytest.raises(UserError, match="cannot be written"):
        save_checkpoint(tmp_path / "nowhere" / "model.ckpt", example)


def test_a_failed_write_keeps_the_old_file(tmp_path, example, monkeypatch):
    path = tmp_path / "model.ckpt"
    sha = save_checkpoint(path, example)

    def fail(temporary, *_):
        temporary.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cswin.tensor_file._write_ckpt", fail)
    with pytest.raises(UserError, match="No space left"):
        save_checkpoint(path, example)
    assert module.file_sha256(path) == sha and [p.name for p in tmp_path.iterdir()] == ["model.ckpt"]


def test_only_matching_float32_tensors_are_written(tmp_path, example):
    with pytest.raises(ValueError, match="float32"):
        save_checkpoint(tmp_path / "a.ckpt", dataclasses.replace(example, weights={"a": np.zeros(2)}, ema=None))
    with pytest.raises(ValueError, match="moving average"):
        save_checkpoint(tmp_path / "a.ckpt", dataclasses.replace(example, ema={"head.bias": np.zeros(3, np.float32)}))


def test_record_must_fit_together():
    with pytest.raises(UserError, match="2 names for a head of 3"):
        CheckpointRecord(ARCH, ("a", "b"), preprocessing())
    with pytest.raises(UserError, match="64 pixels"):
        CheckpointRecord(ARCH, NAMES, preprocessing(ARCH.replace(image_size=64)))
    with pytest.raises(UserError, match=r"std.*positive"):
        Preprocessing(32, 0.9, (0, 0, 0), (1, 0, 1))
    with pytest.raises(UserError, match="one per channel"):
        Preprocessing(32, 0.9, (0,), (1,), channels=3)
    assert Preprocessing(32, 0.9, (0.1, 0.2, 0.3), (1, 1, 1), channels=1).mean == (0.1, 0.2, 0.3)


def test_weights_of_the_same_architecture_are_taken_whole(example):
    taken = fitting_weights(example.weights, ARCH, ARCH)
    assert taken.keys() == example.weights.keys()
    for key, value in taken.items():
        np.testing.assert_array_equal(value, example.weights[key])


def test_one_compiled_graph_serves_any_weights(example):
    predictor = Predictor(ARCH, 2)
    images = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    other = initial_weights(ARCH, np.random.default_rng(1))
    found = {}
    for name, weights in (("other", other), ("example", example.weights), ("again", other)):
        found[name] = predictor.logits(predictor.on_device(weights), images)
    network = CSWin(ARCH)
    wanted = network(ms.Tensor(images), cut(network, example.weights)).asnumpy()
    np.testing.assert_allclose(found["example"], wanted, atol=1e-5)
    assert np.abs(found["other"] - wanted).max() > 1e-3
    np.testing.assert_array_equal(found["other"], found["again"])
    np.testing.assert_array_equal(predictor.logits(predictor.on_device(other), images[:1]), found["other"][:1])


def refused(weights, found, wanted, message, free=()):
    with pytest.raises(UserError, match=message) as error:
        fitting_weights(weights, found, wanted, free, "some.ckpt")
    assert str(error.value).startswith("some.ckpt")


def test_other_stripes_are_refused(example):
    """Weights of equal shapes, another function."""
    arch = ARCH.replace(image_size=64, split_size=(2, 2, 2, 2))
    other = ARCH.replace(image_size=64)
    refused(example.weights, other, arch, r"split_size: \[1, 1, 1, 1\], not \[2, 2, 2, 2\]")
    refused(example.weights, ARCH, arch, "image_size: 32, not 64")
    taken = fitting_weights(example.weights, ARCH, arch, ("image_size", "split_size"))
    np.testing.assert_array_equal(taken["head.weight"], example.weights["head.weight"])
    heads = ARCH.replace(num_heads=(4, 4, 4, 4))
    refused(example.weights, heads, ARCH, "num_heads", ("image_size", "split_size", "num_classes"))


def test_what_does_not_fit_is_listed(example):
    weights = dict(example.weights)
    weights["head.bias"] = np.zeros(4, np.float32)
    del weights["norm.weight"]
    weights["extra.weight"] = np.zeros(1, np.float32)
    listed = "1 missing:\n  norm.weight (64,)\n1 surplus:\n  extra.weight (1,)\n1 misshapen:\n  head.bias (4,), not (3,)"
    refused(weights, ARCH, ARCH, re.escape(listed))
    with pytest.raises(UserError, match=re.escape(listed)):
        Predictor(ARCH, 1).on_device(weights)


def test_a_new_head_only_when_asked(example):
    arch = ARCH.replace(num_classes=5)
    refused(example.weights, ARCH, arch, "num_classes: 3, not 5")
    taken = fitting_weights(example.weights, ARCH, arch, ("num_classes",))
    assert example.weights.keys() - taken.keys() == {"head.weight", "head.bias"}
    np.testing.assert_array_equal(taken["norm.bias"], example.weights["norm.bias"])
    refused({}, ARCH, arch, "missing", ("num_classes",))


def test_provenance(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    git("init")
    (tmp_path / "code.py").write_text("a")
    assert git_commit(tmp_path) is None, "untracked code has no commit"
    git("add", "code.py")
    git("commit", "-m", "one")
    head = subprocess.run(["git", "-C", str(tmp_path), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert git_commit(tmp_path) == {"commit": head.stdout.strip(), "dirty": False}
    (tmp_path / "code.py").write_text("b")
    assert git_commit(tmp_path)["dirty"]
    found = versions()
    assert found["mindspore"] == ms.__version__ and found["numpy"] == np.__version__ and "cswin" in found
    toolkit = tmp_path / "x86_64-linux"
    toolkit.mkdir()
    (toolkit / "ascend_toolkit_install.info").write_text("package_name=Ascend-cann-toolkit\nversion=8.2.RC1\n")
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path))
    assert cann_version() == "8.2.RC1" == versions()["cann"]
