"""The workflow, interrupted anywhere, ends as if nothing had happened; every repair of docs/recovery.md does what it says."""

import json
import random
import re
import shutil
import subprocess
import sys

import faults
import pytest

from cswin.train.state import accept

pytestmark = pytest.mark.slow
SHARD = "data/digits/shards/train-00001.mindrecord"


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
    assert report.recovered == sum(kill.damaged is not None for kill in kills) >= 3
    assert report.refused == report.moved == 1


class TestRepairs:
    """Commands of docs/recovery.md on a finished run."""

    @pytest.fixture
    def run(self, finished_run, tmp_path):
        return finished_run.copy(tmp_path / "copy")

    def verify(self, run) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "cswin", "data", "verify", "data/digits/dataset.json"]
        return subprocess.run(command, cwd=run.path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    @pytest.mark.parametrize("damage", ["changed", "cut off", "gone"])
    def test_a_damaged_shard_is_converted_again_alone(self, run, damage):
        shard = run.path / SHARD
        whole = shard.read_bytes()
        shard.unlink()
        if damage != "gone":
            changed = bytearray(whole)
            changed[len(whole) // 2 : len(whole) // 2 + 500] = bytes(500)
            shard.write_bytes(changed if damage == "changed" else whole[:-1000])
        said = self.verify(run)
        assert said.returncode == 1
        (command,) = re.findall(r"snakemake (-f \S+)$", said.stdout, re.MULTILINE)
        assert command == f"-f {SHARD}"
        (run.path / "results/digits/stage2/state/accepted").unlink()
        assert run.planned(*command.split()) == {"convert": 1}
        run.snakemake(*command.split())
        assert shard.read_bytes() == whole and self.verify(run).returncode == 0
        assert not (run.path / "results/digits/stage2/state/accepted").exists()  # this run said nothing of stage 2
        assert run.planned() == {}
        run.snakemake()
        assert (run.path / "results/digits/stage2/state/accepted").exists()

    def test_trainer_names_a_damaged_shard_and_the_command(self, run):
        with (run.path / SHARD).open("ab") as shard:
            shard.write(b"more")
        done = run.snakemake("--forcerun", "train_stage3", check=False)
        assert done.returncode and f"`snakemake -f {SHARD}`" in done.stdout

    def test_a_copy_elsewhere_with_new_dates_trains_nothing_again(self, run, tmp_path):
        other = tmp_path / "other machine" / "project"
        shutil.copytree(run.path, other, copy_function=shutil.copyfile)
        assert type(run)(other).planned() == {}

    def test_locked_directory(self, run):
        locks = run.path / ".snakemake/locks"
        locks.mkdir(exist_ok=True)
        for kind in ("input", "output"):  # as a killed snakemake leaves them
            (locks / f"0.{kind}.lock").write_text("results/final_acc.csv\n")
        shutil.rmtree(run.path / "results/digits/stage3")
        locked = run.snakemake(check=False)
        assert locked.returncode and "cannot be locked" in locked.stdout and "--unlock" in locked.stdout
        run.snakemake("--unlock")
        assert run.planned()["train_stage3"] == 1

    def test_incomplete_files_are_made_again(self, run):
        import base64

        record = "results/digits/stage3/record.json"
        incomplete = run.path / ".snakemake/incomplete"
        incomplete.mkdir(exist_ok=True)
        (incomplete / base64.b64encode(record.encode()).decode()).touch()
        assert run.planned()["train_stage3"] == 1

    def test_a_stage_to_redo(self, run):
        assert run.planned("--forcerun", "train_stage3")["train_stage3"] == 1
        assert json.loads((run.path / "results/digits/stage3/state/complete.json").read_text())["stage"] == "stage3"
        accept(run.path / "results/digits/stage3/state")
