"""Files as training leaves them: the weights are found among what lies beside them, and what is left out is said."""

import argparse
import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import torch_files
from safetensors.numpy import save_file
from torch_files import Tensor, save, save_old

from cswin.checkpoint import load_checkpoint
from cswin.class_names import imagenet_words
from cswin.cli import main
from cswin.convert.architecture import Choice
from cswin.convert.convert import Options, convert_weights
from cswin.convert.torch_file import open_torch_file
from cswin.errors import UserError
from cswin.model.variants import Architecture
from cswin.model.weights import Layout, initial_weights

GOLDEN = Path(__file__).parents[1] / "golden"
ARCH = Architecture(8, (1, 1, 1, 1), (1, 1, 1, 1), (2, 2, 2, 2), image_size=32, num_classes=3)
CHOICE = Choice(image_size=32, split_size=(1, 1, 1, 1), num_heads=(2, 2, 2, 2))


@pytest.fixture(scope="module")
def weights():
    return initial_weights(ARCH, np.random.default_rng(0))


@pytest.fixture
def torch(monkeypatch, weights):
    """The weights as torch's tensors."""
    torch_files.install(monkeypatch)
    return {name: Tensor(value) for name, value in weights.items()}


def converted(path, which="auto"):
    """What was written, and what was left out."""
    written = convert_weights(path, path.with_name("out.safetensors"), Options(which, CHOICE))
    return written, written.record.provenance["conversions"][-1]


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def prefixed(tensors, prefix):
    return {prefix + name: value for name, value in tensors.items()}


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "backbone.", "module._orig_mod.", "_orig_mod.module.", "model.backbone."]
)
def test_prefixes(tmp_path, torch, weights, prefix):
    save(tmp_path / "a.pth", {"state_dict": prefixed(torch, prefix)})
    written, conversion = converted(tmp_path / "a.pth")
    assert_same(written.weights, weights)
    assert conversion["left_out"] == []


def test_what_lies_beside_a_backbone_is_left_out(tmp_path, torch, weights):
    """As in a detector's file."""
    beside = {
        "module.decode_head.conv.weight": Tensor(np.zeros(3, np.float32)),
        "module.decode_head.conv.bias": Tensor(np.zeros(1, "f4")),
    }
    save(tmp_path / "a.pth", {"state_dict": prefixed(torch, "module.backbone.") | beside})
    written, conversion = converted(tmp_path / "a.pth")
    assert_same(written.weights, weights)
    assert conversion["left_out"] == ["decode_head.* (2)"]


def test_counters_of_profilers(tmp_path, torch, weights):
    counters = {f"stage1.0.{name}": Tensor(np.zeros(1)) for name in ("total_ops", "total_params", "mlp.total_ops")}
    save(tmp_path / "a.pth", {"model": torch | counters | {"total_ops": Tensor(np.zeros(1))}})
    written, conversion = converted(tmp_path / "a.pth")
    assert_same(written.weights, weights)
    assert conversion["left_out"] == ["*.total_ops (3)", "*.total_params"]


@pytest.mark.parametrize(("keys", "which", "taken"), [
    (("model", "model_ema"), "auto", "model_ema"), (("model", "model_ema"), "raw", "model"), (("model",), "auto", "model"),
    (("state_dict", "model_ema"), "auto", "model_ema"), (("model_state_dict",), "auto", "model_state_dict"),
])  # fmt: skip
def test_keys_of_training_scripts(tmp_path, torch, weights, keys, which, taken):
    zeros = {name: Tensor(np.zeros_like(value)) for name, value in weights.items()}
    content = {key: torch if key == taken else zeros for key in keys}
    save(tmp_path / "a.pth", content | {"optimizer": {"lr": 1.0}, "epoch": 299, "scaler": {}})
    written, conversion = converted(tmp_path / "a.pth", which)
    assert_same(written.weights, weights)
    assert (conversion["weights"], conversion["epoch"]) == (taken, 299)
    assert conversion["left_out"] == [*(key for key in keys if key != taken), "optimizer", "scaler"]


@pytest.mark.parametrize("write", [save, save_old])
def test_inert_objects_beside_the_weights(tmp_path, torch, weights, write):
    """What timm and many scripts save: their options and the best accuracy as NumPy has it."""
    beside = {"args": argparse.Namespace(lr=1e-3, names=["a"]), "best": np.float64(83.6), "count": np.int64(3), "arch": "cswin"}
    write(tmp_path / "a.pth", {"state_dict": torch} | beside)
    written, conversion = converted(tmp_path / "a.pth")
    assert_same(written.weights, weights)
    assert conversion["left_out"] == ["args", "best", "count"] and conversion["arch"] == "cswin"


