"""The profiles on a real Slurm, without accounting, that this module starts: a whole run, limits, cancelled and killed jobs."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager
from datetime import datetime
from math import ceil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT, Workspace
from recipes import CARRY
from slurm_cluster import PREFIX, Cluster, Run, install, wait_for

from cswin.checkpoint import load_checkpoint
from cswin.distributed import slurm
from cswin.distributed.stopping import EXIT_INTERRUPTED
from cswin.errors import UserError
from cswin.run.history import read_history

slow = pytest.mark.slow
RESULTS = Path("results/digits")


@pytest.fixture(scope="module")
def cluster():
    if reason := install():
        message = f"NO SLURM, SO THE CLUSTER PROFILES ARE NOT TESTED: {reason}"
        if os.environ.get("CSWIN_REQUIRE_SLURM"):
            pytest.fail(message)
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
        Path(folder).chmod(0o755)  # munged wants its socket within everybody's reach; pytest's own folders are not
        cluster = Cluster(Path(folder))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@pytest.fixture(scope="module")
def finished(cluster, tmp_path_factory) -> Workspace:
    """The whole demo, shortened to two stages of 2 and 4 epochs, through profiles/slurm. Copy it before changing anything."""
    workspace = Workspace.create(tmp_path_factory.mktemp("cluster") / "workspace")

    def shorten(values):
        values["schedule"]["warmup_length"] = 1
        values["stages"] = {
            "stage1": {"start_epoch": 0, "epochs": 2},
            "stage2": {"start_epoch": 2, "epochs": 6, **CARRY, "schedule": {"cool_length": 4}},
        }

    workspace.edit("config/config.yaml", shorten)
    with running(workspace, "results/final_acc.csv") as run:
        run.wait()
    return workspace


@contextmanager
def running(workspace, *arguments, **options):
    """snakemake in the background; ended with its jobs if the test fails."""
    run = Run(workspace, *arguments, **options)
    try:
        yield run
    finally:
        run.end()


def train(stage: str, *arguments: str) -> list[str]:
    """Train this stage again, from nothing, and no other."""
    return ["--forcerun", f"train_{stage}", "--until", f"train_{stage}", *arguments]


class Attempts:
    """What a stage's attempts.jsonl says about its attempts from number `since` on."""

    OVER = ("end", "lost")

    def __init__(self, workspace: Workspace, stage: str, since: int = 0):
        self.path, self.since = workspace.path / RESULTS / stage / "attempts.jsonl", since

    def rows(self) -> list[dict]:
        rows = [json.loads(line) for line in self.path.read_text().splitlines()]
        starts = [place for place, row in enumerate(rows) if row["event"] == "start"]
        return rows[starts[self.since] :] if len(starts) > self.since else []

    def starts(self) -> list[dict]:
        return [row for row in self.rows() if row["event"] == "start"]

    def ends(self) -> list[str]:
        """Why each attempt that is over ended."""
        return [row.get("reason", "lost") for row in self.rows() if row["event"] in self.OVER]

    def at_work(self, number: int) -> dict:
        """The start of attempt `number` (from 1), once training has begun."""

        def begun():
            for start in self.starts()[number - 1 : number]:
                if any(row["event"] in ("begin", "resume") for row in self.rows() if row["attempt"] == start["attempt"]):
                    return start
            return None

        return wait_for(f"attempt {number} in {self.path}", begun)

    def one_after_the_other(self) -> bool:
        """Whether each attempt was over before the next one began."""
        order = [
            "over" if row["event"] in self.OVER else "start" for row in self.rows() if row["event"] in ("start", *self.OVER)
        ]
        return order == ["start", "over"] * len(self.starts())


def again(finished: Workspace, path: Path, stage: str) -> tuple[Workspace, Attempts]:
    """A copy of the finished run, and the attempts at a stage from now on."""
    workspace = finished.copy(path)
    return workspace, Attempts(workspace, stage, since=1)


def losses(workspace: Workspace, stage: str) -> list[tuple]:
    """Step and loss of each row of the history."""
    history = read_history(workspace.path / RESULTS / stage / "history.jsonl")
    return [(row["step"], row["loss"]) for row in history if row["kind"] == "step"]


