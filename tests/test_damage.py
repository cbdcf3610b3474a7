"""Damaged files of a run, outputs that cannot be written, paths in the way: one or two lines with the remedy, never a traceback."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import Workspace
from recipes import DIGITS, stage

from cswin.atomic import atomic_path
from cswin.average import average_checkpoints
from cswin.checkpoint import Checkpoint, CheckpointRecord, save_checkpoint
from cswin.cli import main
from cswin.config.files import read_yaml
from cswin.data.images.preprocessing import Preprocessing
from cswin.distributed.ranks import ALONE
from cswin.errors import UserError
from cswin.export.hf import Source
from cswin.layout import RunLayout
from cswin.model.variants import Architecture
from cswin.model.weights import initial_weights
from cswin.preflight.run import preflight
from cswin.report.run import load_run
from cswin.report.status import status_of
from cswin.run.history import read_columns, read_history
from cswin.run.repeat import is_damaged

ARCH = Architecture(8, (1, 1, 1, 1), (1, 1, 1, 1), (2, 2, 2, 2), image_size=32, num_classes=3)
RECORD = CheckpointRecord(ARCH, ("a", "b", "c"), Preprocessing(32, 0.9, (0.5,) * 3, (0.2,) * 3), {"stage": "s"})


def checkpoint(seed: int = 0, **changes) -> Checkpoint:
    return Checkpoint(RECORD, initial_weights(ARCH, np.random.default_rng(seed)) | changes)


# Outputs


def test_a_pipe_or_device_is_not_replaced_and_a_link_stays_a_link(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe: is a device or a pipe; name a file"), atomic_path(tmp_path / "pipe"):
        pass
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    with atomic_path(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "new"


def test_a_checkpoint_on_a_full_disk(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def full(*arguments, **more):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(UserError, match=r"m.safetensors: cannot be written .*No space left"):
        save_checkpoint(tmp_path / "m.safetensors", checkpoint())
    assert list(tmp_path.iterdir()) == []


def test_predictions_and_features_in_one_file(tmp_path, capsys):
    arguments = ["--checkpoint", "m.safetensors", "--output", str(tmp_path / "x.npz"), "--features", str(tmp_path / "x.npz")]
    assert main(["predict", "image.png", *arguments]) == 2
    assert "is also --output; give two names" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--output", "--predictions", "--per-class", "--confusions"])
def test_an_evaluation_that_cannot_be_written_does_not_begin(tmp_path, capsys, option):
    (tmp_path / "results").mkdir()
    (tmp_path / "results/old.json").write_text("old")
    arguments = ["--checkpoint", "none.safetensors", "--data", "none", "--output", str(tmp_path / "results/old.json")]
    assert main(["evaluate", *arguments, option, str(tmp_path / "missing/file")]) == 2
    assert "missing/file: cannot be written" in capsys.readouterr().err
    assert [(f.name, f.read_text()) for f in (tmp_path / "results").iterdir()] == [("old.json", "old")]


def test_a_dry_run_that_cannot_keep_its_files(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["dry-run", str(DIGITS), "--keep", str(tmp_path / "file/kept")]) == 2
    assert "cannot be made a folder (Not a directory)" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["folder", "page", "file"])
def test_a_preflight_whose_results_cannot_be_written_makes_no_check(tmp_path, monkeypatch, where):
    monkeypatch.setattr("cswin.preflight.run.golden", lambda *arguments: pytest.fail("it has begun"))
    output = tmp_path / "results/preflight.json"
    output.parent.mkdir()
    receipt = output.with_suffix(".passed")
    receipt.touch()
    if where == "file":
        (tmp_path / "taken").touch()
        output = tmp_path / "taken/preflight.json"
    else:
        output.with_suffix(".json" if where == "folder" else ".md").mkdir()
    config, runtime = stage(DIGITS)
    given = type("Given", (), {"config": config, "runtime": runtime})()
    with pytest.raises(UserError, match="cannot be written" if where == "file" else "is a folder; name a file"):
        preflight(given, output, None, ALONE)
    assert receipt.exists() == (where == "file")  # the receipt of an earlier success is not left


# Inputs


def test_a_weight_that_is_not_finite_is_not_averaged(tmp_path):
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for seed, path in enumerate(paths):
        save_checkpoint(path, checkpoint(seed, **({"head.bias": np.full(3, np.nan, np.float32)} if seed else {})))
    with pytest.raises(UserError, match=r"b.safetensors: head.bias is not finite.*leave this checkpoint out"):
        average_checkpoints(paths)


@pytest.mark.parametrize("text", ["seed: 2020-99-99", f"seed: {'9' * 5000}", "seed: " + "[" * 5000])
def test_yaml_whose_values_cannot_be_built(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match="c.yaml: not valid YAML"):
        read_yaml(tmp_path / "c.yaml")


def test_a_damaged_history_names_its_line(tmp_path):
    file = tmp_path / "attempts.jsonl"
    good = '{"kind": "step", "step": 1, "loss": 2.0}\n'
    file.write_text(good + "{damaged}\n" + good)
    for read in (read_history, read_columns):
        with pytest.raises(UserError, match=r"attempts.jsonl: line 2 is damaged; restore the file"):
            read(file)
    file.write_text(good + '{"kind": "step", "step": 1, "loss": NaN}\n')
    with pytest.raises(UserError, match="attempts.jsonl: is damaged"):
        read_columns(file)
    file.write_text(good + "[1]\n")
    with pytest.raises(UserError, match="line 2 is damaged"):
        read_history(file)


@pytest.fixture
def run(tmp_path) -> RunLayout:
    """A run of one stage with its small files."""
    from cswin.config.resolve import dump

    layout = RunLayout(tmp_path / "results/digits")
    layout.configs.mkdir(parents=True)
    layout.config("stage1").write_text(dump(stage(DIGITS)[0]))
    files = layout.stage("stage1")
    files.folder.mkdir()
    files.record.write_text(json.dumps({"sha256": "0", "best_epoch": 1}))
    files.evaluation.write_text(json.dumps({"checkpoint": "0", "raw": {}}))
    return layout


@pytest.mark.parametrize("content", ["[]", "{}", '"text"'])
@pytest.mark.parametrize(("name", "remedy"), [("record", "remove it"), ("evaluation", "--forcerun evaluate")])
def test_small_files_with_another_content(run, name, remedy, content):
    assert load_run(run.folder, ["stage1"])[0].record["best_epoch"] == 1
    file = getattr(run.stage("stage1"), name)
    file.write_text(content)
    with pytest.raises(UserError, match=f"{file.name}: is damaged, it lacks .*; .*{remedy}"):
        load_run(run.folder, ["stage1"])
    if name == "evaluation":
        run.stage("stage1").checkpoint.touch()
        with pytest.raises(UserError, match="evaluation.json: is damaged"):
            Source.find(run.stage("stage1").checkpoint)


def test_status_names_the_damaged_file(run):
    run.stage("stage1").attempts.write_text("{damaged}\n")
    assert "attempts.jsonl: line 1 is damaged" in status_of(run.folder).problem


def test_a_run_card_in_another_encoding_leaves_no_half_folder(run, tmp_path, capsys):
    files = run.stage("stage1")
    save_checkpoint(files.checkpoint, checkpoint())
    files.evaluation.unlink()
    run.card.write_bytes("caf\xe9".encode("latin-1"))
    assert main(["export", "hf", str(tmp_path / "hub"), "--checkpoint", str(files.checkpoint)]) == 2
    assert "README.md: cannot be read" in capsys.readouterr().err and not (tmp_path / "hub").exists()


@pytest.mark.parametrize("text", ["run,stage\n", "a,b\n1,2\n"])
def test_a_table_without_rows_has_no_page(tmp_path, capsys, text):
    (tmp_path / "t.csv").write_text(text)
    output = ["--output", str(tmp_path / "t.html")]
    assert main(["page", "table", str(tmp_path / "t.csv"), "--curves", str(tmp_path / "c.png"), *output]) == 2
    assert "t.csv: is no table of a run" in capsys.readouterr().err


# The workflow


def test_a_file_where_a_stage_s_folder_belongs_is_no_damage(tmp_path):
    (tmp_path / "stage2").touch()
    assert not is_damaged(tmp_path / "stage2")


IN_THE_WAY = {
    "the table is a folder": (lambda path: (path / "results/final_acc.csv").mkdir(), "is a folder, but the table is written"),
    "a run is a file": (
        lambda path: (path / "results/digits").touch(),
        "results/digits: is a file, but a folder of this name is needed",
    ),
    "the configuration is Latin-1": (
        lambda path: (path / "config/config.yaml").write_bytes("run: caf\xe9".encode("latin-1")),
        "config/config.yaml: not valid UTF-8 at byte 8; save the file as UTF-8",
    ),
    "a date that does not exist": (
        lambda path: (path / "config/config.yaml").write_text("seed: 2020-99-99"),
        "config/config.yaml: not valid YAML",
    ),
}


@pytest.mark.parametrize("case", IN_THE_WAY)
def test_snakemake_names_what_is_in_the_way(tmp_path, case):
    workspace = Workspace.create(tmp_path / "workspace")
    (workspace.path / "results").mkdir()
    change, words = IN_THE_WAY[case]
    change(workspace.path)
    done = workspace.snakemake("--cores", "1", "results/final_acc.csv", "--until", "stages_config", check=False)
    assert done.returncode == 1 and words in done.stdout, done.stdout
    assert "Traceback" not in done.stdout, done.stdout
    assert not Path(workspace.path / "data").exists()
