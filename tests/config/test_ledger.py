"""The ledger against the resolved configurations, and against what can be counted without either."""

import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from recipes import REPORT

from cswin.cli import main
from cswin.config.ledger import CONFIG, compare, comparisons, ledger_text, load_ledger, load_run
from cswin.config.resolve import load_settings, resolve_stage
from cswin.config.settings import STAGE_SECTIONS
from cswin.data.loader.rng import init_rng
from cswin.estimate import Images, estimate_stage
from cswin.model.variants import variant
from cswin.model.weights import initial_weights
from cswin.openi.parameters import RENAMED

ROOT = Path(__file__).parents[2]
LEDGER = load_ledger()
AUTHORS, REPORTS = ("authors", "timm"), ("report",)
RECIPE = {f"{section}.{key}" for section, kind in STAGE_SECTIONS.items() for key in kind.model_fields}
RECIPE |= {"start_epoch", "epochs", "carry", "carry_weights", "seed"}


def problems(config: Path = CONFIG) -> list[str]:
    return [c.problem for rows in comparisons(LEDGER, config).values() for c in rows if c.problem]


def test_every_difference_is_explained():
    assert problems() == []


@pytest.mark.parametrize(
    ("file", "old", "new", "named"),
    [
        (
            "paper_tiny_224.yaml",
            "base_lr: 0.002 ",
            "base_lr: 0.0021 ",
            "--lr (schedule.base_lr): theirs, ours: [[0.002, 0.0021]]",
        ),
        ("paper_small_224.yaml", "interpolation: random ", "interpolation: bicubic ", "--train-interpolation"),
        ("paper_base_224.yaml", "loss_scale: 1024.0 ", "loss_scale: 512.0 ", "loss scale: start"),
        ("paper_base_384.yaml", "epochs: 30 ", "epochs: 31 ", "--epochs (epochs): theirs, ours: [[20, 31]]"),
        ("report_small_224.yaml", "cosine_from: warmup ", "cosine_from: start ", "lr_scheduler (schedule.cosine_from)"),
        ("report_small_224_a2.yaml", "ema_decay: 0.99992 ", "ema_decay: 0.9999 ", "ema_decay"),
        ("report_small_224_one_run.yaml", "erase: before_mixing ", "erase: after_mixing ", "augment.erase"),
    ],
)
def test_a_changed_configuration_is_noticed(file, old, new, named, tmp_path):
    shutil.copytree(CONFIG, tmp_path / "config")
    text = (CONFIG / "imagenet" / file).read_text()
    assert text.count(old) == 1
    (tmp_path / "config/imagenet" / file).write_text(text.replace(old, new))
    assert [line for line in problems(tmp_path / "config") if named in line]


def test_an_explanation_without_a_difference_is_an_error():
    runs = [load_run(LEDGER, LEDGER["runs"][0])]
    row = {"name": "--lr", "key": "schedule.base_lr", "differs": [[0.002, 0.001]], "why": "some reason"}
    assert "no configuration has it" in compare(row, runs).problem
    assert compare({"name": "--gp"}, runs).problem
    assert "no command has it" in compare({"name": "--lrr", "key": "schedule.base_lr"}, runs).problem


@pytest.mark.parametrize(("lists", "programs"), [(AUTHORS, ("main.py", "finetune.py")), (REPORTS, ("report",))])
def test_every_option_and_every_key_has_a_row(lists, programs):
    rows = [row for name in lists for row in LEDGER[name]]
    assert {option for program in programs for option in LEDGER["options"][program]} <= {row["name"] for row in rows}
    assert {row["key"] for row in rows if "key" in row} - {"num_classes"} - RECIPE == {
        f"architecture.{key}" for key in ("embed_dim", "depth", "mlp_ratio")
    }
    assert {row["key"] for row in rows if "key" in row} >= RECIPE


def test_every_imagenet_configuration_and_stage_has_a_run():
    stages = {
        (str(file.relative_to(CONFIG)), stage)
        for file in (CONFIG / "imagenet").glob("*.yaml")
        for stage in yaml.safe_load(file.read_text())["stages"]
    }
    assert {(run["file"], run["stage"]) for run in LEDGER["runs"]} == stages


