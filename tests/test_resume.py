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
import numpy as np
import pytest
import yaml

from cswin.config.resolve import load_stage
from cswin.errors import UserError
from cswin.train.history import History, read_history
from cswin.train.identity import differences, fingerprint
from cswin.train.lease import Lease, LeaseLost, holder
from cswin.train.stage import retire_foreign_state
from cswin.train.state import State, StateFolder, accept
from cswin.train.stopping import EXIT_INTERRUPTED, SIGNALS, Stopping, parse_duration


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


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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
    monkeypatch.setattr("cswin.train.lease._process_table", lambda: "another host")
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


def on_small_disk(folder: Path, megabytes: int, script: str) -> subprocess.CompletedProcess:
    """Run a shell script with a disk of its own at `folder`; the mount is seen by the script alone and ends with it."""
    folder.mkdir(exist_ok=True)
    kept = folder.with_name(f"{folder.name}.kept")
    mount = f"cp -r {folder} {kept}; mount -t tmpfs -o size={megabytes}m tmpfs {folder} && cp -r {kept}/. {folder} && echo mounted; {script}"
    own = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--user", "--map-root-user"]
    done = subprocess.run(
        [*own, "sh", "-c", mount],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,
        env=os.environ | {"GLOG_v": "3"},
    )
    assert "mounted" in done.stdout, done.stdout
    return done


@pytest.mark.parametrize("told", [True, False], ids=["seen before", "in the middle of writing"])
def test_full_disk_leaves_older_states_whole(tmp_path, told):
    """Three states of 4 MB on 10 MB, the third in the background."""
    script = tmp_path / "fill.py"
    script.write_text(f"""
import sys, numpy as np
from cswin.errors import UserError
from cswin.train import state
from cswin.train.state import State, StateFolder

if not {told}:  # another process fills the disk while this one writes
    state.shutil.disk_usage = lambda path: type("Usage", (), {{"free": 1e12}})
states = StateFolder({str(tmp_path / "disk" / "state")!r}, 3, sys.exit)
make = lambda step: State(step, {{"w": np.full(1_000_000, step, np.float32)}}, {{}})
for step in (1, 2, 3):
    states.save(make(step))
try:
    states.wait()
except UserError as error:
    print("refused:", error)
print("left:", sorted(path.name for path in states.path.iterdir()), states.load().arrays["w"][0])
states.path.joinpath("state-000000001.safetensors").unlink()
states.save(make(3))
states.wait()
print("then:", states.load().step)
""")
    done = on_small_disk(tmp_path / "disk", 10, f"{sys.executable} {script}")
    reason = "MB are free" if told else "No space left on device"
    assert re.search(
        rf"refused: .*/state: the training state cannot be written \(.*{reason}.*the older states are whole", done.stdout
    )
    assert "left: ['state-000000001.safetensors', 'state-000000002.safetensors'] 2.0" in done.stdout
    assert "then: 3" in done.stdout


def test_failed_write_in_the_background_is_told_before_the_next_save(tmp_path):
    (tmp_path / "state").write_text("no folder")
    states = StateFolder(tmp_path / "state", keep=2, say=print)
    states.check()
    states.save(state(1))
    states._writer.join()
    with pytest.raises(UserError, match="cannot be written"):
        states.check()
    states.check()


def test_guard_is_asked_when_all_is_written_and_its_refusal_leaves_nothing(tmp_path):
    def guard():
        seen.append(next((tmp_path / "state").glob(".state-*")).stat().st_size)
        if len(seen) > 1:
            raise LeaseLost("taken over")

    seen = []
    states = StateFolder(tmp_path / "state", keep=2, say=print, guard=guard)
    states.save(state(1), background=False)
    with pytest.raises(LeaseLost):
        states.save(state(2), background=False)
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["state-000000001.safetensors"]
    assert seen[0] == (tmp_path / "state/state-000000001.safetensors").stat().st_size


def test_what_killed_writers_left_is_removed(tmp_path):
    states = StateFolder(tmp_path / "state", keep=2, say=print)
    states.save(state(1), background=False)
    (tmp_path / "state/.state-000000007.partial.safetensors").write_bytes(b"half")
    states.save(state(2), background=False)
    names = {path.name for path in (tmp_path / "state").iterdir()}
    assert names == {"state-000000001.safetensors", "state-000000002.safetensors"}


def test_state_that_cannot_be_read_is_not_taken_for_damaged(tmp_path, monkeypatch):
    states = StateFolder(tmp_path / "state", keep=2, say=pytest.fail)
    for step in (1, 2):
        states.save(state(step), background=False)
    before = contents(tmp_path)

    def refuse(file):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("cswin.train.state._read", refuse)
    with pytest.raises(
        UserError, match=r"state-000000002\.safetensors: cannot be read \(Permission denied\); nothing was changed"
    ):
        states.load()
    assert contents(tmp_path) == before


