"""The run card against the files that it is made from, and what it must not keep quiet about."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest
from safetensors import safe_open

from cswin.cli import build_parser, main
from cswin.config.resolve import load_expectations, load_runtime
from cswin.data.store.dataset import Dataset
from cswin.report.card import Run, card
from cswin.report.run import load_run

OUTPUTS = ("model.safetensors", "FOLDER")
USES = ("predict", "evaluate", "export", "convert-weights", "export")
STAGES = ["stage1", "stage2", "stage3"]


def sections(text: str) -> dict[str, str]:
    parts = re.split(r"^## (.*)\n", text, flags=re.MULTILINE)
    return {"head": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def table(section: str) -> list[list[str]]:
    """Cells of the first Markdown table, the head first."""
    lines = [line for line in section.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(row) for row in rows}) == 1
    return [rows[0], *rows[2:]]


@pytest.fixture
def written(finished_run, monkeypatch) -> dict[str, str]:
    """The card that the workflow has written, by section, read in the folder in which the run was made."""
    monkeypatch.chdir(finished_run.path)
    return sections(Path("results/digits/README.md").read_text())


@pytest.fixture
def run(finished_run, monkeypatch) -> Run:
    """What the card was made from, to be changed."""
    monkeypatch.chdir(finished_run.path)
    folder = Path("results/digits")
    expected = load_expectations(folder / "config/expectations.yaml")
    runtime = load_runtime(folder / "config/runtime.yaml")
    return Run(folder, expected, load_run(folder, STAGES), runtime, Dataset.load("data/digits/dataset.json"))


def load(path: str) -> dict:
    return json.loads(Path(path).read_text())


@pytest.mark.slow
def test_result_is_that_of_the_evaluations(written):
    head, *rows = table(written["Result"])
    assert [row[0] for row in rows] == STAGES
    for row in rows:
        cells, evaluation = dict(zip(head, row, strict=True)), load(f"results/digits/{row[0]}/evaluation.json")
        assert int(cells["images"]) == evaluation["raw"]["n"] == 360
        assert int(cells["checkpoint's epoch"]) == load(f"results/digits/{row[0]}/record.json")["best_epoch"]
        for which, name in (("raw", "raw"), ("ema", "EMA")):
            top1, low, high = map(float, re.fullmatch(r"(\S+) \((\S+) to (\S+)\)", cells[f"top-1 {name}, %"]).groups())
            assert top1 == round(100 * evaluation[which]["right1"] / 360, 2) and low < top1 <= high
            assert float(cells[f"top-5 {name}, %"]) == round(100 * evaluation[which]["right5"] / 360, 2)
    ema = load("results/digits/stage3/evaluation.json")["ema"]
    assert f"top-1 **{ema['top1']:.2f} %** on 360 images ({ema['right1']} right; EMA weights)" in written["head"]
    for link in re.findall(r"\]\((\S+)\)", "".join(written.values())):
        assert (Path("results/digits") / link).exists(), link


@pytest.mark.slow
def test_data_and_network_are_those_of_the_files(written):
    data, network = (dict(table(written[name])[1:]) for name in ("Data", "Network"))
    manifest = load("data/digits/manifest.json")
    assert int(data["training images"].replace(",", "")) == manifest["splits"]["train"]["images"] == 1437
    assert int(data["validation images"]) == manifest["splits"]["val"]["images"] and int(data["classes"]) == 10
    assert data["hash of all images, labels and their order"] == f"`{manifest['manifest_hash']}`"
    with safe_open("results/digits/stage3/checkpoint.safetensors", framework="numpy") as file:
        sizes = [file.get_tensor(name).size for name in file.keys() if not name.startswith("ema.")]  # noqa: SIM118
    assert int(network["parameters"].replace(",", "")) == sum(sizes)
    assert network["stripe widths"] == "1, 1, 2, 1" and network["input"] == "3 x 32 x 32"


@pytest.mark.slow
def test_recipe_and_training_are_those_of_the_files(written):
    recipe = {row[0]: row[1:] for row in table(written["Recipe"])[1:]}
    assert recipe["epochs"] == ["0-2", "2-3", "3-4"] and recipe["global batch"] == ["32"] * 3
    assert recipe["learning rate"] == [
        "warmup 1 epochs to 0.001, cosine to 1e-05 at epoch 2", "1e-05 to epoch 3", "1e-06 to epoch 4"
    ]  # fmt: skip
    assert recipe["starts from"][0] == "fresh weights"
    assert recipe["starts from"][1].startswith("raw weights of `results/digits/stage1/checkpoint.safetensors`")
    head, *rows = table(written["Training"])
    for stage, row in zip(STAGES, rows, strict=True):
        start, begin, end = map(json.loads, Path(f"results/digits/{stage}/attempts.jsonl").read_text().splitlines())
        cells = dict(zip(head, row, strict=True))
        assert (cells["stage"], cells["attempt"], cells["ended"], cells["job"]) == (stage, "1", "complete", "-")
        assert cells["started (UTC)"] == start["time"].replace("T", " ").removesuffix("+00:00")
        assert cells["from step"] == str(begin["step"]) and cells["where"] == f"{start['host']}, 1 x CPU"
        assert f"MindSpore {start['versions']['mindspore']}" in cells["versions"] and "Snakemake" in cells["versions"]
        assert (
            start["backend"]["device"] == "CPU"
            and f"- {stage}, computed by: CPU, compiler ms_backend O0" in written["Training"]
        )
        assert end["reason"] == "complete" and f"- {stage}: 1 attempt, " in written["Training"]


@pytest.mark.slow
def test_commands_are_accepted_and_give_the_figures(written, capsys, tmp_path):
    code = re.search(r"```sh\n(.*?)```", written["Use"], re.DOTALL)[1]
    commands = [shlex.split(line) for line in code.splitlines() if not line.startswith("#")]
    assert [command[:2] for command in commands] == [["cswin", c] for c in USES]
    for command in commands:
        build_parser().parse_args(command[1:])
        assert Path("results/digits/stage3/checkpoint.safetensors") in map(Path, command)
    for command in commands[3:]:
        assert main([*command[1:2], *(str(tmp_path / w) if w in OUTPUTS else w for w in command[2:])]) == 0
    assert main(commands[1][1:]) == 0
    top1 = re.search(r"^ema .*top1 (\S+)", capsys.readouterr().out, re.MULTILINE)[1]
    assert f"**{float(top1):.2f} %**" in written["head"]


def caveats(run: Run) -> str:
    return sections(card(run))["What was not run, and limitations"]


@pytest.mark.slow
def test_it_says_what_was_not_run(run, written):
    said = written["What was not run, and limitations"]
    assert caveats(run) == said
    for words in (
        "Not run on Ascend",
        "Not run on ImageNet-1K",
        "one seed (42)",
        "optimistic choice",
        "report has no figures",
    ):
        assert words in said


def changed(run: Run, start: dict | None = None, **evaluation) -> Run:
    """The run with other attempts' start rows and another evaluation section."""
    stages = []
    for stage in run.stages:
        settings = stage.config.evaluation.model_copy(update=evaluation)
        rows = [row | (start or {}) if row["event"] == "start" else row for row in stage.attempts]
        config = stage.config.model_copy(update={"evaluation": settings})
        stages.append(dataclasses.replace(stage, config=config, attempts=rows))
    return dataclasses.replace(run, stages=stages)


