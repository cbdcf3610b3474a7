"""What a first stage takes from a pretrained checkpoint: its head only where the classes are the same."""

import numpy as np
import pytest
from converted import converted
from photo import encode, photo
from recipes import DIGITS, stage

from cswin.checkpoint import Checkpoint, CheckpointRecord, save_checkpoint
from cswin.class_names import imagenet_words
from cswin.config.resolve import dump
from cswin.data.images.preprocessing import Preprocessing
from cswin.errors import UserError
from cswin.model.weights import initial_weights
from cswin.run.handover import prepare_start
from cswin.run.stage import Stage, StageFiles

HEAD = {"head.weight", "head.bias"}
DIGIT_NAMES = tuple("0123456789")


@pytest.fixture
def start(tmp_path):
    """The start on data of certain classes, from a checkpoint of certain classes, and its weights."""

    def prepare(known, wanted, provenance=None):
        config, _ = stage(
            DIGITS, pretrained="pretrained.safetensors", data={"source": "folder", "folder": "x", "classes": len(wanted)}
        )
        arch = config.architecture.replace(num_classes=len(known))
        weights = initial_weights(arch, np.random.default_rng(0))
        ema = {name: value + np.float32(1) for name, value in weights.items()}
        weights["head.bias"] = np.arange(len(known), dtype=np.float32)
        ema["head.bias"] = weights["head.bias"] + 100
        record = CheckpointRecord(arch, known, Preprocessing.of_stage(config), provenance or {})
        save_checkpoint(tmp_path / "pretrained.safetensors", Checkpoint(record, weights, ema))
        return prepare_start(config, tmp_path / "pretrained.safetensors", wanted), weights, ema

    return prepare


def test_the_head_is_kept_for_the_same_classes(start):
    begun, _, ema = start(DIGIT_NAMES, DIGIT_NAMES)
    assert begun.weights.keys() == ema.keys() and all(np.array_equal(begun.weights[name], ema[name]) for name in ema)
    assert begun.record["head"] == "kept, the classes are the same" and begun.record["new"] == []


def test_its_rows_are_moved_where_the_order_differs(start):
    wanted = ("7", "2", "9", "0", "1", "3", "4", "5", "6", "8")
    begun, _, ema = start(DIGIT_NAMES, wanted)
    np.testing.assert_array_equal(begun.weights["head.bias"], [107, 102, 109, 100, 101, 103, 104, 105, 106, 108])
    np.testing.assert_array_equal(begun.weights["head.weight"][0], ema["head.weight"][7])
    assert begun.record["head"] == "kept, its rows reordered to the data's classes" and begun.record["new"] == []


@pytest.mark.parametrize("wanted", [
    tuple("abcdefghij"), ("0", "1", "2", "3", "4", "5", "6", "7", "8", "x"), DIGIT_NAMES[:5], (*DIGIT_NAMES, "10"),
])  # fmt: skip
def test_it_is_replaced_for_other_classes(start, wanted):
    begun, _, ema = start(DIGIT_NAMES, wanted)
    assert ema.keys() - begun.weights.keys() == HEAD == set(begun.record["new"])
    assert begun.record["head"] == (
        f"replaced by a new one for other classes: the checkpoint has 10 (0, 1, 2, …), the data {len(wanted)} ({wanted[0]}, "
        f"{wanted[1]}, {wanted[2]}, …)"
    )


def test_imagenet_s_classes_by_their_numbers(start):
    """Numbered folders are sorted as text: 0, 1, 10, 100, …"""
    wanted = tuple(sorted(map(str, range(1000))))
    begun, *_ = start(tuple(imagenet_words()), wanted)
    np.testing.assert_array_equal(begun.weights["head.bias"], [100 + int(name) for name in wanted])


@pytest.mark.parametrize("select_by", ["raw", "ema"])
def test_the_set_that_selected_the_epoch_is_taken(start, select_by):
    begun, weights, ema = start(DIGIT_NAMES, DIGIT_NAMES, {"config": {"evaluation": {"select_by": select_by}}})
    assert begun.record["which"] == select_by
    np.testing.assert_array_equal(begun.weights["norm.bias"], {"raw": weights, "ema": ema}[select_by]["norm.bias"])


def test_weights_that_are_gone_are_named_with_the_remedy(tmp_path):
    """Published weights can be removed after the first stage; a later change of its settings needs them again."""
    images = {f"{split}/{name}/1.png": encode(photo(32, 32, 0), "PNG") for split in ("train", "val") for name in "ab"}
    dataset = converted(tmp_path, images)
    config, runtime = stage(DIGITS, pretrained="weights:cswin_tiny_224", data={"source": "folder", "folder": "x", "classes": 2})
    for name, section in {"stage.yaml": config, "runtime.yaml": runtime}.items():
        (tmp_path / name).write_text(dump(section))
    weights = tmp_path / "weights/cswin_tiny_224.safetensors"
    files = StageFiles(tmp_path / "stage.yaml", tmp_path / "runtime.yaml", dataset.path, tmp_path, weights)
    with pytest.raises(
        UserError, match=f"^{weights}: is missing, .* starts from weights:cswin_tiny_224; .*cswin weights get NAME"
    ):
        Stage.read(files)
    weights.parent.mkdir()
    weights.touch()
    assert Stage.read(files).config == config
