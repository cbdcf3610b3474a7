"""PyTorch files: exact after conversion, back again, inferred or asked for, and never executed."""

import argparse
import collections
import json
import os
import pickle
import zipfile
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import torch_files
from networks import cut, initialised, named_gradients
from safetensors.numpy import load_file
from torch_files import Tensor, write_zip

from cswin.checkpoint import load_checkpoint
from cswin.commands import convert_weights as command
from cswin.convert.architecture import Choice, infer_architecture
from cswin.convert.convert import Options, convert_weights
from cswin.convert.torch_file import open_torch_file
from cswin.errors import UserError
from cswin.model.cswin import CSWin
from cswin.model.variants import VARIANTS, Architecture
from cswin.model.weights import Layout

DATA = Path(__file__).parents[1] / "golden"
GOLDEN_PTH = DATA / "cswin_two_branch.pth"
CHOICE = Choice(image_size=64, split_size=(1, 2, 2, 2), num_heads=(2, 4, 8, 8))


@pytest.fixture(scope="module")
def golden():
    return np.load(DATA / "model_two_branch.npz")


@pytest.fixture(scope="module")
def weights(golden):
    return {k.removeprefix("weight."): golden[k] for k in golden.files if k.startswith("weight.")}


@pytest.fixture
def torch_save(monkeypatch):
    """save(path, value): a file of torch.save."""
    torch_files.install(monkeypatch)
    return torch_files.save


def assert_same(found, wanted, tolerance=0.0):
    assert set(found) == set(wanted)
    for key, value in found.items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, wanted[key], rtol=tolerance, atol=0, err_msg=key)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_the_authors_file_gives_the_authors_logits(tmp_path, golden, weights, suffix):
    """state_dict is zeros in that file: taking the wrong set would show."""
    path = tmp_path / f"model{suffix}"
    convert_weights(GOLDEN_PTH, path, Options(choice=CHOICE))
    loaded = load_checkpoint(path)
    assert_same(loaded.weights, weights)
    config = json.loads(str(golden["config"]))
    config["image_size"] = config.pop("img_size")
    assert loaded.record.architecture == Architecture.from_dict(config)
    assert loaded.record.preprocessing.crop_ratio == 0.9 and loaded.record.class_names[9] == "9"
    assert loaded.record.provenance["conversions"][0]["weights"] == "state_dict_ema"
    network = CSWin(loaded.record.architecture)
    logits = network(ms.Tensor(golden["x"]), cut(network, loaded.select()[1])).asnumpy()
    assert np.abs(logits - golden["logits"]).max() < 1e-5


def test_the_sets_of_weights(tmp_path, weights, torch_save):
    zeros = {k: np.zeros_like(v) for k, v in weights.items()}
    path = tmp_path / "model.safetensors"
    for which, raw, ema in (("auto", weights, None), ("ema", weights, None), ("raw", zeros, None), ("both", zeros, weights)):
        written = convert_weights(GOLDEN_PTH, path, Options(which, CHOICE))
        assert_same(written.weights, raw)
        assert (written.ema is None) == (ema is None)
    assert_same(load_checkpoint(path).ema, weights)
    torch_save(tmp_path / "raw.pth", {"state_dict": {k: Tensor(v) for k, v in weights.items()}})
    assert_same(convert_weights(tmp_path / "raw.pth", path, Options(choice=CHOICE)).weights, weights)
    with pytest.raises(UserError, match="no ema weights"):
        convert_weights(tmp_path / "raw.pth", path, Options("ema", CHOICE))
    with pytest.raises(UserError, match="no ema weights"):
        convert_weights(tmp_path / "raw.pth", path, Options("both", CHOICE))