@contextmanager
def frozen(pid: int):
    """A process that gets no time, as on a machine that is too slow."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def assert_same_training(workspace: Workspace, finished: Workspace, stage: str) -> None:
    """Weights and EMA equal to the bit, each step once, with the same losses."""
    mine, theirs = (load_checkpoint(w.path / RESULTS / stage / "checkpoint.safetensors") for w in (workspace, finished))
    for name, value in theirs.weights.items():
        assert np.array_equal(mine.weights[name], value) and np.array_equal(mine.ema[name], theirs.ema[name]), name
    rows = [
        [
            (row["step"], row["loss"])
            for row in read_history(w.path / RESULTS / stage / "history.jsonl")
            if row["kind"] == "step"
        ]
        for w in (workspace, finished)
    ]
    assert rows[0] == rows[1] and len(rows[0]) > 0


@slow
def test_whole_demo(cluster, finished):
    table = pd.read_csv(finished.path / "results/final_acc.csv")
    assert list(table.stage) == ["stage1", "stage2"] and (table.n == 360).all()
    assert "accounting" in cluster.ask("sacct", check=False).lower()  # a site without accounting
    jobs = [start["job"] for stage in table.stage for start in Attempts(finished, stage).starts()]
    assert len(set(jobs)) == 2 and all(cluster.jobs()[job] == "COMPLETED" for job in jobs)
    facts = cluster.facts(jobs[0])
    assert facts["Partition"] == "npu" and facts["TimeLimit"] == "1-00:00:00" and facts["NumCPUs"] == "2"
    assert facts["MinMemoryNode"] == "9200M" and "gres" not in facts.get("TresPerNode", "")  # the digits train on a CPU
    assert facts["JobName"].startswith("cswin_")


@slow
def test_nothing_is_left_to_do_with_any_profile_or_time_limit(finished, tmp_path):
    workspace = finished.copy(tmp_path / "copy")
    workspace.edit("profiles/slurm/config.yaml", lambda v: v["default-resources"].update(runtime=77, device_gres="ascend"))
    for profile in ("slurm", "generic", "default"):
        assert workspace.planned("--workflow-profile", f"profiles/{profile}") == {}


@slow
def test_time_limit_and_scancel_in_the_middle_of_a_stage(cluster, finished, tmp_path):
    """The trainer ends before its job does, the profile submits again, a cancelled job is submitted again too."""
    whole = Attempts(finished, "stage2")
    start, *_, end = whole.rows()
    needed = datetime.fromisoformat(end["time"]).timestamp() - cluster.started(start["job"])
    limit = ceil((needed + 60) / 2 / 60)  # minutes: some steps fit in, and then it is held up
    workspace, attempts = again(finished, tmp_path / "copy", "stage2")
    workspace.edit("profiles/slurm/config.yaml", lambda v: v["default-resources"].update(runtime=limit))
    cluster.delay_next_job(10)
    with running(workspace, *train("stage2")) as run:
        first = attempts.at_work(1)
        wait_for("some steps", lambda: len(losses(workspace, "stage2")) >= 10)
        with frozen(first["pid"]):
            time.sleep(max(0, cluster.started(first["job"]) + 60 * limit - 15 - time.time()))
        second = attempts.at_work(2)
        cluster.ask("scancel", second["job"])
        said = run.wait()
    starts, ends = attempts.starts(), attempts.ends()
    assert len({row["job"] for row in starts}) == len(starts) == 3
    seconds = int(re.search(r"the time limit of (\d+) s is near", ends[0])[1])
    assert 0 < seconds <= 60 * limit - 10  # what the job had spent before counts
    assert f"exit code {EXIT_INTERRUPTED}" in said
    assert 2 * 44 + 10 <= int(re.search(r"saved at step (\d+) of 264", ends[0])[1]) < 6 * 44
    states = [cluster.jobs()[row["job"]] for row in starts]
    assert states == ["FAILED", "CANCELLED", "COMPLETED"]  # no TIMEOUT: it was faster
    assert ends[-1] == "complete" and attempts.one_after_the_other()
    assert_same_training(workspace, finished, "stage2")


@slow
@pytest.mark.variant
def test_two_stages_on_two_devices_and_requeue(cluster, finished, tmp_path):
    """Two runs side by side, one by each cluster profile; both jobs are put back into the queue in the middle."""
    runs = {"stage1": "generic", "stage2": "slurm"}
    copies = {stage: again(finished, tmp_path / stage, stage) for stage in runs}
    with (
        running(
            copies["stage1"][0], *train("stage1", "--set-resources", "train_stage1:gres=npu:1"), profile="generic"
        ) as first,
        running(copies["stage2"][0], *train("stage2", "--set-resources", "train_stage2:gres=npu:1")) as second,
    ):
        at_work = [attempts.at_work(1) for _, attempts in copies.values()]
        assert sorted(row["visible_devices"] for row in at_work) == ["0", "1"]
        for row in at_work:
            assert cluster.facts(row["job"])["TresPerNode"] == "gres:npu:1"
            cluster.ask("scontrol", "requeue", row["job"])
        first.wait(), second.wait()
    for (stage, (workspace, attempts)), row in zip(copies.items(), at_work, strict=True):
        assert [start["job"] for start in attempts.starts()] == [row["job"]] * 2  # the same job, twice
        assert attempts.ends()[-1] == "complete"
        assert_same_training(workspace, finished, stage)


@slow
@pytest.mark.variant
def test_killed_snakemake_and_the_recovery_command(cluster, finished, tmp_path):
    """After SIGKILL the job goes on; it is found, nobody trains beside it, and the documented command goes on from its state."""
    workspace, attempts = again(finished, tmp_path / "copy", "stage2")
    with running(workspace, *train("stage2")) as run:
        left = attempts.at_work(1)
        run.kill()
    leftovers = workspace.path / "profiles/slurm/leftovers"
    assert cluster.ask(leftovers, cwd=workspace.path).split()[:3] == [left["job"], "RUNNING", "rule_train_stage2"]
    assert cluster.ask(leftovers, cwd=finished.path) == ""  # another folder's jobs are not its own
    beside = subprocess.run(
        ["timeout", "-k", "5", "120", sys.executable, "-m", "cswin", *shlex.split(left["command"])[1:]], cwd=workspace.path,
        capture_output=True, text=True,
    )  # fmt: skip
    assert beside.returncode == 2 and f"job {left['job']}" in beside.stderr
    assert len(attempts.starts()) == 1

    cluster.ask(leftovers, "--end", cwd=workspace.path)
    assert cluster.jobs()[left["job"]] == "CANCELLED"
    workspace.snakemake("--unlock", "--workflow-profile", "profiles/slurm")
    with running(workspace, "--until", "train_stage2") as run:
        run.wait()
    assert "SIGTERM" in attempts.ends()[0]
    assert attempts.ends()[1:] == ["complete"] and attempts.one_after_the_other()
    assert_same_training(workspace, finished, "stage2")


def test_status_script(cluster, tmp_path):
    """running in doubt, failed for what Slurm does not know."""
    script, batch = ROOT / "profiles/generic/status.sh", ("sbatch", "--parsable", "--output=/dev/null", "--wrap")
    ids = {
        "success": cluster.ask(*batch, "true"),
        "failed": cluster.ask(*batch, "exit 3"),
        "running": cluster.ask(*batch, "sleep 100"),
        "cancelled": cluster.ask(*batch, "sleep 100"),
    }
    cluster.ask("scancel", ids["cancelled"])
    wanted = {"COMPLETED", "FAILED", "RUNNING", "CANCELLED"}
    wait_for("the four jobs", lambda: {cluster.jobs()[job] for job in ids.values()} == wanted)
    assert [cluster.ask(script, job) for job in ids.values()] == ["success", "failed", "running", "failed"]
    assert cluster.ask(script, "999999") == "failed"
    cluster.ask("scancel", ids["running"])
    nobody = tmp_path / "slurm.conf"
    nobody.write_text((cluster.folder / "etc/slurm.conf").read_text().replace("SlurmctldPort=", "SlurmctldPort=1 #"))
    answer = cluster.ask(script, ids["success"], env=os.environ | {"SLURM_CONF": str(nobody)})
    assert answer == "running"  # the controller does not answer


def test_seconds_left_of_a_job(cluster, monkeypatch):
    job = cluster.ask("sbatch", "--parsable", "--output=/dev/null", "--time=10", "--wrap", "sleep 100")
    monkeypatch.setenv("SLURM_JOB_ID", job)
    wait_for("the job", lambda: cluster.jobs()[job] == "RUNNING")
    assert 400 < slurm.seconds_left() <= 600
    cluster.ask("scancel", job)
    monkeypatch.setenv("SLURM_JOB_ID", "999999")
    assert slurm.seconds_left() is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("4:59", 299), ("01:02:03", 3723), ("1-00:00:00", 86400), ("UNLIMITED", None), ("INVALID", None), ("", None)],
)
def test_slurm_writes_times_like_this(text, seconds):
    assert slurm.clock_seconds(text) == seconds


SINFO = """debug*|30:00|4|(null)
npu|1-00:00:00|64|npu:8(S:0-1)
npu|1-00:00:00|192+|npu:ascend910b:16,nic:2
long|infinite|8|(null)
"""


@pytest.fixture
def sinfo(tmp_path, monkeypatch):
    """A cluster of three partitions, without any Slurm: what `sinfo` answers; the plugin looks for squeue as well."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "answer").write_text(SINFO)
    for name, line in (("sinfo", f"cat {folder}/answer"), ("squeue", "exit 0")):
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder / "answer"


