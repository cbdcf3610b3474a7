"""`cswin preflight` on the CPU with one and two processes, and each check with a fault that it must find."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
from mindspore import nn
from ranks import SmallStage, small_dataset
from recipes import optimizer
from saturating import SaturatingStep

from cswin.cli import main
from cswin.config.resolve import load_stage
from cswin.distributed.backend import BACKENDS
from cswin.distributed.cluster import free_port
from cswin.distributed.ranks import ALONE
from cswin.model import cpu
from cswin.preflight import checks, golden, site
from cswin.preflight.result import Check, judged, page, verdict
from cswin.run.stage import Stage, StageFiles
from cswin.train.step import TrainStep

CPU = BACKENDS["CPU"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return small_dataset(tmp_path_factory.mktemp("data"))


def files(folder: Path, dataset, **options) -> StageFiles:
    """The input files of a small stage in float16."""
    made = SmallStage(folder, dataset, **options)
    text = (folder / "stage.yaml").read_text().replace("amp_level: O0", "amp_level: O1")
    (folder / "stage.yaml").write_text(text)
    assert load_stage(folder / "stage.yaml").optimizer.amp_level == "O1"
    return StageFiles(folder / "stage.yaml", folder / "runtime.yaml", dataset.path, made.output, None)


def command(given: StageFiles, output: Path) -> list[str]:
    named = {"--config": given.config, "--runtime": given.runtime, "--dataset": given.dataset, "--output": output}
    return ["preflight", *(str(word) for pair in named.items() for word in pair)]


def verdicts(found: list[Check]) -> list[str]:
    return [check.verdict for check in found]


# The whole command


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_the_cpu_passes(dataset, tmp_path, devices):
    output = tmp_path / "results/preflight.json"
    given = files(tmp_path / "files", dataset, devices=devices)
    run = [sys.executable, "-m", "cswin", *command(given, output)]
    done = subprocess.run(run, env=os.environ | {"GLOG_v": "3"}, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads(output.read_text())
    assert facts["verdict"] in ("passed", "warning") and facts["devices"] == devices and facts["backend"]["device"] == "CPU"
    found = {}
    for check in facts["checks"]:
        found.setdefault(check["item"], []).append(check)
    assert list(found) == list("abcdefg")
    for item in "abdg":
        assert {check["verdict"] for check in found[item]} == {"passed"}, found[item]
    assert {check["verdict"] for check in found["c"]} == ({"passed"} if devices == 2 else {"not checked"})
    assert [check["verdict"] for check in found["e"]] == ["passed", "not checked"]
    assert all(check["value"] > 0 for check in found["f"] if "images/s" in check["what"])
    text = output.with_suffix(".md").read_text()
    assert text.startswith("# Preflight of ") and "the CPU has no memory of its own" in text
    assert all(check["what"] in text for check in facts["checks"])
    assert output.with_suffix(".passed").read_text() and not list(output.parent.glob(".*"))


def test_a_failed_check_stops_with_one_line_and_leaves_the_page(dataset, tmp_path, monkeypatch, capsys):
    failure = judged("a", "error of the logits", 0.5, 1e-6, False, golden.ADVICE)
    for name in ("prepare", "measure"):
        monkeypatch.setattr(f"cswin.preflight.run.{name}", MagicMock())
    for name in ("exchanges", "same_bits", "resumption", "overflow", "memory", "speed"):
        monkeypatch.setattr(f"cswin.preflight.run.{name}", lambda *arguments: [])
    monkeypatch.setattr("cswin.preflight.run.golden", lambda *arguments: [failure])
    output = tmp_path / "results/preflight.json"
    assert main(command(files(tmp_path / "files", dataset), output)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("cswin preflight: check a failed: ") and said.endswith("preflight.md says what to do")
    assert "| a " in output.with_suffix(".md").read_text() and json.loads(output.read_text())["verdict"] == "failed"
    assert not output.with_suffix(".passed").exists()


# a


def test_no_bound_is_looser_than_its_format():
    """Each format's bounds are below those of the next coarser one, and above float32's rounding."""
    for name in golden.FILES:
        values = np.load(golden.FOLDER / f"{name}.npz")
        bounds = [values[f"bound.{each}"] for each in ("float32 O0", "float16 O1", "bfloat16 O1")]
        assert (bounds[0] > 2.0**-26).all() and (bounds[0] < bounds[1]).all() and (bounds[1] < bounds[2]).all()
        for dtype in ("float16", "bfloat16"):
            assert (values[f"bound.{dtype} O2"] < 5 * values[f"bound.{dtype} O1"]).all()


@pytest.mark.slow
def test_the_bounds_are_those_of_the_simulated_rounding():
    from rounding import MARGIN, SOURCE, simulate

    source, bound = np.load(SOURCE / "model_two_branch.npz"), np.load(golden.FOLDER / "two_branch.npz")["bound.float16 O1"]
    found = simulate(source, "float16 O1", seed=100)  # a draw that the bound was not made from
    assert (found < bound).all() and found[2] > bound[2] / (2 * MARGIN)  # the gradient's error varies little from draw to draw


def break_layers(monkeypatch, fault: str) -> None:
    if fault == "epsilon":
        monkeypatch.setattr(cpu, "LAYER_NORM_EPSILON", 1e-7)
    elif fault == "tanh":
        monkeypatch.setattr("cswin.model.layers.cpu.Gelu", lambda: nn.GELU(approximate=True))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["none", "epsilon", "tanh"])
def test_another_epsilon_or_gelu_changes_the_network(monkeypatch, fault):
    monkeypatch.setattr(golden, "FILES", ("two_branch",))
    break_layers(monkeypatch, fault)
    *network, _, _ = golden.golden(optimizer(amp_level="O0"), ALONE, CPU)
    found = {check.what.split()[3].rstrip(",") for check in network if check.verdict == "failed"}
    # The tanh formula is nearly exact at these activations: it changes the logits by twice their bound, the gradient by less than its.
    assert found == {"none": set(), "epsilon": {"logits", "gradient"}, "tanh": {"logits"}}[fault], network


@pytest.mark.parametrize("fault", ["none", "epsilon", "tanh"])
def test_another_epsilon_or_gelu_is_found_in_the_layer(monkeypatch, fault):
    """In float16 the network's own rounding is larger than their effect."""
    monkeypatch.setattr(golden, "FILES", ())
    break_layers(monkeypatch, fault)
    layer_norm, gelu = golden.golden(optimizer(amp_level="O1"), ALONE, CPU)
    assert layer_norm.verdict == ("failed" if fault == "epsilon" else "passed"), layer_norm
    assert gelu.verdict == ("failed" if fault == "tanh" else "passed"), gelu


