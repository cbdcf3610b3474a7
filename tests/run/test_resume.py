"""Interrupted anywhere, nothing lost: the same weights to the bit, each step once, one writer."""

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import faults
import pytest
import yaml
from folders import contents, on_small_disk

from cswin.config.resolve import load_stage
from cswin.distributed.stopping import EXIT_INTERRUPTED
from cswin.run.history import read_history
from cswin.run.identity import differences, fingerprint
from cswin.run.lease import Lease, holder
from cswin.run.states import StateFolder


class Stage1:
    """The first stage of the finished run, trained again beside it."""

    def __init__(self, run: Path, folder: Path, **speed):
        self.folder = folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        runtime = yaml.safe_load((run / "results/digits/config/runtime.yaml").read_text())
        (folder.parent / "runtime.yaml").write_text(yaml.safe_dump(runtime | {"save_minutes": 0.02, "log_every": 3} | speed))
        self.command = [
            sys.executable, "-m", "cswin", "train", "--config", run / "results/digits/config/stage1.yaml", "--runtime",
            folder.parent / "runtime.yaml", "--dataset", run / "data/digits/dataset.json", "--output", folder,
        ]  # fmt: skip

    def start(self, *arguments: str) -> subprocess.Popen:
        output = (self.folder.parent / "output.txt").open("a")
        return subprocess.Popen(
            [*map(str, self.command), *arguments], stdout=output, stderr=output, env=os.environ | {"GLOG_v": "3"}
        )

    def steps(self) -> int:
        history = self.folder / "history.jsonl"
        return sum(row["kind"] == "step" for row in read_history(history)) if history.exists() else 0

    def output(self) -> str:
        return (self.folder.parent / "output.txt").read_text()

    def attempts(self) -> list[dict]:
        return read_history(self.folder / "attempts.jsonl")

    def wait_for_steps(self, process: subprocess.Popen, count: int) -> None:
        while self.steps() < count:
            assert process.poll() is None, self.output()
            time.sleep(0.05)

    def interrupt(self, number: int, beyond: int) -> int:
        """Start, send the signal once so many steps are in the history, and return the exit code."""
        process = self.start()
        self.wait_for_steps(process, beyond)
        process.send_signal(number)
        return process.wait(timeout=600)


@pytest.mark.slow
def test_stopped_training_loses_nothing_and_ends_with_the_same_bits(finished_run, tmp_path):
    stage, chance = Stage1(finished_run.path, tmp_path / "stage1"), random.Random(7)
    for number, beyond in ((signal.SIGTERM, chance.randint(5, 40)), (signal.SIGUSR1, chance.randint(45, 70))):
        assert stage.interrupt(number, beyond) == EXIT_INTERRUPTED
        end = stage.attempts()[-1]
        assert number.name in end["reason"] and end["step"] == stage.steps()  # every step that was done is saved
        assert StateFolder(stage.folder / "state", 3, print).load().step == end["step"]
        assert end["saving"]["saves"] and end["saving"]["bytes"] > 1e6 and end["saving"]["held_up"] > 0
    assert stage.start().wait(timeout=600) == 0
    assert [row["event"] for row in stage.attempts()] == ["start", "begin", "end", *2 * ["start", "resume", "end"]]
    assert faults.compare(stage.folder, finished_run.path / "results/digits/stage1") == []
    assert holder(stage.folder) is None


@pytest.mark.slow
def test_other_speed_goes_on_with_the_same_batches(finished_run, tmp_path):
    """Half of the stage as it was, the other half with half as large micro-batches, one process instead of two threads."""
    whole = finished_run.path / "results/digits/stage1"
    shutil.copytree(whole, tmp_path / "stage1")
    for done in ("state/state-000000088.safetensors", "state/complete.json", "state/accepted"):
        (tmp_path / "stage1" / done).unlink()
    speed = {"batch_size": 16, "accumulation": 2, "workers": 1, "worker_kind": "process", "prefetch": 1, "save_minutes": 9.0}
    stage = Stage1(finished_run.path, tmp_path / "stage1", **speed)
    assert stage.start().wait(timeout=600) == 0, stage.output()
    assert not list(tmp_path.glob("stage1/state.*"))
    assert [row["step"] for row in stage.attempts() if row["event"] == "resume"] == [44]
    mine, theirs = ([row for row in read_history(f / "history.jsonl") if row["kind"] == "step"] for f in (stage.folder, whole))
    assert [row["step"] for row in mine] == list(range(1, 89))
    assert mine[:44] == theirs[:44]
    assert mine != theirs  # other sums: else nothing would have been tested
    for ours, other in zip(mine[44:], theirs[44:], strict=True):  # other images, or images with other numbers, differ by 0.1
        assert ours["loss"] == pytest.approx(other["loss"], rel=0.01) and ours["lr"] == other["lr"]