def test_commands_give_options_that_the_programs_have():
    for run in LEDGER["runs"]:
        assert set(run.get("given", {})) <= set(LEDGER["options"][run["program"]])


def test_every_test_that_a_row_names_exists():
    for row in (row for name in ("authors", "timm", "report") for row in LEDGER[name] if "test" in row):
        file, name = row["test"].split("::")
        assert f"\ndef {name}(" in (ROOT / file).read_text(), row


def test_the_report_s_names_mean_the_same_on_openi():
    keys = {}
    for row in LEDGER["report"]:
        keys.setdefault(row["name"], set()).add(row.get("key", "").replace("num_classes", "data.classes"))
    compared = {name: key for name, key in RENAMED.items() if keys.get(name, {""}) != {""}}
    assert len(compared) > 25
    assert all(key in keys[name] for name, key in compared.items())


def test_the_page_is_up_to_date(capsys):
    assert main(["config", "--ledger"]) == 0
    assert capsys.readouterr().out == (ROOT / "docs/recipe.md").read_text() == ledger_text()


def values_with_comments(file: Path) -> dict[str, tuple[object, str]]:
    """Key in the file -> value and comment, of each line of a section."""
    found, section = {}, ""
    for line in file.read_text().splitlines():
        if match := re.match(r"(\w+):", line):
            section = match[1]
        if match := re.match(r"  (\w+): ([^#]*)(?:# (.*))?$", line):
            found[f"{section}.{match[1]}"] = (yaml.safe_load(match[2]), match[3] or "")
    return found


@pytest.mark.parametrize("file", ["config.yaml", "finetune.yaml"])
def test_what_is_marked_as_the_report_s_is_the_report_s(file):
    report = values_with_comments(REPORT)
    marked = {key: value for key, (value, comment) in values_with_comments(CONFIG / file).items() if comment == "report"}
    assert len(marked) > 20
    assert marked == {key: report[key][0] for key in marked}


@pytest.mark.parametrize(
    ("file", "batch"), [("paper_tiny_224", 256), ("paper_small_224", 256), ("paper_base_224", 128), ("paper_base_384", 32)]
)
def test_steps_of_an_epoch_are_those_of_the_authors(file, batch):
    """DistributedSampler fills up to a multiple of 8 processes, then each process drops its last batch; here the global batch."""
    settings = load_settings(CONFIG / f"imagenet/{file}.yaml")
    images = Images(settings.data.expect_train, 50_000, 0.0, "", "")
    estimate = estimate_stage(resolve_stage(settings, next(iter(settings.stages))), settings.runtime, images)
    assert estimate.steps == (estimate.end_epoch - estimate.first_epoch) * (math.ceil(1_281_167 / 8) // batch)


def test_start_values_are_those_of_the_authors():
    """Linear: N(0, 0.02) and 0; convolutions: PyTorch's kaiming_uniform(a=sqrt(5)), +-1/sqrt(fan in), bias too; LayerNorm 1, 0."""
    weights = initial_weights(variant("cswin_64_12211_tiny_224"), init_rng(0))
    assert weights["stage3.4.mlp.fc1.weight"].std() == pytest.approx(0.02, rel=0.01)
    assert weights["head.weight"].std() == pytest.approx(0.02, rel=0.01)
    for name, fan in {"stage1_conv_embed.0": 3 * 49, "merge2.conv": 128 * 9, "stage3.4.attns.0.get_v": 9}.items():
        bound = 1 / math.sqrt(fan)
        for value in (weights[f"{name}.weight"], weights[f"{name}.bias"]):
            assert np.abs(value).max() <= bound
            assert np.abs(value).max() > 0.9 * bound
            assert value.std() == pytest.approx(bound / math.sqrt(3), rel=0.15)
    assert (weights["stage1.0.norm1.weight"] == 1).all()
    assert (weights["stage1_conv_embed.2.weight"] == 1).all()
    for name in ("stage1.0.norm1.bias", "stage1.0.qkv.bias", "head.bias", "norm.bias", "merge1.norm.bias"):
        assert (weights[name] == 0).all()
