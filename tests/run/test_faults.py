"""The workflow, interrupted anywhere, ends as if nothing had happened; every repair of docs/recovery.md does what it says."""

import base64
import json
import random
import re
import shutil
import subprocess
import sys

import faults
import pytest

pytestmark = pytest.mark.slow
SHARDS = [f"data/digits/shards/1MiB/{name}.mindrecord" for name in ("train-00000", "train-00001", "val-00000")]


def test_interrupted_anywhere_nothing_is_lost(finished_run, tmp_path):
    """21 kills and 3 stops over the three stages, through snakemake; see benchmarks/faults.py."""
    report = faults.Interruptions(finished_run.path, tmp_path / "run", random.Random(20)).train(each=8)
    print(*report.lines(), sep="\n")
    assert report.problems == []
    kills, stops = ([kill for kill in report.kills if kill.stop == asked] for asked in (False, True))
    assert len(kills) >= 20 and {kill.victim for kill in kills} == set(faults.VICTIMS)
    for stage in ("stage1", "stage2", "stage3"):
        assert sum(kill.stage == stage for kill in kills) >= 6
    assert {kill.moment for kill in kills} == {moment for moments in faults.MOMENTS for moment in moments} - {"stop"}
    assert len(stops) == 3 and all(stop.lost == 0 for stop in stops)
    assert report.recovered == sum(kill.damaged is not None for kill in kills) >= 2
    assert report.refused == report.moved == 1


class TestRepairs:
    """Commands of docs/recovery.md on a finished run."""

    @pytest.fixture
    def run(self, finished_run, tmp_path):
        return finished_run.copy(tmp_path / "copy")

    def verify(self, run) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "cswin", "data", "verify", "data/digits/dataset.json"]
        return subprocess.run(command, cwd=run.path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def test_damaged_shards_are_converted_again_and_nothing_else(self, run):
        gone, changed, cut = shards = [run.path / name for name in SHARDS]
        whole = [shard.read_bytes() for shard in shards]
        gone.unlink()
        changed.write_bytes(whole[1][: len(whole[1]) // 2] + bytes(500) + whole[1][len(whole[1]) // 2 + 500 :])
        cut.write_bytes(whole[2][:-1000])
        said = self.verify(run)
        assert said.returncode == 1
        (command,) = re.findall(r"snakemake (-f .+)$", said.stdout, re.MULTILINE)
        assert command.split() == ["-f", *SHARDS]
        used = run.path / "results/digits/stage2/state/accepted"
        used.unlink()
        assert run.planned(*command.split()) == {"convert": 3}
        run.snakemake(*command.split())
        assert [shard.read_bytes() for shard in shards] == whole and self.verify(run).returncode == 0
        assert used.exists()  # what later jobs wrote tells that the stage was used, whatever files this run was for
        assert run.planned() == {}

    @pytest.mark.parametrize("arguments", [(), ("-f", "results/digits/stage2/checkpoint.safetensors")])
    @pytest.mark.parametrize("damage", ["changed", "missing"])
    def test_a_lost_checkpoint_is_made_again_without_training(self, run, monkeypatch, arguments, damage):
        folder = run.path / "results/digits/stage2"
        checkpoint = folder / "checkpoint.safetensors"
        whole = checkpoint.read_bytes()
        later = (run.path / "results/digits/stage3/history.jsonl").read_bytes()
        checkpoint.write_bytes(whole[:3_000_000] + b"xxxx" + whole[3_000_004:])
        if damage == "missing":
            checkpoint.unlink()
        monkeypatch.setenv("GIT_DIR", "/nowhere")  # the code has changed since, as far as can be told
        assert run.planned(*arguments)["train_stage2"] == 1
        run.snakemake(*arguments)
        assert checkpoint.read_bytes() == whole
        last = [json.loads(line) for line in (folder / "attempts.jsonl").read_text().splitlines()][-2:]
        assert [(row["event"], row["step"]) for row in last] == [("resume", 132), ("end", 132)]
        run.snakemake()
        assert (run.path / "results/digits/stage3/history.jsonl").read_bytes() == later
        assert not list(run.path.glob("results/digits/*/state.*"))  # nothing was begun anew
        assert run.planned() == {}

    def test_trainer_names_a_damaged_shard_and_the_command(self, run):
        with (run.path / SHARDS[1]).open("ab") as shard:
            shard.write(b"more")
        done = run.snakemake("--forcerun", "train_stage3", check=False)
        assert done.returncode and f"`snakemake -f {SHARDS[1]}`" in done.stdout

    def test_a_copy_elsewhere_with_new_dates_trains_nothing_again(self, run, tmp_path):
        other = tmp_path / "other machine" / "project"
        shutil.copytree(run.path, other, copy_function=shutil.copyfile)
        assert type(run)(other).planned() == {}

    def test_locked_directory(self, run):
        locks = run.path / ".snakemake/locks"
        locks.mkdir(exist_ok=True)
        for kind in ("input", "output"):  # as a killed snakemake leaves them
            (locks / f"0.{kind}.lock").write_text("results/final_acc.csv\n")
        locked = run.snakemake(check=False)
        assert locked.returncode and "cannot be locked" in locked.stdout and "--unlock" in locked.stdout
        run.snakemake("--unlock")
        run.snakemake()

    def test_incomplete_files_are_made_again(self, run):
        record = "results/digits/stage3/record.json"
        incomplete = run.path / ".snakemake/incomplete"
        incomplete.mkdir(exist_ok=True)
        (incomplete / base64.b64encode(record.encode()).decode()).touch()
        assert run.planned()["train_stage3"] == 1
