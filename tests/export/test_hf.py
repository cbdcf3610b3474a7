"""A folder for the hub: what other programs read from it, and where its figures come from."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from cswin.checkpoint import Checkpoint, CheckpointRecord, Preprocessing, file_sha256, load_checkpoint, save_checkpoint
from cswin.class_names import imagenet_words
from cswin.cli import main
from cswin.export.hf import front_matter, timm_config
from cswin.model.variants import VARIANTS, Architecture
from cswin.model.weights import initial_weights

ARCH = Architecture(8, (1, 1, 1, 1), (1, 1, 1, 1), (2, 2, 2, 2), image_size=32, num_classes=3)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NAMES = ("n02012849", "海豚", "a: b")
FIGURES = {"n": 40, "right1": 31, "right5": 40, "top1": 77.5, "top5": 100.0}
CARD = """# mine

![curves](curves.png) [all](config/one.yaml) [paper](https://arxiv.org/abs/2107.00652) [out](../secret.txt) [gone](gone.csv) [up](#top)
"""


def save(path: Path, **provenance) -> Checkpoint:
    weights = initial_weights(ARCH, np.random.default_rng(0))
    record = CheckpointRecord(ARCH, NAMES, Preprocessing(32, 0.875, MEAN, STD), provenance)
    checkpoint = Checkpoint(record, weights, ema={name: value + 1 for name, value in weights.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, checkpoint)
    return checkpoint


def read(folder: Path) -> tuple[dict, str]:
    """Front matter and text of the model card."""
    _, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


@pytest.fixture
def run(tmp_path) -> Path:
    """A run's folder with what `cswin export hf` looks at."""
    folder = tmp_path / "results/mine"
    save(folder / "one/checkpoint.safetensors", config={"evaluation": {"select_by": "ema"}})
    (folder / "one/record.json").write_text("{}")
    evaluation = {"checkpoint": file_sha256(folder / "one/checkpoint.safetensors"), "raw": {}, "ema": FIGURES}
    (folder / "one/evaluation.json").write_text(json.dumps(evaluation))
    (folder / "README.md").write_text(CARD)
    (folder / "curves.png").write_bytes(b"curves")
    (folder / "config").mkdir()
    (folder / "config/one.yaml").write_text("a: 1")
    (tmp_path / "results/secret.txt").write_text("secret")
    return folder


@pytest.mark.parametrize("which, options", [("ema", []), ("raw", ["--which", "raw"])])
def test_weights_under_the_authors_names(tmp_path, capsys, which, options):
    checkpoint = save(tmp_path / "m.safetensors")
    assert main(["export", "hf", str(tmp_path / "hub"), "--checkpoint", str(tmp_path / "m.safetensors"), *options]) == 0
    found = load_file(tmp_path / "hub/model.safetensors")
    wanted = checkpoint.ema if which == "ema" else checkpoint.weights
    assert found.keys() == wanted.keys() and "stage1_conv_embed.0.weight" in found
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value)
    again = load_checkpoint(tmp_path / "hub/model.safetensors")
    assert again.record == checkpoint.record and again.select()[0] == "raw"
    assert f"{which} weights; README.md without a run card, without figures" in capsys.readouterr().out
    front, text = read(tmp_path / "hub")
    assert front == {"pipeline_tag": "image-classification", "tags": ["image-classification", "cswin", "mindspore"]}
    assert text.startswith("\n# hub\n") and ("(EMA)" in text) == (which == "ema")


def test_configuration_as_timm_writes_it(tmp_path):
    save(tmp_path / "m.safetensors")
    main(["export", "hf", str(tmp_path / "hub"), "--checkpoint", str(tmp_path / "m.safetensors")])
    config = json.loads((tmp_path / "hub/config.json").read_text(encoding="utf-8"))
    assert (config["architecture"], config["num_classes"], config["num_features"]) == ("cswin", 3, 64)
    assert tuple(config["label_names"]) == NAMES and config["label_descriptions"]["n02012849"] == "crane"
    pretrained = config["pretrained_cfg"]
    assert pretrained["input_size"] == [3, 32, 32] and pretrained["pool_size"] == [1, 1] and pretrained["num_classes"] == 3
    assert (pretrained["crop_pct"], pretrained["interpolation"], pretrained["crop_mode"]) == (0.875, "bicubic", "center")
    assert (tuple(pretrained["mean"]), tuple(pretrained["std"])) == (MEAN, STD)
    names = initial_weights(ARCH, np.random.default_rng(0))
    assert all(f"{pretrained[layer]}.{kind}" in names for layer in ("first_conv", "classifier") for kind in ("weight", "bias"))


