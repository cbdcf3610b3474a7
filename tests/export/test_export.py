"""Exported files, run by other runtimes, give the authors' logits; what does not is not kept."""

import argparse
import json
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import onnx  # after mindspore: both set up protobuf
import onnxruntime
import pytest
from PIL import Image

from cswin.checkpoint import Checkpoint, CheckpointRecord, Preprocessing, save_checkpoint
from cswin.commands import export as command
from cswin.errors import UserError
from cswin.export import onnx_graph
from cswin.export.export import export
from cswin.model.variants import Architecture
from cswin.predict import ImageReader

DATA = Path(__file__).parents[1] / "golden"


def golden(name):
    values = np.load(DATA / f"{name}.npz")
    config = json.loads(str(values["config"]))
    config["image_size"] = config.pop("img_size")
    arch = Architecture.from_dict(config)
    weights = {k.removeprefix("weight."): values[k] for k in values.files if k.startswith("weight.")}
    preprocessing = Preprocessing(arch.image_size, 0.9, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    zeros = {k: np.zeros_like(v) for k, v in weights.items()}
    record = CheckpointRecord(arch, tuple(f"class {i}" for i in range(arch.num_classes)), preprocessing)
    return values, Checkpoint(record, zeros, ema=weights)  # the moving average is what counts


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export(golden("model_two_branch")[1], tmp_path_factory.mktemp("export") / "model.onnx")


def assert_golden(values, path):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = values["x"]
    assert np.abs(session.run(None, {"images": x})[0] - values["logits"]).max() < 1e-5
    alone = session.run(["logits"], {"images": x[:1]})[0]
    assert np.abs(alone - values["logits"][:1]).max() < 1e-5


def test_onnx_gives_the_authors_logits(exported):
    assert_golden(golden("model_two_branch")[0], exported.path)
    assert exported.difference < 1e-5


@pytest.mark.parametrize("name", ["model_collapsed", "model_report_stripes"])
def test_graph_of_other_architectures(tmp_path, name):
    values, checkpoint = golden(name)
    onnx.save(onnx_graph.onnx_model(checkpoint.record.architecture, checkpoint.ema, {}), str(tmp_path / "model.onnx"))
    assert_golden(values, tmp_path / "model.onnx")


def test_onnx_file_is_plain_and_self_describing(exported):
    _, checkpoint = golden("model_two_branch")
    model = onnx.load(str(exported.path))
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    operations = {node.op_type for node in model.graph.node}
    assert "Erf" in operations and "Tanh" not in operations
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    np.testing.assert_array_equal(stored["head.weight"], checkpoint.ema["head.weight"])
    record = json.loads({p.key: p.value for p in model.metadata_props}["cswin_record"])
    assert CheckpointRecord.from_dict(record) == checkpoint.record


def test_what_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    """GELU's tanh approximation: small enough to go unseen, large enough to be refused where activations are of usual size
    (the golden weights are so small that every GELU is nearly linear)."""
    _, checkpoint = golden("model_two_branch")
    for name in checkpoint.ema:
        if name.endswith("fc1.weight"):
            checkpoint.ema[name] = checkpoint.ema[name] * np.float32(20)
    assert export(checkpoint, tmp_path / "exact.onnx").difference < 1e-5

    def tanh_gelu(self, x):
        cube = self.add("Mul", self.add("Mul", x, x), self.add("Mul", x, self.constant(0.044715)))
        inner = self.add("Mul", self.add("Add", x, cube), self.constant(np.sqrt(2 / np.pi)))
        tail = self.add("Add", self.add("Tanh", inner), self.constant(1.0))
        return self.add("Mul", self.add("Mul", x, self.constant(0.5)), tail)

    monkeypatch.setattr(onnx_graph._Graph, "gelu", tanh_gelu)
    with pytest.raises(UserError, match="not written, because its logits differ"):
        export(checkpoint, tmp_path / "tanh.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["exact.onnx", "exact.onnx.json"]


def test_description_is_enough_to_feed_the_file(tmp_path, exported):
    """A user who has the JSON file, Pillow and NumPy gets what `cswin predict` gets."""
    _, checkpoint = golden("model_two_branch")
    described = json.loads(exported.description.read_text("utf-8"))
    assert described["input"]["name"] == "images" and described["input"]["shape"] == ["any", 3, 64, 64]
    assert described["output"]["shape"] == ["any", 10] and described["class_names"][9] == "class 9"
    p = described["preprocessing"]
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    image.save(tmp_path / "a.png")
    short = int(p["image_size"] / p["crop_ratio"])
    resized = image.resize((int(short * 120 / 90), short), Image.Resampling[p["interpolation"].upper()])
    left, top = round((resized.width - 64) / 2), round((resized.height - 64) / 2)
    pixels = np.asarray(resized.crop((left, top, left + 64, top + 64)))
    fed = ((pixels / 255 - p["mean"]) / p["std"]).transpose(2, 0, 1)
    np.testing.assert_allclose(ImageReader(checkpoint.record.preprocessing)(tmp_path / "a.png"), fed, atol=1e-5)


def test_the_set_that_selected_the_epoch_is_exported(tmp_path):
    """Its moving average is what gives the golden logits."""
    values, checkpoint = golden("model_collapsed")
    swapped = Checkpoint(checkpoint.record, checkpoint.ema, ema=checkpoint.weights)
    checkpoint.record.provenance["config"] = {"evaluation": {"select_by": "raw"}}
    written = export(swapped, tmp_path / "m.onnx")
    assert_golden(values, written.path)
    assert written.which == "raw" and json.loads(written.description.read_text("utf-8"))["weights"] == "raw"
    onnx_file = onnx.load(str(export(swapped, tmp_path / "e.onnx", which="ema").path))
    assert not any(onnx.numpy_helper.to_array(i).any() for i in onnx_file.graph.initializer if i.name == "head.weight")


def test_mindir_is_exact(tmp_path):
    values, checkpoint = golden("model_two_branch")
    n = len(values["x"])
    written = export(checkpoint, tmp_path / "model.mindir", batch_size=n)
    assert written.difference < 1e-6
    graph = ms.nn.GraphCell(ms.load(str(tmp_path / "model.mindir")))
    assert np.abs(graph(ms.Tensor(values["x"])).asnumpy() - values["logits"]).max() < 1e-5
    assert json.loads(written.description.read_text("utf-8"))["input"]["shape"][0] == n
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.mindir", "model.mindir.json"]


def test_wrong_wishes(tmp_path, monkeypatch):
    _, checkpoint = golden("model_two_branch")
    with pytest.raises(UserError, match="suffix"):
        export(checkpoint, tmp_path / "model.tflite")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"needs the package onnxruntime: pip install -e '.\[export\]'"):
        export(checkpoint, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_command(tmp_path, capsys):
    _, checkpoint = golden("model_collapsed")
    save_checkpoint(tmp_path / "m.safetensors", checkpoint)
    parser = argparse.ArgumentParser()
    command.configure(parser)
    arguments = ["--checkpoint", str(tmp_path / "m.safetensors"), str(tmp_path / "m.onnx")]
    command.run(parser.parse_args(arguments))
    assert "m.onnx: ema weights; its logits differ from the network's by" in capsys.readouterr().out
    assert (tmp_path / "m.onnx").is_file() and (tmp_path / "m.onnx.json").is_file()
    with pytest.raises(UserError, match="--batch"):
        command.run(parser.parse_args([*arguments, "--batch", "0"]))
