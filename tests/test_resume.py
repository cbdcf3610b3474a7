"""Interrupted anywhere, nothing lost: the same weights to the bit, each step once, one writer."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from cswin.checkpoint import load_checkpoint
from cswin.config.resolve import load_stage
from cswin.errors import UserError
from cswin.train.history import History, read_history
from cswin.train.identity import differences, fingerprint
from cswin.train.lease import Lease
from cswin.train.state import State, StateFolder, accept
from cswin.train.stopping import EXIT_INTERRUPTED, Stopping, parse_duration


class Stage1:
    """The first stage of the finished run, trained again beside it."""

    def __init__(self, run: Path, folder: Path):
        self.folder = folder
        runtime = yaml.safe_load((run / "results/digits/config/runtime.yaml").read_text())
        (folder.parent / "runtime.yaml").write_text(yaml.safe_dump(runtime | {"save_minutes": 0.02, "log_every": 3}))
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

    def interrupt(self, number: int, beyond: int) -> int:
        """Start, send the signal once so many steps are in the history, and return the exit code."""
        process = self.start()
        while self.steps() < beyond and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(number)
        return process.wait(timeout=120)


def losses(history: Path) -> list[tuple]:
    return [(row["kind"], row["step"], row.get("loss"), row.get("raw")) for row in read_history(history)]


@pytest.mark.slow
def test_killed_and_stopped_training_ends_with_the_same_bits(finished_run, tmp_path):
    stage = Stage1(finished_run.path, tmp_path / "stage1")
    chance = random.Random(7)
    assert stage.interrupt(signal.SIGKILL, chance.randint(5, 40)) == -signal.SIGKILL
    assert stage.interrupt(signal.SIGTERM, chance.randint(45, 70)) == EXIT_INTERRUPTED
    stopped = read_history(stage.folder / "attempts.jsonl")[-1]
    assert "SIGTERM" in stopped["reason"] and stopped["step"] == stage.steps()  # nothing was lost at the signal
    assert stage.start().wait(timeout=300) == 0

    whole = finished_run.path / "results/digits/stage1"
    mine, theirs = load_checkpoint(stage.folder / "checkpoint.safetensors"), load_checkpoint(whole / "checkpoint.safetensors")
    for name, value in theirs.weights.items():
        assert np.array_equal(mine.weights[name], value) and np.array_equal(mine.ema[name], theirs.ema[name])
    assert losses(stage.folder / "history.jsonl") == losses(whole / "history.jsonl")
    assert not (stage.folder / "lease.json").exists()


@pytest.mark.slow
def test_second_trainer_is_turned_away_and_time_limit_saves(finished_run, tmp_path):
    stage = Stage1(finished_run.path, tmp_path / "stage1")
    first = stage.start("--max-runtime", "45s")
    while not (stage.folder / "lease.json").exists():
        assert first.poll() is None
        time.sleep(0.05)
    second = subprocess.run([*map(str, stage.command)], capture_output=True, text=True, timeout=60)
    assert second.returncode == 2
    assert f"process {first.pid}" in second.stderr and "another trainer" in second.stderr
    started = time.monotonic()
    assert first.wait(timeout=120) in (0, EXIT_INTERRUPTED)
    assert time.monotonic() - started < 60
    assert list((stage.folder / "state").glob("state-*.safetensors"))


def state(step: int) -> State:
    arrays = {"w": np.arange(1000, dtype=np.float32) * step, "ema.w": np.ones(3, np.float32)}
    return State(step, arrays, {"fingerprint": {"a": step}, "history_bytes": 0})


def test_damaged_newest_state_gives_way_to_the_one_before(tmp_path):
    said = []
    states = StateFolder(tmp_path / "state", keep=3, say=said.append)
    for step in (1, 2, 3, 4):
        states.save(state(step))
    states.wait()
    files = sorted((tmp_path / "state").glob("state-*.safetensors"))
    assert len(files) == 3
    data = bytearray(files[-1].read_bytes())
    data[-2000] ^= 1
    files[-1].write_bytes(data)
    files[-2].write_bytes(files[-2].read_bytes()[:-100])
    found = StateFolder(tmp_path / "state", keep=3, say=said.append).load()
    assert found.step == 2 and np.array_equal(found.arrays["w"], state(2).arrays["w"])
    assert sum("is damaged" in line for line in said) == 2


def test_full_disk_leaves_older_states_whole(tmp_path, monkeypatch):
    states = StateFolder(tmp_path / "state", keep=2, say=print)
    states.save(state(1), background=False)
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("cswin.train.state.shutil.disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="are free"):
        states.save(state(2), background=False)
    assert states.load().step == 1


def test_completed_stage_is_repeated_only_once_it_was_accepted(tmp_path):
    states = StateFolder(tmp_path / "state", keep=2, say=print)
    states.save(state(1), background=False)
    accept(states.path)
    assert not states.accepted  # it has not ended
    states.mark_complete({})
    assert not states.accepted  # nobody has used it
    accept(states.path)
    assert states.accepted


def test_history_is_cut_to_the_state(tmp_path):
    history = History(tmp_path / "h.jsonl")
    history.append([{"step": 1}, {"step": 2}])
    size = history.size()
    history.append([{"step": 3}])
    history.close()
    again = History(tmp_path / "h.jsonl", size)
    again.append([{"step": 3, "again": True}])
    again.close()
    assert read_history(tmp_path / "h.jsonl") == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]
    with pytest.raises(UserError, match="shorter"):
        History(tmp_path / "h.jsonl", 10_000)


def test_identity_names_the_key_that_differs(finished_run):
    config = load_stage(finished_run.path / "results/digits/config/stage2.yaml")
    changed = config.model_copy(update={"seed": 7, "run": "other"})
    assert differences(fingerprint(config, "m"), fingerprint(changed, "m")) == ["config.seed: was 42, is now 7"]
    assert differences(fingerprint(config, "m"), fingerprint(config, "n")) == ["manifest: was 'm', is now 'n'"]


@pytest.mark.parametrize("use_lock", [True, False])
class TestLease:
    def test_holder_is_named_and_nothing_touched(self, tmp_path, use_lock):
        with Lease(tmp_path, 60, use_lock):
            record = (tmp_path / "lease.json").read_bytes()
            with pytest.raises(UserError, match=f"process {os.getpid()}"), Lease(tmp_path, 60, use_lock):
                pass
            assert (tmp_path / "lease.json").read_bytes() == record
        with Lease(tmp_path, 60, use_lock):
            pass
        assert not (tmp_path / "lease.json").exists()

    def test_dead_holder_on_this_host_is_replaced_at_once(self, tmp_path, use_lock):
        dead = subprocess.Popen(["true"])
        dead.wait()
        holder = {"host": socket.gethostname(), "pid": dead.pid, "started": "1", "heartbeat": time.time()}
        (tmp_path / "lease.json").write_text(json.dumps(holder))
        with Lease(tmp_path, 60, use_lock):
            assert json.loads((tmp_path / "lease.json").read_text())["pid"] == os.getpid()

    def test_other_host_is_replaced_after_the_timeout_only(self, tmp_path, use_lock):
        holder = {"host": "elsewhere", "pid": 1, "started": "1", "job": "77", "heartbeat": time.time() - 30}
        (tmp_path / "lease.json").write_text(json.dumps(holder))
        with pytest.raises(UserError, match="elsewhere, process 1, job 77"), Lease(tmp_path, 60, use_lock):
            pass
        with Lease(tmp_path, 20, use_lock):
            pass


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("45m", 2700), ("11h", 39600), ("2d", 172800), ("01:30:00", 5400), ("1-00:00:10", 86410)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


def test_bad_duration_is_refused():
    with pytest.raises(UserError, match="soon"):
        parse_duration("soon")


def test_time_limit_leaves_time_for_the_save():
    stopping = Stopping(100.0)
    assert stopping() is None
    stopping.took(40.0)  # three times that no longer fits
    assert "time limit" in stopping()