# b, d, e, f, g


@pytest.fixture(scope="module")
def small(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    return site.prepare(Stage.read(files(folder / "files", dataset)), ALONE, folder / "states")


def rates(**changes) -> site.Rates:
    return site.Rates(**{"step": 1.0, "loader": 0.5, "both": 1.0, "wait": 0.0, "skipped": 0, "host": 1} | changes)


@pytest.mark.slow
def test_the_checks_pass_without_a_fault(small):
    assert verdicts(checks.overflow(small, rates())) == ["passed", "passed"]
    assert verdicts(checks.same_bits(small, CPU)) == ["passed"]
    assert verdicts(checks.resumption(small, True)) == ["passed", "passed"]
    assert verdicts(checks.speed(small, rates())) == ["noted", "passed", "noted", "passed", "noted"]


@pytest.mark.slow
def test_an_overflow_that_no_rank_sees_is_found(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("cswin.train.trainer.TrainStep", SaturatingStep)
    blind = site.prepare(Stage.read(files(tmp_path / "files", dataset)), ALONE, tmp_path / "states")
    assert verdicts(checks.overflow(blind, rates())) == ["failed", "passed"]


@pytest.mark.slow
def test_normal_steps_that_are_skipped_are_found(small):
    assert verdicts(checks.overflow(small, rates(skipped=1))) == ["passed", "failed"]


@pytest.mark.slow
def test_runs_that_differ_are_said_and_stop_nothing(small, monkeypatch):
    starts = iter([small.start, small.start | {"ema.head.bias": small.start["ema.head.bias"] + 1e-7}])
    monkeypatch.setattr(site.Site, "restart", lambda self: self.step.load(next(starts), running=True))
    [check] = checks.same_bits(small, dataclasses.replace(CPU, deterministic=False))
    assert check.verdict == "warning" and "makes no promise" in check.advice


@pytest.mark.slow
def test_a_state_that_forgets_the_loss_scale_is_found(small, monkeypatch):
    arrays = TrainStep.arrays
    monkeypatch.setattr(TrainStep, "arrays", lambda self: arrays(self) | {"loss_scale": small.start["loss_scale"]})
    assert verdicts(checks.resumption(small, True)) == ["failed", "failed"]
    assert verdicts(checks.resumption(small, False)) == ["failed", "not checked"]  # steps that are not deterministic


@pytest.mark.slow
def test_too_much_memory_and_a_slow_loader_are_warnings(small):
    assert verdicts(checks.memory(small, rates(host=10**12))) == ["warning", "not checked"]
    slow = checks.speed(small, rates(loader=2.0, wait=0.5))
    assert verdicts(slow) == ["noted", "warning", "noted", "warning", "noted"] and "runtime.workers" in slow[1].advice


# c


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "found"), [("none", set()), ("bit", {"AllGather"}), ("sum", {"AllReduce"})])
def test_an_exchange_that_loses_a_bit_is_found(tmp_path, fault, found):
    msrun = [
        sys.executable, "-m", "mindspore.parallel.cluster.run", "--worker_num=2", "--local_worker_num=2",
        f"--master_port={free_port()}", "--join=True", f"--log_dir={tmp_path}", "--tail_worker_log=9",
        "python3", Path(__file__).parents[1] / "support" / "lossy_rank.py", tmp_path, fault,
    ]  # fmt: skip
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "GLOG_v": "3"}
    done = subprocess.run([*map(str, msrun)], env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    for rank in range(2):
        results = json.loads((tmp_path / f"{rank}.json").read_text())
        wrong = {kind for kind, result in results.items() if result == "failed"}
        assert wrong == set() if fault == "none" else wrong >= found, (rank, results)


# The page


def test_the_page_names_what_to_do_once():
    found = [
        judged("c", "numbers", 3, 0, False, "Do not train"),
        judged("c", "sums", 3, 0, False, "Do not train"),
        judged("f", "images/s", 12.5, 100.0, False, "Raise runtime.workers"),
    ]
    facts = {
        "run": "r",
        "stage": "s",
        "devices": 8,
        "amp_level": "O1",
        "amp_dtype": "float16",
        "time": "now",
        "seconds": 170,
        "backend": CPU.record(),
    }
    text = page(facts | {"versions": {"mindspore": "2.8.0"}}, found)
    assert verdict(found) == "failed" and text.startswith("# Preflight of r: failed\n")
    assert text.count("Do not train") == 1 and "- **f**: Raise runtime.workers." in text
