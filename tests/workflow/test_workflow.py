"""What runs and what does not: dry runs on a workspace in which everything has really been run once."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import recipes
import yaml

from cswin.cli import build_parser
from cswin.config.resolve import load_stage
from cswin.data.store.dataset import Dataset
from cswin.run.history import read_history

pytestmark = pytest.mark.slow
SHOWN_OF_RUN = {"curves": 1, "throughput": 1, "table_page": 1, "provenance_page": 1}
AFTER_STAGE2 = {
    "train_stage2": 1,
    "train_stage3": 1,
    "evaluate": 2,
    "table": 1,
    "card": 1,
    "classes": 2,
    "predictions": 2,
    **SHOWN_OF_RUN,
}
CONFIGURATION_OF_STAGE2 = {"stage_config": 1, "samples": 1, "configuration_page": 1}
ALL_STAGES = {"stage_config": 3, "train_stage1": 1, "evaluate": 3, "classes": 3, "predictions": 3, "samples": 3}


@pytest.fixture
def run(finished_run, tmp_path):
    return finished_run.copy(tmp_path / "copy")


def touch(path: Path) -> None:
    future = time.time() + 5
    os.utime(path, (future, future))


def test_run_made_everything(finished_run):
    results = finished_run.path / "results"
    table = pd.read_csv(results / "final_acc.csv")
    assert list(table.stage) == ["stage1", "stage2", "stage3"]
    assert (results / "digits" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (results / "digits" / "README.md").read_text().startswith("# digits\n")
    for stage in table.stage:
        history = read_history(results / "digits" / stage / "history.jsonl")
        steps = [row["step"] for row in history if row["kind"] == "step"]
        config = load_stage(results / "digits" / "config" / f"{stage}.yaml")
        per_epoch = 1437 // 32
        assert steps == list(range(config.start_epoch * per_epoch + 1, config.epochs * per_epoch + 1))
        assert [r["epoch"] for r in history if r["kind"] == "epoch"] == list(range(config.start_epoch, config.epochs))


def test_second_run_does_nothing(finished_run):
    assert finished_run.planned() == {}


@pytest.mark.parametrize(
    "file",
    [
        "data/digits/digits.tar.gz", "data/digits/extracted.json", "data/digits/manifest.json", "data/digits/manifest.csv.gz",
        "data/digits/dataset.json", "data/digits/converted.json", "data/digits/shards/1MiB/train-00000.mindrecord", "results/digits/config/stage2.yaml",
        "results/digits/stage1/record.json", "results/digits/stage1/checkpoint.safetensors", "results/digits/stage2/evaluation.json",
        "config/config.yaml",
    ],
)  # fmt: skip
def test_touched_file_reruns_nothing(run, file):
    touch(run.path / file)
    assert run.planned() == {}


def test_comment_reruns_nothing(run):
    for file in [run.path / "config/config.yaml", *run.path.glob("rules/**/*.smk"), run.path / "Snakefile"]:
        file.write_text(file.read_text() + "\n# a remark\n")
    smk = run.path / "rules/train.smk"
    smk.write_text(smk.read_text().replace('"cswin train ', '"cswin  train '))  # in the shell command itself
    assert run.planned() == {}


@pytest.mark.parametrize("key", ["workers", "log_every", "save_minutes", "prefetch"])
def test_what_changes_speed_trains_nothing_again(run, key):
    run.edit("config/config.yaml", lambda v: v["runtime"].update({key: 7}))
    assert run.planned() == {}


def test_what_changes_speed_does_not_keep_a_stage_from_going_on(run):
    shutil.rmtree(run.path / "results/digits/stage3")
    (run.path / "results/final_acc.csv").unlink()
    wanted = run.planned()
    assert wanted["train_stage3"] == 1
    run.edit("config/config.yaml", lambda v: v["runtime"].update(workers=1))
    assert run.planned() == wanted
    assert yaml.safe_load((run.path / "results/digits/config/runtime.yaml").read_text())["workers"] == 2
    run.snakemake("-f", "data/digits/plan.json")  # any job
    assert yaml.safe_load((run.path / "results/digits/config/runtime.yaml").read_text())["workers"] == 1


def test_expected_accuracy_redraws_only(run):
    run.edit("config/config.yaml", lambda v: v.update(paper_top1=98.0))
    assert set(run.planned()) == {"expectations_config", "table", "table_page", "curves", "card"}


def test_new_shard_size_converts_and_trains_nothing_again(run):
    run.edit("config/config.yaml", lambda v: v["data"].update(shard_mb=2))
    assert run.planned() == {"shard_plan": 1, "data_page": 1}  # the page shows the shards
    run.snakemake("data/digits/plan.json")
    assert [shard.name for shard in Dataset.load(run.path / "data/digits/dataset.json").shards("train")] == [
        "train-00000.mindrecord"
    ]
    assert run.planned() == {"data_page": 1}


def test_other_order_of_the_images_trains_all_stages_with_one_command(run):
    override = ("--config", "data={seed: 3}")
    planned = run.planned(*override)
    assert planned.items() >= {"manifest": 1, "dataset": 1, "train_stage1": 1, "train_stage2": 1, "train_stage3": 1}.items()
    done = Counter(
        re.findall(r"^(?:local)?rule (\w+):$", run.snakemake("-p", *override).stdout, re.MULTILINE)
    )  # -p: each job in full
    assert {rule: done[rule] for rule in planned} == planned and done.keys() <= {*planned, "all", "final_acc"}
    wanted = Dataset.load(run.path / "data/digits/dataset.json").manifest_hash
    for stage in ("stage1", "stage2", "stage3"):
        assert json.loads((run.path / f"results/digits/{stage}/record.json").read_text())["manifest"] == wanted
        assert len(list(run.path.glob(f"results/digits/{stage}/state.*"))) == 1  # begun anew
    assert run.planned(*override) == {}


def test_another_shard_size_does_not_keep_a_stage_from_going_on(run):
    stage = run.path / "results/digits/stage3"
    whole = (stage / "checkpoint.safetensors").read_bytes()
    for lost in (
        "record.json",
        "checkpoint.safetensors",
        "state/complete.json",
        "state/accepted",
        "state/state-000000176.safetensors",
    ):
        (stage / lost).unlink()
    override = ("--config", "data={shard_mb: 2}")
    planned = run.planned(*override)
    assert planned.items() >= {"shard_plan": 1, "data_page": 1, "train_stage3": 1}.items() and "train_stage2" not in planned
    run.snakemake(*override)
    assert (stage / "checkpoint.safetensors").read_bytes() == whole and not list(stage.glob("state.*"))
    assert len(Dataset.load(run.path / "data/digits/dataset.json").shards("train")) == 1
    assert run.planned(*override) == {}


def test_learning_rate_of_stage2_reruns_stages_2_and_3(run):
    run.edit("config/config.yaml", lambda v: v["stages"]["stage2"]["schedule"].update(cool_lr=2.0e-5))
    assert run.planned() == {**CONFIGURATION_OF_STAGE2, **AFTER_STAGE2}


def test_override_on_the_command_line(run):
    override = "stages={stage2: {schedule: {cool_lr: 2.0e-5}}}"
    assert run.planned("--config", override) == {**CONFIGURATION_OF_STAGE2, **AFTER_STAGE2}


def test_common_learning_rate_reruns_all_stages_but_no_data(run):
    planned = run.planned("--config", "schedule={base_lr: 0.0007}")
    assert planned == {**AFTER_STAGE2, **ALL_STAGES, "configuration_page": 1}


def test_forcerun_and_until(run):
    assert run.planned("--forcerun", "train_stage2") == AFTER_STAGE2
    assert run.planned("--forcerun", "train_stage1", "--until", "train_stage1") == {"train_stage1": 1}


def test_new_content_of_a_small_input_is_noticed(run):
    record = run.path / "results/digits/stage1/record.json"
    record.write_text(record.read_text().replace("}", "} "))
    assert set(run.planned()) == {*AFTER_STAGE2}


def test_other_run_has_its_own_folder(run):
    planned = run.planned("--config", "run=second")
    assert planned["train_stage1"] == planned["train_stage3"] == 1
    assert not {"extract", "dataset", "shard_plan", "convert"} & planned.keys()  # the dataset is shared


@pytest.mark.parametrize("count", [1, pytest.param(5, marks=pytest.mark.variant)])
def test_any_number_of_stages(workspace, count):
    lengths = [(f"part{i}", 4 * i) for i in range(count)]
    stages = {name: {"start_epoch": n, "epochs": n + 4, **recipes.CARRY, "schedule": {"cool_length": n}} for name, n in lengths}
    workspace.edit("config/config.yaml", lambda v: v.update(stages=stages))
    planned = workspace.planned()
    assert [rule for rule in planned if rule.startswith("train_")] == [f"train_part{i}" for i in range(count)]
    assert planned["evaluate"] == count


def test_configfile_replaces_the_default(workspace):
    output = workspace.snakemake("-n", "--configfile", "config/imagenet/report_small_224.yaml", check=False).stdout
    assert "archives/imagenet.tar.gz" in output and "MissingInputException" in output
    assert "digits" not in output


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("optimizer={amp_level: 1}", ("optimizer.amp_level: 1", "write O1 with the letter O")),
        ("optimzer={amp_level: O1}", ("optimzer", "did you mean 'optimizer'")),
        ("schedule={base_lr: '1e-3'}", ("schedule.base_lr: '1e-3'", "1.0e-3")),
        ("model={num_heads: [3, 2, 4, 8]}", ("num_heads[0]: 3 heads do not divide the width 32", "divisor of 32")),
        ("model={image_size: 40}", ("model.image_size: 40", "divisible by 32", "32 and 64")),
        ("stages={stage2: {start_epoch: 14}}", ("stages.stage2.start_epoch: 14", "must be 15, the end of stage1")),
        ("stages={stage2: {schedule: {cool_length: 4}}}", ("stages.stage2", "cosine phase of 16", "stage1 has 14")),
        ("stages={stage1: {schedule: {cool_length: 14}}}", ("stages.stage1.epochs: 15", "leaves 1 epochs")),
        ("runtime={devices: 2}", ("optimizer.global_batch: 32", "32 x 2 x 1 = 64")),
        ("data={expect_val: many}", ("data.expect_val: 'many'", "valid integer")),
        ("augment={rand_augment: rand-m9-q3}", ("augment.rand_augment", "rand-m9-q3")),
    ],
)
def test_bad_configuration_is_refused_before_any_job(workspace, override, named):
    done = workspace.snakemake("-n", "--config", override, check=False)
    assert done.returncode != 0
    for words in named:
        assert words in done.stdout
    assert "Job stats" not in done.stdout and "Traceback" not in done.stdout


def test_a_key_given_twice_is_refused_before_any_job(workspace):
    with (workspace.path / "config/config.yaml").open("a") as file:
        file.write("seed: 7\n")
    done = workspace.snakemake("-n", check=False)
    assert done.returncode != 0 and "config/config.yaml: line" in done.stdout and "'seed' is given twice" in done.stdout
    assert "Job stats" not in done.stdout and "Traceback" not in done.stdout


def test_an_override_changes_its_key_alone(workspace):
    before, _ = recipes.stage(recipes.DIGITS)
    workspace.snakemake(
        "results/digits/config/stage1.yaml", "--config", "schedule={base_lr: 0.002}", "stages={stage1: {epochs: 15}}"
    )
    found = load_stage(workspace.path / "results/digits/config/stage1.yaml")
    assert found == before.model_copy(update={"schedule": before.schedule.model_copy(update={"base_lr": 0.002})})


def test_dag_and_format(workspace):
    assert workspace.snakemake("--dag").stdout.count("train_stage") >= 3
    snakefmt = shutil.which("snakefmt", path=str(Path(sys.executable).parent))
    files = [str(p) for p in [workspace.path / "Snakefile", *workspace.path.glob("rules/**/*.smk")]]
    subprocess.run([snakefmt, "--check", *files], check=True)


def lint(workspace) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "rules/lint.py"], cwd=workspace.path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def test_lint(workspace):
    done = lint(workspace)
    assert done.returncode == 0 and "Congratulations" in done.stdout


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('    log:\n        DATA.log("manifest"),\n', "", "No log directive defined"),
        ("{params.images:q} --output", "{IMAGES:q} --output", "Shell command directly uses variable IMAGES"),
        ("rule manifest:", 'A = "/usr/share/a"\n\n\nrule manifest:', 'Absolute path "/usr/share/a"'),
    ],
)
def test_lint_leaves_out_one_complaint_alone(workspace, old, new, complaint):
    file = workspace.path / "rules/data.smk"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1))
    done = lint(workspace)
    assert done.returncode == 1 and complaint in done.stdout and "conda" not in done.stdout


BANNED = r"\bupdate\(|\bdirectory\(|\bretries\b(?!: 0\b)|^\s*(script|run|notebook|wrapper|cwl):"


def bans(code: str) -> list[str]:
    """What of the banned stands in a Snakefile, comments left out."""
    code = "\n".join(line.split("#")[0] for line in code.splitlines())
    return [match[0].strip() for match in re.finditer(BANNED, code, re.MULTILINE)]


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ('    output:\n        update("state.npz"),', ["update("]),
        ('    output:\n        directory(f"{RUN}/state"),', ["directory("]),
        ("    retries: 3", ["retries"]),
        ("    retries: 0  # fewer than the profile's", []),
        ('    script:\n        "train.py"', ["script:"]),
        ("    run:\n        train()", ["run:"]),
        ("    # retries: 3 would stay in the same allocation", []),
    ],
)
def test_bans_are_found(code, found):
    assert bans(code) == found


def test_bans_around_training_state(workspace):
    """What facts about Snakemake forbid: each of these has destroyed or doubled training in an experiment."""
    for file in [workspace.path / "Snakefile", *workspace.path.glob("rules/**/*.smk")]:
        assert bans(file.read_text()) == [], file
    for profile in workspace.path.glob("profiles/*/config*.yaml"):
        assert not yaml.safe_load(profile.read_text()).get("keep-incomplete")
    root = Path(__file__).parents[2]
    for commands in [root / "Makefile", root / "README.md", root / ".ci/run", *root.glob("docs/*.md")]:
        assert not re.search(r"snakemake .*--keep-incomplete|--ki\b", commands.read_text()), commands


def test_no_rule_declares_training_state(finished_run):
    outputs = [line.split("\t")[0] for line in finished_run.snakemake("--summary").stdout.splitlines() if "\t" in line]
    assert "results/digits/stage2/checkpoint.safetensors" in outputs
    kept = ("/state", "history.jsonl", "attempts.jsonl", "lease")
    assert not [output for output in outputs if any(name in output for name in kept)]


def test_test_sets_are_judged_on_request(workspace):
    """suite.yaml says where they are; without it Snakemake names it."""
    target = "results/digits/suite.csv"
    missing = workspace.snakemake("-n", target, check=False)
    assert (
        missing.returncode
        and re.search(r"affected files:\s+suite.yaml\n", missing.stdout)
        and "Traceback" not in missing.stdout
    )
    (workspace.path / "suite.yaml").write_text("validation: /somewhere\n")
    planned = workspace.planned(target)
    assert planned["suite"] == planned["train_stage3"] == 1 and "evaluate" not in planned
    assert "suite" not in workspace.planned()
    command = re.search(r"cswin (evaluate --checkpoint .*--suite .*?) >", workspace.snakemake("-n", "-p", target).stdout)[1]
    args = build_parser().parse_args(shlex.split(command))
    assert (str(args.suite), str(args.output)) == ("suite.yaml", target)
    assert str(args.checkpoint) == "results/digits/stage3/checkpoint.safetensors"
