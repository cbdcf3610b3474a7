"""Watching: TensorBoard, status and provenance of a stage that was killed and went on, against its own files."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import mindspore  # noqa: F401 (before anything else that brings protobuf)
import numpy as np
import pandas as pd
import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cswin.cli import main
from cswin.errors import UserError
from cswin.report.status import find_runs, run_status
from cswin.train.attempts import Attempt, Signs, current, summaries
from cswin.train.events import EventFile
from cswin.train.history import History, read_history, read_tail


def scalars(folder: Path) -> dict[str, list[tuple[int, float, float]]]:
    """Tag -> (step, value, time) as TensorBoard itself reads them, every point."""
    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    reader.Reload()
    return {tag: [(e.step, e.value, e.wall_time) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


class Watched:
    """Stage 1 of the finished run, trained again in a run folder of its own: killed, looked at, and trained to its end."""

    def __init__(self, finished: Path, folder: Path):
        self.run, self.stage = folder / "results/digits", folder / "results/digits/stage1"
        shutil.copytree(finished / "results/digits/config", self.run / "config")
        runtime = self.run / "config/runtime.yaml"
        values = yaml.safe_load(runtime.read_text()) | {"save_minutes": 0.03, "log_every": 3}
        runtime.write_text(yaml.safe_dump(values))
        self.command = [
            sys.executable, "-m", "cswin", "train", "--config", self.run / "config/stage1.yaml", "--runtime", runtime,
            "--dataset", finished / "data/digits/dataset.json", "--output", self.stage,
        ]  # fmt: skip
        self.before = run_status(self.run)
        process = self.start()
        while self.logged() < 27 or not self.saved():
            assert process.poll() is None, (folder / "output.txt").read_text()
            time.sleep(0.05)
        self.running, self.running_pid = run_status(self.run), process.pid
        while self.logged() <= max(self.saved()) or self.logged() < 48:  # so that there are steps to lose
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        self.killed_at = time.time()
        self.lost_steps = [step for step, _, _ in scalars(self.stage).get("train/loss", [])]
        self.killed, self.saved_steps, self.logged_steps = run_status(self.run), self.saved(), self.logged()
        assert self.start().wait(timeout=300) == 0, (folder / "output.txt").read_text()

    def start(self) -> subprocess.Popen:
        with (self.run.parents[1] / "output.txt").open("a") as output:
            environment = os.environ | {"GLOG_v": "3"}
            return subprocess.Popen([*map(str, self.command)], stdout=output, stderr=output, env=environment)

    def logged(self) -> int:
        history = self.stage / "history.jsonl"
        return sum(row["kind"] == "step" for row in read_history(history)) if history.exists() else 0

    def saved(self) -> list[int]:
        return [int(file.stem[-9:]) for file in (self.stage / "state").glob("state-*") if int(file.stem[-9:])]


@pytest.fixture(scope="module")
def watched(finished_run, tmp_path_factory) -> Watched:
    return Watched(finished_run.path, tmp_path_factory.mktemp("watched"))


@pytest.mark.slow
def test_tensorboard_shows_each_point_of_the_history_once(watched):
    assert watched.logged_steps > max(watched.saved_steps)  # steps were lost, and trained again
    found = scalars(watched.stage)
    rows = pd.DataFrame(map(json.loads, (watched.stage / "history.jsonl").open()))
    steps = rows[rows.kind == "step"].set_index("step")
    logged = steps[steps.images_per_s.notna()]
    assert list(steps.index) == list(range(1, 89))  # two epochs of 44
    # The same intervals, cut by pandas: each step belongs to the next one at which the device was read.
    interval = pd.Series(np.searchsorted(logged.index, steps.index), index=steps.index)
    expected = {
        "train/loss": steps.groupby(interval).loss.mean().to_numpy(),
        "train/gradient_norm": steps.groupby(interval).grad_norm.mean().to_numpy(),
        "train/skipped_steps": steps.groupby(interval).skipped.sum().to_numpy(),
        "train/learning_rate": logged.lr,
        "train/loss_scale": logged.loss_scale,
        "speed/images_per_s": logged.images_per_s,
        "speed/data_wait": logged.wait,
    }
    for tag, values in expected.items():
        assert [step for step, _, _ in found[tag]] == list(logged.index), tag
        np.testing.assert_allclose([value for _, value, _ in found[tag]], values, rtol=1e-6)
        np.testing.assert_allclose([at for _, _, at in found[tag]], logged.time, rtol=0, atol=1e-3)
    epochs = rows[rows.kind == "epoch"]
    for which in ("raw", "ema"):
        for name in ("top1", "top5", "loss"):
            points = found[f"val/{name}_{which}"]
            assert [step for step, _, _ in points] == [44, 88]
            np.testing.assert_allclose([value for _, value, _ in points], [row[name] for row in epochs[which]], rtol=1e-6)
    assert set(found) == {*expected, *(f"val/{n}_{w}" for n in ("top1", "top5", "loss") for w in ("raw", "ema"))}
    assert len(list(watched.stage.glob("*tfevents*"))) == 1


@pytest.mark.slow
def test_status_of_a_stage_through_its_life(watched):
    assert [(s.name, s.state, s.detail) for s in watched.before.stages] == [
        ("stage1", "waiting", ""), ("stage2", "waiting", "for stage1"), ("stage3", "waiting", "for stage2"),
    ]  # fmt: skip
    running = watched.running.stages[0]
    assert (running.state, running.host, running.pid) == ("running", socket.gethostname(), watched.running_pid)
    assert 27 <= running.step <= watched.logged_steps and (running.first_step, running.last_step) == (0, 88)
    assert running.images_per_s > 0 and running.seconds_left > 0 and 0 <= running.heartbeat_age < 60
    assert watched.running.seconds_left > running.seconds_left  # the other stages come after it
    killed = watched.killed.stages[0]
    assert (killed.state, killed.resume_step, killed.step) == ("interrupted", max(watched.saved_steps), watched.logged_steps)
    assert "killed" in killed.detail and killed.seconds_left is None
    done = run_status(watched.run)
    record = json.loads((watched.stage / "record.json").read_text())
    stage = done.stages[0]
    assert (stage.state, stage.epoch, stage.attempts) == ("done", record["best_epoch"], 2)
    assert (stage.top1_raw, stage.top1_ema) == (record["figures"]["raw"]["top1"], record["figures"]["ema"]["top1"])
    assert stage.detail == "not evaluated yet" and done.stages[1].detail == ""  # nothing to wait for any more


@pytest.mark.slow
def test_provenance_of_both_attempts(watched):
    rows = [json.loads(line) for line in (watched.stage / "attempts.jsonl").open()]
    assert [row["event"] for row in rows] == ["start", "begin", "lost", "start", "resume", "end"]
    first, _, lost, second, resume, end = rows
    assert lost["attempt"] == first["attempt"] != second["attempt"] == end["attempt"]
    begun, life = (datetime.fromisoformat(row["time"]).timestamp() for row in (first, lost))
    assert begun <= life <= watched.killed_at and lost["sign"] == "heartbeat"
    assert resume["step"] == max(watched.saved_steps) and (end["reason"], end["step"]) == ("complete", 88)
    for name, path in (("config", watched.command[5]), ("runtime", watched.command[7]), ("dataset", watched.command[9])):
        assert second["inputs"][name] == {"path": str(path), "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()}
    assert second["identity"]["config"]["schedule"]["warmup_length"] == 1 and second["runtime"]["log_every"] == 3
    assert second["identity"]["manifest"] == json.loads(Path(watched.command[9]).read_text())["manifest_hash"]
    assert (second["host"], second["devices"], second["device_target"]) == (socket.gethostname(), 1, "CPU")
    assert {"python", "mindspore", "snakemake"} <= set(second["versions"]) and "train --config" in second["command"]


class Invented:
    """A run folder with whatever a trainer on another host would have left there."""

    def __init__(self, folder: Path, steps: int = 40):
        self.run, self.stage, self.now = folder / "results/far", folder / "results/far/one", time.time()
        (self.run / "config").mkdir(parents=True)
        (self.stage / "state").mkdir(parents=True)
        stages = {"one": None, "two": "one"}
        for i, (name, previous) in enumerate(stages.items()):
            config = {"run": "far", "stage": name, "previous": previous, "start_epoch": 10 * i, "epochs": 10 * i + 10}
            config |= {"model": {"arch": "cswin_64_24322_small_224_report"}, "optimizer": {"global_batch": 100}}
            (self.run / f"config/{name}.yaml").write_text(yaml.safe_dump(config))
        (self.run / "config/runtime.yaml").write_text(yaml.safe_dump({"lease_timeout": 120.0}))
        self.write("attempts.jsonl", [
            {"attempt": "a", "event": "start", "time": self.clock(-900), "host": "node7", "pid": 5, "job": "4711"},
            {"attempt": "a", "event": "begin", "time": self.clock(-880), "step": 0, "first_step": 0, "last_step": 100},
        ])  # fmt: skip
        rows = [{"kind": "start", "step": 0}]
        for step in range(1, steps + 1):  # a step takes 10 s, of which 4 are the device's; the last one was 20 s ago
            rows.append({"kind": "step", "step": step, "epoch": (step - 1) // 10, "loss": 1.5, "lr": 0.1})
            rows[-1] |= {"images_per_s": 25.0, "seconds": 4.0, "time": self.now - 20 - 10 * (steps - step)}
            if step % 10 == 0:
                figures = {"top1": float(step)}
                rows.append({"kind": "epoch", "epoch": step // 10 - 1, "step": step, "raw": figures, "ema": figures})
        self.write("history.jsonl", rows)
        for step in (20, 30):
            (self.stage / f"state/state-{step:09d}.safetensors").touch()

    def clock(self, seconds: float) -> str:
        return datetime.fromtimestamp(int(self.now + seconds)).astimezone().isoformat()

    def write(self, name: str, rows: list[dict], mode: str = "w") -> None:
        with (self.stage / name).open(mode) as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def lease(self, heartbeat: float, written: float) -> None:
        """Heartbeat by the trainer's clock and date of the file by the file system's, seconds from now."""
        holder = {"host": "node7", "pid": 5, "started": "1", "job": "4711", "heartbeat": self.now + heartbeat}
        (self.stage / "lease-000001.json").write_text(json.dumps(holder))
        os.utime(self.stage / "lease-000001.json", (self.now + written, self.now + written))

    def status(self):
        return run_status(self.run, self.now)


@pytest.mark.parametrize(
    ("heartbeat", "written", "state", "age", "ahead"),
    [
        (-5, -5, "running", 5, None),
        (-119, -119, "running", 119, None),
        (-121, -121, "stale", 121, None),
        (-605, -5, "running", 5, -600),  # the trainer's clock is behind
        (595, -5, "running", 5, 600),  # ahead
        (-5, -605, "running", 5, 600),  # the file system's clock is behind
        (-5, 595, "running", 5, -600),  # ahead
        (-1000, 400, "stale", 1000, -1400),  # a sign of life in the future is none
        (-700, -400, "stale", 400, -300),
    ],
)
def test_heartbeat_of_another_host_with_clocks_that_differ(tmp_path, heartbeat, written, state, age, ahead):
    run = Invented(tmp_path)
    run.lease(heartbeat, written)
    stage = run.status().stages[0]
    assert (stage.state, stage.host, stage.job) == (state, "node7", "4711")
    assert stage.heartbeat_age == pytest.approx(age, abs=0.01)
    assert stage.clock_ahead == (None if ahead is None else pytest.approx(ahead, abs=0.01))
    assert stage.resume_step == (30 if state == "stale" else None)


def test_speed_and_time_left(tmp_path):
    run = Invented(tmp_path)
    run.lease(-5, -5)
    status = run.status()
    stage = status.stages[0]
    assert (stage.step, stage.epoch, stage.images_per_s) == (40, 3, pytest.approx(25.0))
    assert stage.seconds_left == pytest.approx(60 * 10 - 20, abs=0.1)  # 60 steps of 10 s, the last one 20 s ago
    per_step = stage.seconds_left / 60
    assert status.seconds_left == pytest.approx(stage.seconds_left + 100 * per_step)
    assert (stage.validated_epoch, stage.top1_raw) == (3, 40.0)


def test_time_left_after_a_pause_does_not_count_the_pause(tmp_path):
    run = Invented(tmp_path)
    begun = {"event": "resume", "time": run.clock(-8), "step": 40, "first_step": 0, "last_step": 100}
    start = {"event": "start", "time": run.clock(-10), "host": "node7", "pid": 6, "job": None}
    run.write("attempts.jsonl", [{"attempt": "b", **row} for row in (start, begun)], "a")
    run.lease(-5, -5)
    assert run.status().stages[0].seconds_left == pytest.approx(60 * 100 / 25)  # the attempt has logged nothing of its own yet


def test_without_a_lease_it_is_interrupted_and_says_why(tmp_path):
    run = Invented(tmp_path)
    assert (run.status().stages[0].state, run.status().stages[0].resume_step) == ("interrupted", 30)
    run.write(
        "attempts.jsonl",
        [{"attempt": "a", "event": "end", "time": run.clock(-600), "reason": "asked to stop", "step": 30}],
        "a",
    )
    stage = run.status().stages[0]
    assert (stage.state, stage.detail) == ("interrupted", "asked to stop")
    assert stage.hours == pytest.approx(300 / 3600)


def test_only_the_end_of_a_long_history_is_read(tmp_path):
    run = Invented(tmp_path, steps=20)
    history = run.stage / "history.jsonl"
    end = history.read_bytes().split(b"\n", 1)[1]
    filler = json.dumps({"kind": "step", "step": 0, "epoch": 0, "loss": 0.0, "lr": 0.0}).encode() + b"\n"
    with history.open("wb") as file:
        file.write(b"this is no JSON\n" * 1000)  # whoever reads from the beginning fails
        file.write(filler * 40_000)  # 2.4 MB
        file.write(end)
        file.write(b'{"kind": "step", "step": 21, "ep')  # being written
    stage = run.status().stages[0]
    assert (stage.step, stage.validated_epoch) == (20, 1)
    with history.open("wb") as file:  # the last validation lies further back than one reads at first
        file.write(b"this is no JSON\n" * 1000)
        file.write(filler * 40_000)
        file.write(end)
        file.write(filler.replace(b'"step": 0', b'"step": 9') * 20_000)
    stage = run.status().stages[0]
    assert (stage.step, stage.validated_epoch) == (9, 1)


@pytest.mark.parametrize("size", [1, 7, 8, 9, 16, 17, 1000])
def test_tail_holds_the_whole_rows_of_the_last_bytes(tmp_path, size):
    file = tmp_path / "rows"
    lines = [json.dumps({"a": i}) + "\n" for i in range(10)]  # 9 bytes each
    file.write_text("".join(lines) + '{"a"')
    inside = [i for i in range(10) if 9 * i >= 94 - size]
    assert read_tail(file, size) == [{"a": i} for i in inside]


def test_text_fits_80_columns(tmp_path, capsys):
    run = Invented(tmp_path)
    results = str(run.run.parent)
    run.lease(-1000, -700)
    seen = []
    for change in ("stale", "running", "interrupted", "failed"):
        if change == "running":
            run.lease(-5, -5)
        elif change == "interrupted":
            (run.stage / "lease-000001.json").unlink()
        elif change == "failed":
            reason = "UserError: " + "the loss or its gradient was not finite for 20 steps in a row " * 4
            run.write(
                "attempts.jsonl", [{"attempt": "a", "event": "end", "time": run.clock(0), "reason": reason, "step": 3}], "a"
            )
        assert main(["status", "--results", results]) == 0
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) <= 80, text
        seen.append(text)
    assert "goes on from step 30" in seen[0] and "its clock is 5m00s behind" in seen[0] and "job 4711" in seen[0]
    assert "step 40 of 100" in seen[1] and "25 images/s" in seen[1] and "heartbeat" in seen[1]
    assert "two  waiting" in seen[2] and "for one" in seen[2]


def test_command_says_what_the_function_says_and_writes_nothing(tmp_path, capsys):
    run = Invented(tmp_path)
    run.lease(-5, -5)
    tree = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert main(["status", "far", "--results", str(run.run.parent), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["runs"]
    assert [(r["run"], [s["state"] for s in r["stages"]]) for r in told] == [("far", ["running", "waiting"])]
    assert told[0]["stages"][0]["step"] == 40 and told[0]["arch"] == "cswin_64_24322_small_224_report"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == tree


def test_runs_are_found_by_name_and_by_path(tmp_path):
    run = Invented(tmp_path)
    results = run.run.parent
    assert find_runs(results, []) == find_runs(results, ["far"]) == find_runs(tmp_path, [str(run.run)]) == [run.run]
    with pytest.raises(UserError, match="near: no such run.*there: far"):
        find_runs(results, ["near"])
    with pytest.raises(UserError, match="no run is there"):
        find_runs(tmp_path / "nowhere", [])


@pytest.mark.slow
def test_watching_ends_when_all_is_done(finished_run, capsys):
    assert main(["status", "--results", str(finished_run.path / "results"), "--watch", "0.1", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and {s["state"] for s in json.loads(lines[0])["runs"][0]["stages"]} == {"done"}


def test_lost_attempts_get_the_end_that_the_signs_give(tmp_path):
    run = Invented(tmp_path)
    attempts = run.stage / "attempts.jsonl"

    def lost(signs: Signs) -> dict:
        copy = run.stage / "copy.jsonl"
        shutil.copy(attempts, copy)
        Attempt(copy, {}, signs)
        return next(row for row in read_history(copy) if row["event"] == "lost")

    def seconds(row: dict) -> float:
        return datetime.fromisoformat(row["time"]).timestamp() - run.now

    run.lease(-300, -300)
    os.utime(run.stage / "history.jsonl", (run.now - 400, run.now - 400))
    row = lost(Signs.read(run.stage))
    assert (row["attempt"], row["sign"]) == ("a", "heartbeat") and seconds(row) == pytest.approx(-300, abs=1.1)
    (run.stage / "lease-000001.json").write_text(json.dumps({"host": "other", "pid": 5, "heartbeat": run.now}))
    row = lost(Signs.read(run.stage))  # somebody else's lease says nothing of this attempt
    assert row["sign"] == "history" and seconds(row) == pytest.approx(-400, abs=1.1)
    row = lost(Signs(None, None))
    assert row["sign"] == "start" and seconds(row) == pytest.approx(-900, abs=1.1)
    row = lost(Signs(None, run.now + 1000))  # a clock that is wrong cannot put the end after the next start
    assert seconds(row) <= time.time() - run.now


def test_a_row_that_was_cut_off_is_not_continued(tmp_path):
    run = Invented(tmp_path)
    attempts = run.stage / "attempts.jsonl"
    with attempts.open("a") as file:
        file.write('{"attempt": "a", "event": "e')
    Attempt(attempts, {}, Signs(None, None)).end("complete", 5)
    assert [row["event"] for row in map(json.loads, attempts.open())] == ["start", "begin", "lost", "start", "end"]


def test_attempts_of_an_earlier_training_do_not_count():
    def attempt(name, identity, *events):
        rows = [{"attempt": name, "event": "start", "time": "2026-01-01T00:00:00+00:00", "identity": identity}]
        return rows + [{"attempt": name, "time": "2026-01-01T01:00:00+00:00", **event} for event in events]

    complete = {"event": "end", "reason": "complete", "step": 9}
    rows = [
        *attempt("a", 1, {"event": "begin", "step": 0}, complete),
        *attempt("b", 1, {"event": "begin", "step": 0}, {"event": "lost", "sign": "history"}),
        *attempt("c", 1, {"event": "resume", "step": 4}, complete),
    ]
    assert [one.start["attempt"] for one in current(summaries(rows))] == ["b", "c"]
    assert sum(one.hours for one in current(summaries(rows))) == pytest.approx(2)


def test_event_file_that_cannot_be_written_ends_nothing(tmp_path):
    (tmp_path / "file").touch()
    said = []
    events = EventFile(tmp_path / "file", 0, said.append)
    history = History(tmp_path / "history.jsonl", events=events)
    history.append([{"kind": "start", "step": 0}])
    history.close()
    assert len(said) == 1 and "cannot be written" in said[0] and len(read_history(tmp_path / "history.jsonl")) == 1


def test_values_that_are_not_finite_are_left_out(tmp_path):
    def step(number, loss, **more):
        row = {"kind": "step", "step": number, "loss": loss, "grad_norm": None, "lr": 0.5, "loss_scale": 8.0}
        return row | {"skipped": float(loss is None), **more}

    events = EventFile(tmp_path, 0, pytest.fail)
    read = {"images_per_s": 1.0, "wait": 0.0, "seconds": 1.0, "time": 5.0}
    events.add([step(1, 2.0), step(2, None), step(3, 4.0, **read), step(4, None, **read)])
    events.close()
    found = scalars(tmp_path)
    assert found["train/loss"] == [(3, 3.0, 5.0)] and "train/gradient_norm" not in found
    assert [value for _, value, _ in found["train/skipped_steps"]] == [1.0, 1.0]