def test_an_inert_object_is_no_way_in(tmp_path):
    """A Namespace that holds a function, NumPy's pickles with another function in them, instructions to change the stand-in."""
    for name, pickled in {
        "function": pickle.dumps(argparse.Namespace(call=eval), 2),
        "load": b"\x80\x02cnumpy\nload\n(X\x01\x00\x00\x00xtR.",
        "changed": b"\x80\x02cargparse\nNamespace\n}b.",
        "called": b"\x80\x02cargparse\nNamespace\n)\x81(X\x01\x00\x00\x00xtR.",
    }.items():
        torch_files.write_zip(tmp_path / f"{name}.pth", pickled)
        with pytest.raises(UserError, match="refused|damaged"):
            convert_weights(tmp_path / f"{name}.pth", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_file_of_the_old_format(tmp_path, torch, weights):
    shared = np.arange(8, dtype=np.float32)
    torch["head.bias"] = Tensor(shared, (3,), (1,), 5)
    torch["head.weight"] = Tensor(weights["head.weight"].astype(np.float16))
    save_old(tmp_path / "a.pth", {"state_dict_ema": torch, "args": argparse.Namespace(lr=1)})
    written, conversion = converted(tmp_path / "a.pth")
    halved = weights["head.weight"].astype(np.float16).astype(np.float32)
    assert_same(written.weights, weights | {"head.bias": shared[5:], "head.weight": halved})
    assert conversion["left_out"] == ["args"]


def test_a_file_that_pytorch_wrote_in_the_old_format():
    """PyTorch 2.13, torch.save(…, _use_new_zipfile_serialization=False) of what is compared here."""
    with open_torch_file(GOLDEN / "old_format.pth") as file:
        state = file.content["state_dict"]
        np.testing.assert_array_equal(file.array(state["a.weight"]), np.arange(6, dtype=np.float32).reshape(2, 3).T)
        np.testing.assert_array_equal(file.array(state["a.bias"]), np.array([0.5, -2], np.float16))
        np.testing.assert_array_equal(file.array(state["b.weight"]), np.array([1.5, -0.25], np.float32))
        np.testing.assert_array_equal(file.array(state["count"]), np.array(7))
        assert file.content["epoch"] == 3 and list(file.content) == ["state_dict", "epoch", "args", "best"]


def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "a.pth").symlink_to("/proc/self/mem")
    with pytest.raises(UserError, match=r"a.pth: cannot be read \(Input/output error\)"):
        convert_weights(tmp_path / "a.pth", tmp_path / "out.safetensors")


class Boundless(int):
    """Stands for an array that says of itself to be larger than any file."""

    dtype, size = np.dtype("f4"), 2**70

    def tobytes(self):
        return b""


def test_damage_in_the_old_format(tmp_path, torch, weights):
    save_old(tmp_path / "a.pth", {"state_dict": torch})
    content = (tmp_path / "a.pth").read_bytes()
    at = content.index(weights["head.weight"].tobytes()) - 8
    damages = {
        "cut": content[:-5], "in the pickle": content[:200], "start": content[:20],
        "moved": content[:at] + b"\0" + content[at:], "count": content[:at] + b"\xff" * 8 + content[at + 8 :],
    }  # fmt: skip
    for name, damaged in damages.items():
        (tmp_path / f"{name}.pth").write_bytes(damaged)
        with pytest.raises(UserError, match=f"{name}.pth: is damaged"):
            convert_weights(tmp_path / f"{name}.pth", tmp_path / "out.safetensors", Options(choice=CHOICE))
    torch["head.bias"] = Tensor(np.zeros(3, np.float32))
    torch["head.bias"].storage.array = Boundless(0)
    save_old(tmp_path / "huge.pth", {"state_dict": torch})
    with pytest.raises(UserError, match="huge.pth: is damaged .its tensors end at byte"):
        convert_weights(tmp_path / "huge.pth", tmp_path / "out.safetensors", Options(choice=CHOICE))
    save_old(tmp_path / "new.pth", {"state_dict": torch}, version=1002)
    with pytest.raises(UserError, match="old format in version 1002, 1001 is read"):
        convert_weights(tmp_path / "new.pth", tmp_path / "out.safetensors")


def test_a_training_checkpoint_of_mindspore(tmp_path, weights):
    """As its optimizers leave them, with LayerNorm's parameters under MindSpore's names."""
    norms = {"weight": "gamma", "bias": "beta"}
    renamed = {
        f"{module}.{norms[last]}" if "norm" in module.rpartition(".")[2] else name: value
        for name, value in weights.items()
        for module, _, last in [name.rpartition(".")]
    }
    assert sum(name.endswith("gamma") for name in renamed) > 8
    beside = {f"{kind}.{name}": np.ones_like(value) for kind in ("moment1", "moment2") for name, value in renamed.items()}
    beside |= {
        "global_step": np.array([7], np.int32),
        "learning_rate": np.array(0.1, np.float32),
        "beta1_power": np.ones(1, "f4"),
    }
    entries = [{"name": name, "data": ms.Tensor(value)} for name, value in (renamed | beside).items()]
    ms.save_checkpoint(entries, str(tmp_path / "a.ckpt"), append_dict={"epoch_num": 3})
    written, conversion = converted(tmp_path / "a.ckpt")
    assert_same(written.weights, weights)
    count = len(weights)
    wanted = {f"moment1.* ({count})", f"moment2.* ({count})", "global_step", "learning_rate", "beta1_power"}
    assert wanted <= set(conversion["left_out"]) <= wanted | {"epoch_num"}