@pytest.mark.parametrize("protocol", [2, 4])
def test_bare_dictionaries_number_formats_and_views(tmp_path, weights, torch_save, protocol):
    """OrderedDict with attributes, `module.` before the names, a transposed view, an offset into a shared storage."""
    shared = np.concatenate([np.full(5, 9, np.float32), weights["head.bias"]])
    tensors = collections.OrderedDict()
    for key, value in weights.items():
        kind = {"weight": np.float16, "bias": np.float64}[key.split(".")[-1]]
        tensors["module." + key] = Tensor(value.astype(kind))
    turned = weights["head.weight"].T.copy()
    tensors["module.head.weight"] = Tensor(turned, turned.shape[::-1], (1, turned.shape[1]))
    tensors["module.head.bias"] = Tensor(shared, (10,), (1,), 5)
    bits = weights["norm.weight"].view(np.uint32) >> 16
    tensors["module.norm.weight"] = Tensor(bits.astype(np.uint16))
    tensors._metadata = collections.OrderedDict(version=1)
    torch_save(tmp_path / "bare.pt", tensors, protocol)
    found = convert_weights(tmp_path / "bare.pt", tmp_path / "a.safetensors", Options(choice=CHOICE)).weights
    assert_same({k: found[k] for k in ("head.weight", "head.bias")}, {k: weights[k] for k in ("head.weight", "head.bias")})
    np.testing.assert_array_equal(found["norm.weight"], (bits << 16).view(np.float32))
    wanted = {k: v.astype(np.float16).astype(np.float32) if k.endswith("weight") else v for k, v in weights.items()}
    assert_same(found, wanted | {k: found[k] for k in ("head.weight", "norm.weight")})


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_from_one_format_to_the_other(tmp_path, weights, suffix):
    first = convert_weights(GOLDEN_PTH, tmp_path / f"a{suffix}", Options("both", CHOICE, class_names=tuple("abcdefghij")))
    again = convert_weights(tmp_path / f"a{suffix}", tmp_path / "b.safetensors")
    assert_same(again.ema, weights)
    assert_same(again.weights, first.weights)
    assert again.record.architecture == first.record.architecture and again.record.class_names == tuple("abcdefghij")
    assert [c["file"] for c in again.record.provenance["conversions"]] == ["cswin_two_branch.pth", f"a{suffix}"]