@pytest.mark.slow
def test_suspended_trainer_that_was_replaced_stops_without_writing(finished_run, tmp_path, monkeypatch):
    stage = Stage1(finished_run.path, tmp_path / "stage1", lease_timeout=4.0, log_every=1)
    sleeper = stage.start()
    stage.wait_for_steps(sleeper, 3)
    sleeper.send_signal(signal.SIGSTOP)
    monkeypatch.setattr("cswin.run.lease._process_table", lambda: "another host")
    with Lease(stage.folder, 4.0, use_lock=False):
        before = contents(stage.folder)
        sleeper.send_signal(signal.SIGCONT)
        assert sleeper.wait(timeout=600) == 2
        after = contents(stage.folder)
        attempts = after.pop("attempts.jsonl").decode().splitlines()
        assert json.loads(attempts[-1])["reason"].startswith("LeaseLost")
        for changing in ("attempts.jsonl", *(name for name in {*before, *after} if "lease-" in name or ".partial" in name)):
            before.pop(changing, None), after.pop(changing, None)
        assert after == before
    assert "has taken this stage over" in stage.output() and "Traceback" not in stage.output()


@pytest.mark.slow
def test_trainer_on_a_full_disk_says_so_and_leaves_whole_states(finished_run, tmp_path):
    stage = Stage1(finished_run.path, tmp_path / "disk" / "stage1")  # a state has 40 MB
    command = shlex.join(map(str, stage.command))
    script = f"{command}; echo rc $?; cp -r {tmp_path / 'disk'} {tmp_path / 'rest'}"
    done = on_small_disk(tmp_path / "disk", 100, script)
    assert "rc 2" in done.stdout, done.stdout
    assert "the training state cannot be written" in done.stdout and "Traceback" not in done.stdout
    states = sorted((tmp_path / "rest/stage1/state").iterdir())
    assert len(states) >= 2 and all(re.fullmatch(r"state-\d{9}\.safetensors", file.name) for file in states)
    for file in reversed(states):  # each of them is whole
        assert file.name == f"state-{StateFolder(file.parent, 3, pytest.fail).load().step:09d}.safetensors"
        file.unlink()


@pytest.mark.slow
def test_second_trainer_is_turned_away_and_time_limit_saves(finished_run, tmp_path):
    stage, log = Stage1(finished_run.path, tmp_path / "stage1"), tmp_path / "train.log"
    first = stage.start("--max-runtime", "1s", "--log", str(log))  # over before the first step: it does that one and saves it
    while not (stage.folder.exists() and holder(stage.folder)):
        assert first.poll() is None
        time.sleep(0.05)
    log.write_text("what the first one said\n")
    command = [*map(str, stage.command), "--log", str(log)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert second.returncode == 2
    assert f"process {first.pid}" in second.stderr and "another trainer" in second.stderr
    assert first.wait(timeout=600) == EXIT_INTERRUPTED
    assert log.read_text().startswith("what the first one said")
    end = stage.attempts()[-1]
    assert "the time limit of 1 s is near" in end["reason"] and end["step"] == 1
    assert StateFolder(stage.folder / "state", 3, pytest.fail).load().step == 1


@pytest.mark.slow
def test_changed_versions_stop_before_any_work_until_the_user_decides(finished_run, tmp_path):
    """The first half of a stage as another NumPy would have left it."""
    whole = finished_run.path / "results/digits/stage1"
    stage = Stage1(finished_run.path, tmp_path / "stage1")
    shutil.copytree(whole, stage.folder)
    for later in ("state/state-000000088.safetensors", "state/complete.json", "state/accepted"):
        (stage.folder / later).unlink()
    states = StateFolder(stage.folder / "state", 3, print)
    state = states.load()
    ours = state.meta["fingerprint"]["versions"]
    state.meta["fingerprint"]["versions"] = ours | {"numpy": "1.0"}
    states.save(state, background=False)
    before = contents(stage.folder / "state"), stage.attempts()
    assert stage.start().wait(timeout=600) == 2
    choices = re.findall(r"\((cswin state .*?)\)", stage.output())
    assert f"versions.numpy: was '1.0', is now '{ours['numpy']}'" in stage.output() and "Traceback" not in stage.output()
    assert (contents(stage.folder / "state"), stage.attempts()) == before
    assert [shlex.split(choice)[1:] for choice in choices] == [
        ["state", str(stage.folder), "--accept-versions"], ["state", str(stage.folder), "--set-aside"]
    ]  # fmt: skip
    subprocess.run([sys.executable, "-m", *shlex.split(choices[0])], check=True)
    assert stage.start("--max-runtime", "1s").wait(timeout=600) == EXIT_INTERRUPTED  # after a step; written down once
    assert stage.start().wait(timeout=600) == 0, stage.output()
    assert faults.compare(stage.folder, whole) == []
    (change,) = json.loads((stage.folder / "record.json").read_text())["versions_changed"]
    assert change["step"] == 44 and change["was"]["versions"]["numpy"] == "1.0" and change["now"]["versions"] == ours
    subprocess.run([sys.executable, "-m", *shlex.split(choices[1])], check=True)
    assert not (stage.folder / "state").exists()


def test_identity_names_the_key_that_differs(finished_run):
    config = load_stage(finished_run.path / "results/digits/config/stage2.yaml")
    changed = config.model_copy(update={"seed": 7, "run": "other"})
    assert differences(fingerprint(config, "m"), fingerprint(changed, "m")) == ["config.seed: was 42, is now 7"]
    assert differences(fingerprint(config, "m"), fingerprint(config, "n")) == ["manifest: was 'm', is now 'n'"]