def test_state_holds_all_that_training_goes_on_from(finished_run):
    found = StateFolder(finished_run.path / "results/digits/stage2/state", 3, pytest.fail).load()
    weights = [name.removeprefix("ema.") for name in found.arrays if name.startswith("ema.")]
    assert len(weights) > 50
    for prefix in ("", "moment1.", "moment2.", "best.", "best.ema."):
        assert {prefix + name for name in weights} <= found.arrays.keys()
    assert {"loss_scale", "good_steps", "bad_steps", "schedule_step", "updates"} <= found.arrays.keys()
    assert found.step == 132 and found.meta["epochs_done"] == 3 and found.meta["best"]["epoch"] == 2
    assert found.arrays["updates"] == found.arrays["schedule_step"] == 44
    history = finished_run.path / "results/digits/stage2/history.jsonl"
    assert found.meta["history_bytes"] == history.stat().st_size
    assert {"config", "manifest", "input_checkpoint", "versions", "revision"} == found.meta["fingerprint"].keys()
    assert found.meta["fingerprint"]["config"]["optimizer"]["global_batch"] == 32


class TestForeignState:
    """A stage's folder whose state may not be continued."""

    identity = {"config": {"seed": 42, "schedule": {"base_lr": 0.001}}, "manifest": "m"}

    @pytest.fixture
    def folder(self, tmp_path):
        states = StateFolder(tmp_path / "state", 3, print)
        states.save(State(5, {"w": np.ones(3, np.float32)}, {"fingerprint": self.identity}), background=False)
        (tmp_path / "history.jsonl").write_text('{"step": 5}\n')
        return tmp_path

    def retire(self, folder, identity):
        said = []
        retire_foreign_state(folder, 3, identity, said.append)
        return " ".join(said)

    def test_the_same_computation_is_left_alone(self, folder):
        before = contents(folder)
        assert self.retire(folder, self.identity) == "" and contents(folder) == before

    def test_another_one_is_set_aside_with_its_history_and_the_keys_are_named(self, folder):
        before = contents(folder)
        said = self.retire(folder, {"config": {"seed": 7, "schedule": {"base_lr": 0.002}}, "manifest": "m"})
        assert "config.seed: was 42, is now 7" in said and "config.schedule.base_lr: was 0.001, is now 0.002" in said
        (aside,) = folder.iterdir()
        assert re.fullmatch(r"state\.\d{8}-\d{6}-\d{6}", aside.name) and str(aside) in said
        assert sorted(contents(aside).values()) == sorted(before.values())

    def test_what_was_set_aside_can_be_put_back(self, folder):
        before = contents(folder)
        self.retire(folder, {"config": {"seed": 7}})
        (aside,) = folder.iterdir()
        (folder / "history.jsonl").write_text("of the other computation")
        aside.rename(folder / "state")
        assert self.retire(folder, self.identity) == "" and contents(folder) == before

    def test_killed_while_it_is_set_aside(self, folder):
        before = contents(folder)
        (folder / "history.jsonl").rename(folder / "state/history.jsonl")
        assert self.retire(folder, self.identity) == "" and contents(folder) == before

    def test_a_complete_one_goes_on_until_it_was_used(self, folder):
        StateFolder(folder / "state", 3, print).mark_complete({})
        assert self.retire(folder, self.identity) == ""
        accept(folder / "state")
        assert "from the start" in self.retire(folder, self.identity)
        assert not (folder / "state").exists()

    def test_no_whole_state(self, folder):
        next(folder.glob("state/state-*")).write_bytes(b"")
        assert "no whole state" in self.retire(folder, self.identity)


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


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("45m", 2700), ("11h", 39600), ("2d", 172800), ("01:30:00", 5400), ("1-00:00:10", 86410)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


def test_bad_duration_is_refused():
    with pytest.raises(UserError, match="soon"):
        parse_duration("soon")


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when it is told to."""
    now = [1000.0]
    monkeypatch.setattr("cswin.train.stopping.time.monotonic", lambda: now[0])
    return now


def test_time_limit_leaves_time_for_a_step_and_three_slow_saves(clock):
    stopping = Stopping(600.0)
    stopping.took(20.0)
    while (reason := stopping()) is None:
        clock[0] += 7.0
    assert reason == "the time limit of 600 s is near"
    left = 1600.0 - clock[0]
    assert 60.0 <= left <= 60.0 + 2 * 7.0


def test_no_limit_no_signal_no_stop(clock):
    stopping = Stopping(None)
    clock[0] += 1e9
    assert stopping() is None and stopping.asked is None


@pytest.fixture
def stopping():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    stopping = Stopping(None)
    stopping.listen()
    yield stopping
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_signals(stopping, number):
    signal.raise_signal(number)
    assert stopping() == stopping.asked == f"asked to stop by {number.name}"


def test_second_interrupt_does_not_wait(stopping):
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_terminal_interrupt_after_a_cluster_signal_is_the_first_one(stopping):
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    assert "SIGINT" in stopping.asked
