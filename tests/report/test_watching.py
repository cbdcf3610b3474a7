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

from cswin.report.status import run_status
from cswin.run.events import EventFile
from cswin.run.history import History, read_history


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
    assert [file.stat().st_size > 0 for file in sorted(watched.stage.glob("*tfevents*"))] == [False, True]


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


def test_a_reader_that_is_open_forgets_the_steps_that_were_lost(tmp_path):
    def write(steps: range, loss: float) -> None:
        read = {"images_per_s": 1.0, "wait": 0.0, "seconds": 1.0, "time": 5.0, "loss_scale": 8.0, "skipped": 0.0}
        events = EventFile(tmp_path, 0, pytest.fail)
        events.add([{"kind": "step", "step": s, "loss": loss, "grad_norm": 1.0, "lr": 0.5, **read} for s in steps])
        events.close()
        time.sleep(1.05)  # the writer's file names count seconds

    write(range(1, 11), 1.0)
    reader = EventAccumulator(str(tmp_path))
    for loss, last in ((2.0, 8), (3.0, 5)):
        reader.Reload()
        write(range(1, last + 1), loss)
        reader.Reload()
        assert [(e.step, e.value) for e in reader.Scalars("train/loss")] == [(s, loss) for s in range(1, last + 1)]
    assert len(list(tmp_path.iterdir())) == 2


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
