"""Results in a folder that cannot be written, as on a read-only file system or in another user's home: everything that reads works."""

import json
import os
import subprocess
import sys

import pytest
from folders import contents

pytestmark = pytest.mark.slow
CHECKPOINT, DATA = "results/digits/stage3/checkpoint.safetensors", "data/digits/images/val"
# Root may write everywhere; without this capability its files' permissions hold for it too.
WITHOUT_PRIVILEGE = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []


@pytest.fixture(scope="module")
def read_only(finished_run, tmp_path_factory):
    run = finished_run.copy(tmp_path_factory.mktemp("read_only") / "run").path
    subprocess.run(["chmod", "-R", "a-w", run], check=True)
    yield run
    subprocess.run(["chmod", "-R", "u+w", run], check=True)


@pytest.fixture
def cswin(read_only):
    """Runs a command in that folder; its stdout."""

    def run(*arguments):
        command = [*WITHOUT_PRIVILEGE, sys.executable, "-m", "cswin", *map(str, arguments)]
        done = subprocess.run(command, cwd=read_only, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_folder_cannot_be_written(read_only):
    """Else the other tests would show nothing."""
    touch = [*WITHOUT_PRIVILEGE, "touch", "results/digits/stage3/state/x"]
    assert subprocess.run(touch, cwd=read_only, capture_output=True).returncode != 0


def test_status(cswin):
    stages = json.loads(cswin("status", "--json"))["runs"][0]["stages"]
    assert [stage["state"] for stage in stages] == ["done"] * 3


def test_predict(cswin, tmp_path):
    cswin("predict", f"{DATA}/3", "--checkpoint", CHECKPOINT, "--output", tmp_path / "p.jsonl")
    assert all("top" in json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines())


def test_export(cswin, tmp_path):
    cswin("export", tmp_path / "m.onnx", "--checkpoint", CHECKPOINT)
    assert (tmp_path / "m.onnx").stat().st_size > 100_000


def test_card(cswin, read_only, tmp_path):
    config = "results/digits/config"
    options = ["--settings", f"{config}/expectations.yaml", "--runtime", f"{config}/runtime.yaml"]
    cswin("card", "results/digits", *options, "--dataset", "data/digits/dataset.json", "--output", tmp_path / "card.md")
    assert (tmp_path / "card.md").read_bytes() == (read_only / "results/digits/README.md").read_bytes()


def test_evaluate(cswin, read_only, tmp_path):
    before = contents(read_only / "results")
    cswin("evaluate", "--checkpoint", CHECKPOINT, "--data", "data/digits/dataset.json", "--output", tmp_path / "e.json")
    found, wanted = (json.loads(p.read_text()) for p in (tmp_path / "e.json", read_only / CHECKPOINT.replace("checkpoint.safetensors", "evaluation.json")))  # fmt: skip
    assert found["ema"]["right1"] == wanted["ema"]["right1"]
    assert contents(read_only / "results") == before
