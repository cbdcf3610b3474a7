"""`pretrained: weights:NAME` from an interrupted download to the first stage's checkpoint, with a small network of that name."""

import json
import os

import numpy as np
import pytest
import torch_files
from conftest import shorten
from torch_files import Tensor, save
from weights_server import serve

from cswin.checkpoint import file_sha256, load_checkpoint
from cswin.model.variants import variant
from cswin.model.weights import initial_weights

pytestmark = pytest.mark.slow
NAME, ARCH = "cswin_test_32", "cswin_32_1121_digits_32"
SITE = f"""
from cswin.convert.published import PUBLISHED, Published

PUBLISHED["{NAME}"] = Published("{NAME}", "{ARCH}", "digits", None, None, classes=10)
"""
TARGET = "results/digits/stage1/checkpoint.safetensors"


@pytest.fixture
def small_network(workspace, tmp_path, monkeypatch):
    """The published file; in all processes the network is a published one."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.delenv("CSWIN_WEIGHTS", raising=False)
    workspace.edit("config/config.yaml", lambda values: (shorten(values), values.update(pretrained=f"weights:{NAME}")))
    weights = initial_weights(variant(ARCH), np.random.default_rng(0))
    torch_files.install(monkeypatch)
    save(tmp_path / "a.pth", {"state_dict_ema": {name: Tensor(value) for name, value in weights.items()}})
    return tmp_path / "a.pth"


def test_from_the_address_to_a_checkpoint(workspace, small_network, monkeypatch):
    assert {"published_weights", "train_stage1"} <= set(workspace.planned(TARGET))
    with serve(small_network.read_bytes(), 404) as server:
        monkeypatch.setenv("CSWIN_WEIGHTS_MIRROR", server.url)
        said = workspace.snakemake(TARGET, "--cores", "2", check=False)
        assert said.returncode == 1 and f"{server.url}/{NAME}.pth: cannot be fetched: the server answers 404" in said.stdout
        assert "--from FILE" in said.stdout and "Traceback" not in said.stdout
        server.behaviour[:] = ["truncate", "ranges"]
        workspace.snakemake(TARGET, "--cores", "2")
        assert [asked is None for _, asked in server.requests] == [True, True, False]
    weights = workspace.path / "weights" / f"{NAME}.safetensors"
    attempt = json.loads((workspace.path / "results/digits/stage1/attempts.jsonl").read_text().splitlines()[0])
    assert attempt["identity"]["input_checkpoint"] == file_sha256(weights)
    conversion = load_checkpoint(weights).record.provenance["conversions"][0]
    receipt = json.loads((workspace.path / "results/digits/config/weights.json").read_text())
    assert receipt == {"weights": NAME, "sha256": conversion["sha256"]} and conversion["sha256"] == file_sha256(small_network)
    assert workspace.planned(TARGET) == {}