def test_bfloat16_and_float16_safetensors(tmp_path, weights):
    """By the format's definition: length of the header, header, data. The numbers are exact in bfloat16."""
    exact = {name: (value.view(np.uint32) & 0xFFFF0000).view(np.float32) for name, value in weights.items()}
    half = weights["head.bias"].astype(np.float16)
    header, data = {}, b""
    for name, value in exact.items():
        kind, part = (
            ("F16", half.tobytes()) if name == "head.bias" else ("BF16", (value.view(np.uint32) >> 16).astype("<u2").tobytes())
        )
        header[name] = {"dtype": kind, "shape": value.shape, "data_offsets": [len(data), len(data) + len(part)]}
        data += part
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    written = convert_weights(tmp_path / "a.safetensors", tmp_path / "b.safetensors", Options(choice=CHOICE))
    assert_same(written.weights, exact | {"head.bias": half.astype(np.float32)})


@pytest.mark.parametrize("write", [save, save_old])
def test_bfloat16_and_float16_of_torch(tmp_path, torch, weights, write):
    """The numbers are exact in bfloat16; the stand-ins write its bits as 16-bit integers."""
    exact = {name: (value.view(np.uint32) & 0xFFFF0000).view(np.float32) for name, value in weights.items()}
    half = weights["head.bias"].astype(np.float16)
    state = {name: Tensor((value.view(np.uint32) >> 16).astype(np.uint16)) for name, value in exact.items()}
    write(tmp_path / "a.pth", {"model_ema": state | {"head.bias": Tensor(half)}})
    written, _ = converted(tmp_path / "a.pth")
    assert_same(written.weights, exact | {"head.bias": half.astype(np.float32)})


def test_only_other_things(tmp_path):
    save_file({"moment1.a": np.zeros(1, np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"a.safetensors: holds no weights, only moment1\.\*"):
        convert_weights(tmp_path / "a.safetensors", tmp_path / "b.safetensors")


IMAGENET = ARCH.replace(num_classes=1000)


def thousand(folder, torch=None):
    weights = initial_weights(IMAGENET, np.random.default_rng(1))
    save(folder / "a.pth", {"state_dict": {name: Tensor(value) for name, value in weights.items()}, "optimizer": {}})
    return [
        str(folder / "a.pth"),
        str(folder / "a.safetensors"),
        "--image-size",
        "32",
        "--split-size",
        *"1111",
        "--num-heads",
        *"2222",
    ]


def test_a_thousand_outputs_are_imagenet_s(tmp_path, torch, capsys):
    arguments = thousand(tmp_path)
    assert main(["convert-weights", *arguments]) == 0
    out = capsys.readouterr().out
    assert "classes n01440764 (tench, Tinca tinca) to n15075141 (toilet tissue, toilet paper, bathroom tissue)" in out
    assert "left out: optimizer" in out
    names = load_checkpoint(arguments[1]).record.class_names
    assert names == tuple(imagenet_words())
    numbered = tmp_path / "numbers.txt"
    numbered.write_bytes(b"\xef\xbb\xbf" + b"".join(b"%d\r\n" % i for i in range(1000)))
    assert main(["convert-weights", *arguments, "--class-names", str(numbered)]) == 0
    assert load_checkpoint(arguments[1]).record.class_names == tuple(map(str, range(1000)))
    again = str(tmp_path / "again.safetensors")
    assert main(["convert-weights", arguments[1], again]) == 0
    assert load_checkpoint(again).record.class_names == names, "numbers are what an older version gave"
    assert main(["convert-weights", arguments[1], again, "--new-head", "1000"]) == 0
    assert load_checkpoint(again).record.class_names == tuple(map(str, range(1000))), "a fresh head knows no class"


def test_names_of_one_s_own_stay(tmp_path, torch):
    arguments = thousand(tmp_path)
    own = tmp_path / "own.tsv"
    own.write_text("".join(f"class {i}\twords\n" for i in range(1000)))
    assert main(["convert-weights", *arguments, "--class-names", str(own)]) == 0
    assert main(["convert-weights", arguments[1], str(tmp_path / "b.safetensors")]) == 0
    assert load_checkpoint(tmp_path / "b.safetensors").record.class_names[999] == "class 999"


def test_names_in_a_terminal_that_cannot_show_them(tmp_path, torch):
    """Such as a C locale, or one of the encodings before UTF-8."""
    save(tmp_path / "a.pth", {"state_dict": torch})
    (tmp_path / "names.txt").write_text("海豚\nb\nc\n", encoding="utf-8")
    options = [
        "--image-size",
        "32",
        "--split-size",
        *"1111",
        "--num-heads",
        *"2222",
        "--class-names",
        str(tmp_path / "names.txt"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "cswin", "convert-weights", str(tmp_path / "a.pth"), str(tmp_path / "a.safetensors"), *options],
        env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "classes \\u6d77\\u8c5a to c" in done.stdout
    assert load_checkpoint(tmp_path / "a.safetensors").record.class_names[0] == "海豚"


def test_shapes_are_those_of_the_layout(weights):
    assert {name: value.shape for name, value in weights.items()} == Layout.of(ARCH).shapes