def test_limits_of_a_partition(sinfo):
    assert slurm.find_partition(None) == slurm.Partition("debug", 30, 4, {})
    assert slurm.find_partition("npu") == slurm.Partition("npu", 1440, 192, {"npu": 16, "nic": 2})
    assert slurm.find_partition("long") == slurm.Partition("long", None, 8, {})


def test_what_slurm_would_refuse_is_refused_before(sinfo, monkeypatch):
    with pytest.raises(UserError, match="there is no 'cpu' on this cluster; it has debug, npu, long"):
        slurm.find_partition("cpu")
    slurm.find_partition("npu").require_devices("npu", 16)
    with pytest.raises(UserError, match="training requests npu:17 .* partition npu have nic:2, npu:16"):
        slurm.find_partition("npu").require_devices("npu", 17)
    with pytest.raises(UserError, match="requests ascend:1 .* have no such devices"):
        slurm.find_partition("long").require_devices("ascend", 1)
    sinfo.write_text("a|infinite|1|(null)\n")
    with pytest.raises(UserError, match="this cluster has no default; it has a. Set it in the profile"):
        slurm.find_partition(None)


@pytest.fixture
def without_slurm(sinfo):
    (sinfo.parent / "sinfo").write_text("#!/bin/sh\nexit 1\n")