@pytest.mark.parametrize(
    "name, authors",
    [
        ("cswin_64_12211_tiny_224", "CSWin_64_12211_tiny_224"),
        ("cswin_144_24322_large_384", "CSWin_144_24322_large_384"),
        ("cswin_64_24322_small_224_report", "cswin_64_24322_small_224_report"),  # the authors have no such stripes
        ("cswin_32_1121_digits_32", "cswin_32_1121_digits_32"),
    ],
)
def test_name_of_the_architecture(name, authors):
    """Also with another number of classes."""
    arch = VARIANTS[name].replace(num_classes=7)
    record = CheckpointRecord(arch, tuple("abcdefg"), Preprocessing(arch.image_size, 1.0, MEAN, STD))
    config = timm_config(record)
    assert config["architecture"] == authors and config["model_args"] == {"img_size": arch.image_size}
    assert "label_descriptions" not in config


def test_the_card_of_the_run_with_its_figures(run, tmp_path, capsys):
    checkpoint, hub = str(run / "one/checkpoint.safetensors"), tmp_path / "hub"
    assert main(["export", "hf", str(hub), "--checkpoint", checkpoint, "--license", "apache-2.0"]) == 0
    front, text = read(hub)
    assert front["license"] == "apache-2.0"
    [result] = front["model-index"][0]["results"]
    assert front["model-index"][0]["name"] == "hub" and result["task"] == {"type": "image-classification"}
    assert [(m["type"], m["name"], m["value"]) for m in result["metrics"]] == [
        ("accuracy", "top-1, %", 77.5), ("accuracy", "top-5, %", 100.0)]  # fmt: skip
    assert CARD in text and "model.safetensors" in text
    files = {path.relative_to(hub).as_posix() for path in hub.rglob("*") if path.is_file()}
    assert files == {"README.md", "config.json", "model.safetensors", "curves.png", "config/one.yaml"}
    assert f"README.md from {run / 'README.md'}, with the figures of its evaluation" in capsys.readouterr().out


def test_the_card_is_found_from_the_stage_s_folder(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(run / "one")
    assert main(["export", "hf", str(tmp_path / "hub"), "--checkpoint", "checkpoint.safetensors"]) == 0
    assert (
        f"README.md from {run / 'README.md'}, with the figures" in capsys.readouterr().out and CARD in read(tmp_path / "hub")[1]
    )


def test_figures_of_another_checkpoint_are_refused(run, tmp_path, capsys):
    save(run / "one/checkpoint.safetensors", trained="again")
    assert main(["export", "hf", str(tmp_path / "hub"), "--checkpoint", str(run / "one/checkpoint.safetensors")]) == 2
    error = capsys.readouterr().err
    assert "evaluation.json: is of another checkpoint than" in error and "snakemake" in error
    assert not (tmp_path / "hub").exists()


def test_imagenet_is_named():
    arch = VARIANTS["cswin_64_12211_tiny_224"]
    record = CheckpointRecord(arch, tuple(imagenet_words()), Preprocessing(224, 0.9, MEAN, STD))
    front = front_matter("m", record, FIGURES, None)
    assert front["datasets"] == ["imagenet-1k"] and "license" not in front
    dataset = front["model-index"][0]["results"][0]["dataset"]
    assert dataset == {"type": "imagenet-1k", "name": "ImageNet-1K", "split": "validation"}


def test_wrong_targets(tmp_path, capsys):
    save(tmp_path / "m.safetensors")
    (tmp_path / "file").touch()
    for target, words in (
        (["hf"], "give one file, NAME.onnx or NAME.mindir, or the two words hf FOLDER"),
        (["hf", "a", "b"], "the two words hf FOLDER"),
        (["a.onnx", "b.onnx"], "a.onnx b.onnx: give one file"),
        (["a.onnx", "--license", "mit"], "--license: has no effect without hf"),
        (["hf", str(tmp_path / "file")], "file: cannot be made a folder"),
    ):
        assert main(["export", *target, "--checkpoint", str(tmp_path / "m.safetensors")]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.slow
def test_everything_that_a_real_card_links_is_there(finished_run, tmp_path, monkeypatch):
    monkeypatch.chdir(finished_run.path)
    assert main(["export", "hf", str(tmp_path / "hub"), "--checkpoint", "results/digits/stage3/checkpoint.safetensors"]) == 0
    front, text = read(tmp_path / "hub")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert "curves.png" in links and all((tmp_path / "hub" / link).is_file() for link in links)
    top1 = json.loads(Path("results/digits/stage3/evaluation.json").read_text())["ema"]["top1"]
    assert front["model-index"][0]["results"][0]["metrics"][0]["value"] == round(top1, 4)
