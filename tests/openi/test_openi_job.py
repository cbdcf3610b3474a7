"""A job on the platform for real: killed, stopped, continued on empty machines with the same train_url; nothing is lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from cswin.checkpoint import load_checkpoint
from cswin.data.sources.digits import write_digits
from cswin.distributed.stopping import EXIT_INTERRUPTED
from cswin.run.history import read_history

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
STAGES = ("stage1", "stage2", "stage3")


class Platform:
    """Buckets with a dataset, and machines that start with nothing but a copy of the repository."""

    def __init__(self, path: Path, configuration: dict):
        self.path, self.buckets, self.machines = path, path / "buckets", 0
        (self.buckets / "bucket" / "data").mkdir(parents=True)
        self.archive = self.buckets / "bucket" / "data" / "digits.tar.gz"
        self.config = path / "digits.yaml"
        self.config.write_text(yaml.safe_dump(configuration))

    def start(self, *parameters: str, data="obs://bucket/data/", train="obs://bucket/out") -> subprocess.Popen:
        """The start file as the platform starts it: by its path, data_url and train_url in the environment."""
        self.machines += 1
        self.work = self.path / f"machine{self.machines}"
        environment = os.environ | {
            "PYTHONPATH": str(ROOT / "tests" / "support" / "stand_in"), "MOXING_BUCKETS": str(self.buckets), "GLOG_v": "3",
            "data_url": data, "train_url": train,
        }  # fmt: skip
        return subprocess.Popen(
            [sys.executable, ROOT / "cswin" / "openi" / "__main__.py", "--run_openi=True", "--device_num=1", f"--config={self.config}",
             f"--work_dir={self.work}", "--copy_minutes=0.02", *parameters],
            cwd=self.path, env=environment, stdout=self.log.open("w"), stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    @property
    def log(self) -> Path:
        return self.path / f"machine{self.machines}.txt"

    def published(self, name: str) -> Path:
        """A file that people find at train_url."""
        return self.buckets / "bucket" / "out" / "results" / "digits" / name

    def wait_for_state(self, job: subprocess.Popen, stage: str, beyond: int) -> None:
        """Until train_url holds a state of a stage that has gone beyond a step."""
        until = time.monotonic() + 600
        while not any(step > beyond for step in self._states(stage)):
            assert job.poll() is None and time.monotonic() < until, self.log.read_text()[-6000:]
            time.sleep(0.05)

    def _states(self, stage: str) -> list[int]:
        """Steps of the states of a stage at train_url."""
        return [int(file.stem.split("-")[1]) for file in self.published(f"{stage}/state").glob("state-*.safetensors")]


@pytest.fixture(scope="module")
def platform(finished_run, tmp_path_factory):
    """Jobs with the configuration of `finished_run`, whose images come from an archive in the object storage."""
    values = yaml.safe_load((finished_run.path / "config" / "config.yaml").read_text())
    values["runtime"] |= {"save_minutes": 0.01, "log_every": 3}
    platform = Platform(tmp_path_factory.mktemp("platform"), values)
    write_digits(platform.archive)
    yield platform
    for number in range(1, platform.machines + 1):
        kill_machine(platform.path / f"machine{number}")


def kill_machine(work: Path) -> None:
    """End every process that works in a folder, at once: what a machine's failure looks like from outside."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if work.as_posix() in (process / "cmdline").read_text() or (process / "cwd").readlink() == work:
                os.kill(int(process.name), signal.SIGKILL)
        except (OSError, ValueError):
            continue


@pytest.fixture(scope="module")
def ended(platform):
    """Killed in stage 2, stopped in stage 3, continued to the end: three machines."""
    job = platform.start()
    platform.wait_for_state(job, "stage2", 2 * 44)
    kill_machine(platform.work)
    assert job.wait(30) == -signal.SIGKILL

    job = platform.start()
    platform.wait_for_state(job, "stage3", 3 * 44)
    job.send_signal(signal.SIGTERM)
    assert job.wait(400) == EXIT_INTERRUPTED, platform.log.read_text()[-6000:]

    job = platform.start()
    assert job.wait(900) == 0, platform.log.read_text()[-6000:]
    return platform


def test_weights_and_history_are_those_of_an_uninterrupted_run(ended, finished_run):
    for stage in STAGES:
        whole = finished_run.path / "results" / "digits" / stage
        mine, theirs = (
            load_checkpoint(ended.published(f"{stage}/checkpoint.safetensors")),
            load_checkpoint(whole / "checkpoint.safetensors"),
        )
        for name, value in theirs.weights.items():
            assert np.array_equal(mine.weights[name], value) and np.array_equal(mine.ema[name], theirs.ema[name])
        rows = [[(r["kind"], r["step"], r.get("loss"), r.get("ema")) for r in read_history(p)]
                for p in (ended.published(f"{stage}/history.jsonl"), whole / "history.jsonl")]  # fmt: skip
        assert rows[0] == rows[1]


def test_finished_stages_were_not_trained_again(ended):
    """Although each machine made the dataset and the stages' files anew."""
    attempts = {stage: read_history(ended.published(f"{stage}/attempts.jsonl")) for stage in STAGES}
    begun = {stage: [row for row in rows if row["event"] in ("begin", "resume")] for stage, rows in attempts.items()}
    trained = {stage: [row for row in rows if row["step"] < row["last_step"]] for stage, rows in begun.items()}
    assert [len(begun[stage]) for stage in STAGES] == [3, 3, 2]
    assert [len(trained[stage]) for stage in STAGES] == [1, 2, 2]
    assert "SIGTERM" in next(row["reason"] for row in attempts["stage3"] if row["event"] == "end")
    assert [trained[stage][1]["event"] for stage in STAGES[1:]] == ["resume", "resume"]
    assert trained["stage2"][1]["step"] > 2 * 44 and trained["stage3"][1]["step"] > 3 * 44


def test_results_lie_at_train_url_under_their_own_names(ended):
    out = ended.buckets / "bucket" / "out"
    table = pd.read_csv(out / "results" / "final_acc.csv")
    assert list(table.stage) == list(STAGES) and list(table.attempts) == [1, 2, 2]
    assert ended.published("curves.png").read_bytes().startswith(b"\x89PNG")
    assert not list(out.glob("**/lease*")) and not (out / "owner.json").exists()
    assert [len(list(ended.published(f"{stage}/state").glob("state-*"))) for stage in STAGES] == [2, 2, 2]


def test_another_job_with_all_done_trains_nothing(ended):
    """Through a plain folder this time: the same bucket, mounted."""
    bucket = ended.buckets / "bucket"
    files = [ended.published(f"{stage}/{name}") for stage in STAGES for name in ("checkpoint.safetensors", "history.jsonl")]
    before = [file.read_bytes() for file in files]
    assert ended.start(data=str(bucket / "data"), train=str(bucket / "out")).wait(900) == 0, ended.log.read_text()[-6000:]
    assert [file.read_bytes() for file in files] == before
    assert read_history(ended.published("stage3/attempts.jsonl"))[-2]["step"] == 4 * 44
    assert list(pd.read_csv(bucket / "out" / "results" / "final_acc.csv").attempts) == [1, 2, 2]