def test_where_slurm_does_not_answer_nothing_is_checked(without_slurm, monkeypatch):
    assert slurm.find_partition("npu") is None
    monkeypatch.setenv("PATH", "/nowhere")
    assert slurm.find_partition("npu") is None


@slow
def test_unedited_profile_stays_below_the_default_partition_s_limits(sinfo, workspace):
    workspace.edit("config/config.yaml", lambda v: v["runtime"].update(workers=6))
    dry_run = workspace.snakemake("-n", "-p", "--workflow-profile", "profiles/slurm").stdout
    assert "partition debug: jobs request at most 30 min and 4 cores, its limit" in dry_run
    train = dry_run.split("\nrule train_stage1:")[1].split("\nrule ")[0]
    assert "runtime=30" in train and "--max-runtime 1710" in train
    workspace.edit("profiles/slurm/config.yaml", lambda v: v["default-resources"].update(slurm_partition="cpu"))
    refused = workspace.snakemake("-n", "--workflow-profile", "profiles/slurm", check=False)
    assert refused.returncode != 0 and "there is no 'cpu' on this cluster; it has debug, npu, long" in refused.stdout


def test_outside_of_a_job_there_is_no_limit(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert slurm.seconds_left() is None


@slow
@pytest.mark.parametrize("profile", ["slurm", "generic"])
def test_devices_are_asked_for_as_configured(without_slurm, workspace, profile):
    """Four NPUs, without any Slurm: what would be submitted."""
    workspace.edit(
        "config/config.yaml", lambda v: v["runtime"].update(device_target="Ascend", devices=4, batch_size=8, workers=6)
    )
    workspace.edit(f"profiles/{profile}/config.yaml", lambda v: v["default-resources"].update(device_gres="ascend"))
    dry_run = workspace.snakemake("-n", "-p", "--workflow-profile", f"profiles/{profile}").stdout
    jobs = dict(re.findall(r"^(?:rule|checkpoint|localrule) (\w+):\n(.*?)(?=^\[)", dry_run, re.MULTILINE | re.DOTALL))
    assert " gres=ascend:4" in jobs["train_stage1"] and "mem_mb=46400" in jobs["train_stage1"]
    assert " gres=ascend:4" in jobs["evaluate"]
    assert " gres=ascend" not in jobs["manifest"] and " gres=ascend" not in jobs["extract"]
    assert "--max-runtime 86280" in dry_run


@slow
def test_several_nodes_have_a_launcher_each(without_slurm, workspace):
    """Two nodes, without any Slurm: what would be submitted."""
    workspace.edit(
        "config/config.yaml", lambda v: v["runtime"].update(device_target="Ascend", devices=16, nodes=2, batch_size=2)
    )
    dry_run = workspace.snakemake("-n", "-p", "--workflow-profile", "profiles/slurm").stdout
    train = dry_run.split("\nrule train_stage1:")[1].split("\nrule ")[0]
    for resource in ("nodes=2", "tasks=2", "mpi=srun", " gres=npu:8"):
        assert resource in train, resource
    command = next(line for line in train.splitlines() if "cswin train" in line)
    assert "srun --nodes=2 --ntasks=2 --ntasks-per-node=1 " in command


def test_profiles_agree_on_what_is_not_the_schedulers(workspace):
    values = [
        yaml.safe_load((workspace.path / f"profiles/{p}/config.yaml").read_text()) for p in ("slurm", "generic", "default")
    ]
    for key in ("rerun-incomplete", "rerun-triggers", "show-failed-logs"):
        assert values[0][key] == values[1][key] == values[2][key], key
    assert all(v["retries"] >= 8 for v in values[:2])  # 190 hours at 24 hours a job