def test_pytorch_reads_safetensors(tmp_path, weights):
    """Under the authors' names alone; PyTorch's own format is not written, and the message says what to write."""
    convert_weights(GOLDEN_PTH, tmp_path / "a.ckpt", Options("both", CHOICE))
    for suffix in (".pth", ".pt", ".tar"):
        with pytest.raises(UserError, match=r"safetensors\.torch\.load_file"):
            convert_weights(tmp_path / "a.ckpt", tmp_path / f"b{suffix}")
    convert_weights(tmp_path / "a.ckpt", tmp_path / "b.safetensors", Options("ema"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.ckpt", "b.safetensors"]
    assert_same(load_file(tmp_path / "b.safetensors"), weights)


class Evil:
    """Pickles to a call of any function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def attacks(marker):
    shell = f"touch {marker}"
    name = b"c__builtin__\neval\n"
    dotted = "_rebuild_tensor_v2.__globals__"
    return {
        "system": (pickle.dumps({"state_dict": Evil(os.system, shell)}), f"{os.system.__module__}.system"),
        "protocol 4": (pickle.dumps(Evil(os.system, shell), 4), f"{os.system.__module__}.system"),
        "eval": (pickle.dumps(Evil(eval, f"__import__('os').system('{shell}')"), 2), "__builtin__.eval"),
        "never called": (b"\x80\x02}" + name + b"0.", "__builtin__.eval"),
        "object": (pickle.dumps({"args": collections.Counter(lr=1)}), "collections.Counter"),
        "dotted": (b"\x80\x04\x8c\x0ctorch._utils\x8c\x1e" + dotted.encode() + b"\x93.", dotted),
    }


@pytest.mark.parametrize("kind", list(attacks("")))
def test_pickles_are_never_executed(tmp_path, kind):
    marker = tmp_path / "executed"
    pickled, name = attacks(marker)[kind]
    write_zip(tmp_path / "evil.pth", pickled)
    with pytest.raises(UserError, match=r"evil.pth.*refused") as error:
        convert_weights(tmp_path / "evil.pth", tmp_path / "out.ckpt", Options(choice=CHOICE))
    assert name in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evil.pth"]
    if kind in ("system", "protocol 4", "eval"):  # the attack works on a reader that trusts
        pickle.loads(pickled)
        assert marker.exists()


def test_a_pickle_cannot_change_the_reader(tmp_path):
    """BUILD on a function that the pickle may name."""
    pickled = b"\x80\x02ccollections\nOrderedDict\nN}X\x05\x00\x00\x00_callK\x01s\x86b."
    write_zip(tmp_path / "build.pth", pickled)
    with pytest.raises(UserError, match="sets attributes"):
        convert_weights(tmp_path / "build.pth", tmp_path / "out.ckpt")


def test_damaged_and_odd_files(tmp_path, weights, torch_save):
    def refused(name, message):
        with pytest.raises(UserError, match=message) as error:
            convert_weights(tmp_path / name, tmp_path / "out.ckpt", Options(choice=CHOICE))
        assert name in str(error.value) and not (tmp_path / "out.ckpt").exists()

    content = GOLDEN_PTH.read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: len(content) // 2])
    refused("cut.pth", "damaged")
    at = content.index(weights["head.weight"].tobytes())
    (tmp_path / "flip.pth").write_bytes(content[: at + 5] + bytes([content[at + 5] ^ 1]) + content[at + 6 :])
    refused("flip.pth", "damaged.*CRC")
    (tmp_path / "old.pth").write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2))
    refused("old.pth", "damaged")
    refused("none.pth", "is not a file")
    with zipfile.ZipFile(tmp_path / "photos.pth", "w") as archive:
        archive.writestr("a.txt", "")
    refused("photos.pth", "not one of torch.save")
    write_zip(tmp_path / "junk.pth", b"\x80\x02}X\xff\xff")
    refused("junk.pth", "damaged")
    write_zip(tmp_path / "packed.pth", pickle.dumps({}), compression=zipfile.ZIP_DEFLATED)
    refused("packed.pth", "compressed")
    torch_save(tmp_path / "list.pth", [Tensor(np.zeros(3, np.float32))])
    refused("list.pth", "holds a list")
    torch_save(tmp_path / "other.pth", {"net": {}, "epoch": 3})
    refused("other.pth", "no state dictionary, as state_dict, model, .*net, epoch")
    torch_save(tmp_path / "empty.pth", {"model": {}, "epoch": 3})
    refused("empty.pth", "its state dictionary is empty")
    torch_save(tmp_path / "resnet.pth", {"conv1.weight": Tensor(np.zeros((2, 2), np.float32))})
    refused("resnet.pth", "not a CSWin.*conv1.weight")
    torch_save(tmp_path / "counts.pth", {"state_dict": {"norm.steps": Tensor(np.zeros(3, np.int64))}})
    refused("counts.pth", "norm.steps holds int64")


@pytest.mark.parametrize("view", [((4,), (1,), 0), ((2,), (3,), 0), ((2, 2), (1, 1), 0), ((3,), (1,), 1), ((1,), (1,), -1),
                                  ((2,), (-1,), 1), ((10**12,), (0,), 0), ((2,), (1, 1), 0), ((1.5,), (1,), 0)])  # fmt: skip
def test_a_tensor_never_reaches_beyond_its_storage(tmp_path, torch_save, view):
    torch_save(tmp_path / "beyond.pth", {"a": Tensor(np.zeros(3, np.float32), *view)})
    with open_torch_file(tmp_path / "beyond.pth") as file, pytest.raises(UserError, match="damaged"):
        file.array(file.content["a"])


def test_parameters_that_do_not_fit_are_listed_and_nothing_is_written(tmp_path, weights, torch_save):
    broken = {k: Tensor(v) for k, v in weights.items() if k != "stage2.1.proj.bias"}
    broken["norm.weight"] = Tensor(np.zeros(3, np.float32))
    broken["head_dist.bias"] = Tensor(np.zeros(2, np.float32))
    torch_save(tmp_path / "a.pth", broken)
    (tmp_path / "out.ckpt").write_text("what was there before")
    with pytest.raises(UserError) as error:
        convert_weights(tmp_path / "a.pth", tmp_path / "out.ckpt", Options(choice=CHOICE))
    for line in ("1 missing:\n  stage2.1.proj.bias (16,)", "1 surplus:\n  head_dist.bias (2,)",
                 "1 misshapen:\n  norm.weight (3,), not (64,)"):  # fmt: skip
        assert line in str(error.value)
    assert (tmp_path / "out.ckpt").read_text() == "what was there before"


def shapes_of(arch):
    return Layout.of(arch).shapes


COLLAPSED = Architecture(8, (1, 2, 1, 1), (1, 8, 2, 2), (2, 1, 2, 4), image_size=64, in_channels=1, mlp_ratio=3.0)


@pytest.mark.parametrize("arch", [VARIANTS["cswin_64_12211_tiny_224"], COLLAPSED], ids=["tiny", "collapsed"])
def test_parameter_shapes_are_the_networks(arch):
    """Every gradient has its parameter's shape, and none is missing: the network takes what the layout says."""
    network, weights = initialised(arch.replace(depth=(1, 1, 1, 1), num_classes=3), 0)
    images = ms.Tensor(np.zeros((1, arch.in_channels, arch.image_size, arch.image_size), np.float32))
    parts = ms.grad(lambda *weights: network(images, weights).sum(), tuple(range(len(weights))))(*weights)
    assert {k: v.shape for k, v in named_gradients(network, parts).items()} == network.layout.shapes


def test_inference_from_shapes():
    def infer(name, choice=Choice(), **changes):  # noqa: B008 (frozen)
        return infer_architecture(shapes_of(VARIANTS[name].replace(**changes)), choice, "a.pth")

    tiny, small, base = "cswin_64_12211_tiny_224", "cswin_64_24322_small_224", "cswin_96_24322_base_384"
    assert infer(tiny, num_classes=21841) == VARIANTS[tiny].replace(num_classes=21841)
    with pytest.raises(UserError, match=r"(?s)do not decide.*small_224:.*\[1, 2, 7, 7\].*small_224_report:.*\[2, 2, 7, 7\]"):
        infer(small)
    with pytest.raises(UserError, match=r"(?s)do not decide.*base_224.*base_384"):
        infer(base)
    report = VARIANTS["cswin_64_24322_small_224_report"]
    assert infer(small, Choice(arch="cswin_64_24322_small_224_report")) == report
    assert infer(small, Choice(split_size=(2, 2, 7, 7))) == report
    assert infer(base, Choice(image_size=384)) == VARIANTS[base]
    with pytest.raises(UserError, match="embed_dim: 96, not 64"):
        infer(base, Choice(arch=tiny))
    with pytest.raises(UserError, match="does not divide"):
        infer(tiny, Choice(arch=tiny, image_size=256))
    wide = VARIANTS[tiny].replace(image_size=64, split_size=(1, 2, 2, 2), mlp_ratio=3.0, in_channels=1)
    choice = Choice(image_size=64, split_size=(1, 2, 2, 2), num_heads=(2, 4, 8, 16))
    assert infer_architecture(shapes_of(wide), choice, "a.pth") == wide


def test_a_record_is_not_overruled(tmp_path):
    convert_weights(GOLDEN_PTH, tmp_path / "a.safetensors", Options(choice=CHOICE))
    with pytest.raises(UserError, match=r"split_size: \[1, 2, 2, 2\], not \[2, 2, 2, 2\]"):
        convert_weights(tmp_path / "a.safetensors", tmp_path / "b.ckpt", Options(choice=Choice(split_size=(2, 2, 2, 2))))
    with pytest.raises(UserError, match="input file itself"):
        convert_weights(tmp_path / "a.safetensors", tmp_path / "a.safetensors")
    other = Options(preprocessing={"crop_ratio": 0.5})
    prep = convert_weights(tmp_path / "a.safetensors", tmp_path / "b.safetensors", other).record.preprocessing
    assert prep.crop_ratio == 0.5 and prep.image_size == 64


def test_a_new_head_only_when_asked(tmp_path, weights):
    options = Options(choice=CHOICE, class_names=("cat", "dog"))
    with pytest.raises(UserError, match="head of 10 classes, 2 names.*--new-head"):
        convert_weights(GOLDEN_PTH, tmp_path / "a.safetensors", options)
    assert not list(tmp_path.iterdir())
    options = Options("both", CHOICE, new_head=2, class_names=("cat", "dog"))
    written = convert_weights(GOLDEN_PTH, tmp_path / "a.safetensors", options)
    assert written.weights["head.weight"].shape == (2, 64) and written.record.architecture.num_classes == 2
    assert not written.weights["head.bias"].any() and 0.01 < written.weights["head.weight"].std() < 0.03
    np.testing.assert_array_equal(written.ema["head.weight"], written.weights["head.weight"])
    np.testing.assert_array_equal(written.ema["norm.bias"], weights["norm.bias"])
    other = convert_weights(GOLDEN_PTH, tmp_path / "b.safetensors", Options(choice=CHOICE, new_head=2, seed=1))
    assert other.record.class_names == ("0", "1")
    assert (other.weights["head.weight"] != written.weights["head.weight"]).all()


def test_weights_of_other_tools(tmp_path, weights):
    """A .ckpt of MindSpore itself has no record."""
    ms.save_checkpoint([{"name": k, "data": ms.Tensor(v)} for k, v in weights.items()], str(tmp_path / "plain.ckpt"))
    written = convert_weights(tmp_path / "plain.ckpt", tmp_path / "a.safetensors", Options(choice=CHOICE))
    assert_same(written.weights, weights)


def test_command(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    command.configure(parser)
    (tmp_path / "names.txt").write_text("".join(f"digit {i}\n" for i in range(10)))
    files = [str(GOLDEN_PTH), str(tmp_path / "a.safetensors")]
    options = ["--image-size", "64", "--split-size", *"1222", "--num-heads", *"2488", "--crop-ratio", "1.0"]
    options += ["--mean", *"000", "--std", *"111"]
    command.run(parser.parse_args([*files, *options, "--class-names", str(tmp_path / "names.txt")]))
    out = capsys.readouterr().out
    assert "111,010 parameters" in out and "split_size [1, 2, 2, 2]" in out and "from state_dict_ema" in out
    record = load_checkpoint(files[1]).record
    assert (
        record.class_names[3] == "digit 3" and record.preprocessing.crop_ratio == 1.0 and record.preprocessing.std == (1, 1, 1)
    )
    with pytest.raises(UserError, match="cannot be read as a list"):
        command.run(parser.parse_args([*files, "--class-names", str(tmp_path / "none.txt")]))
    with pytest.raises(UserError, match="suffix"):
        command.run(parser.parse_args([files[0], str(tmp_path / "a.onnx")]))


def test_channels_other_than_an_images_need_their_own_mean(tmp_path):
    """Such as two bands of a satellite."""
    from safetensors.numpy import save_file

    arch = VARIANTS["cswin_32_1121_digits_32"].replace(in_channels=2)
    save_file({k: np.zeros(s, np.float32) for k, s in shapes_of(arch).items()}, tmp_path / "bands.safetensors")
    with pytest.raises(UserError, match="2 channels: give --mean"):
        convert_weights(tmp_path / "bands.safetensors", tmp_path / "a.safetensors")
    given = {"mean": (0.1, 0.2), "std": (0.3, 0.4)}
    written = convert_weights(tmp_path / "bands.safetensors", tmp_path / "a.safetensors", Options(preprocessing=given))
    assert written.record.preprocessing.channels == 2 and written.record.architecture == arch