@pytest.mark.slow
def test_it_says_what_is_different_elsewhere(run):
    ascend = {"device_target": "Ascend", "devices": 8, "git": {"commit": "c" * 40, "dirty": True}}
    said = caveats(changed(run, ascend, select_on="minival"))
    assert "Not run on Ascend" not in said and "held out" in said and "optimistic" not in said and "dirty" in said
    assert "no epoch was chosen" in caveats(changed(run, select="last"))
    assert "commit of the code is unknown" in caveats(changed(run, {"git": None}))


@pytest.mark.slow
def test_reported_figures_are_compared_by_their_own_counting(run):
    reported = run.expected.model_copy(update={"stages": dict.fromkeys(STAGES, 90.0)})
    other = dataclasses.replace(run, expected=reported)
    for stage in run.stages:
        mine = stage.evaluation["ema"]["top1_whole_batches"]
        assert f"{stage.name}: reported 90.00 %" in card(
            other
        ) and f"{mine:.2f} % here (EMA weights): {mine - 90:+.2f}." in card(other)
    assert "The report's figures come from 8 x Ascend 910" in caveats(other) and "gives no figures" not in caveats(other)


@pytest.mark.slow
def test_every_attempt_is_listed_and_counted(run):
    first = run.stages[0]
    start = first.attempts[0]

    attempts = [
        start | {"attempt": "a", "time": "2026-01-02T10:00:00+00:00", "job": "71"},
        {"attempt": "a", "event": "begin", "time": "2026-01-02T10:01:00+00:00", "step": 0},
        {"attempt": "a", "event": "lost", "time": "2026-01-02T11:30:00+00:00", "sign": "heartbeat"},
        start | {"attempt": "b", "time": "2026-01-02T12:00:00+00:00", "job": "72"},
        {"attempt": "b", "event": "resume", "time": "2026-01-02T12:01:00+00:00", "step": 1200},
        {"attempt": "b", "event": "end", "time": "2026-01-02T13:00:00+00:00", "reason": "complete", "step": 2000},
    ]
    stages = [dataclasses.replace(first, attempts=attempts), *run.stages[1:]]
    training = sections(card(dataclasses.replace(run, stages=stages)))["Training"]
    head, *rows = table(training)
    cells = [dict(zip(head, row, strict=True)) for row in rows[:2]]
    assert [(c["attempt"], c["took"], c["from step"], c["job"]) for c in cells] == [
        ("1", "1h30m", "0", "71"), ("2", "1h00m", "1,200 (resumed)", "72")
    ]  # fmt: skip
    assert "killed" in cells[0]["ended"] and cells[1]["ended"] == "complete"
    assert "- stage1: 2 attempts, 2h30m (2.500 h)" in training


@pytest.mark.slow
def test_an_unfinished_stage_has_no_card(finished_run, tmp_path, monkeypatch, capsys):
    copy = finished_run.copy(tmp_path / "copy")
    monkeypatch.chdir(copy.path)
    Path("results/digits/stage2/evaluation.json").unlink()
    config = "results/digits/config"
    assert main(shlex.split(f"card results/digits --settings {config}/expectations.yaml --runtime {config}/runtime.yaml --dataset data/digits/dataset.json --output card.md")) == 2  # fmt: skip
    assert "stage2" in capsys.readouterr().err and not Path("card.md").exists()
