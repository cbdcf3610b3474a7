"""A real Slurm of one node, which the tests start and stop themselves, and snakemake on it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from conftest import Workspace

HERE = Path(__file__).parent
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
SITE = Path("/etc/slurm/slurm.conf")  # the only place that Snakemake's job step reads
PREFIX = "cswin-slurm-"  # of the folders with the tests' own Slurm
TURN = Path(tempfile.gettempdir(), "cswin-slurm.lock")


def install() -> str | None:
    """Install Debian's packages if they are missing. Returns the reason why Slurm cannot run here, or None."""
    if os.geteuid() != 0:
        return "not root: slurmd cannot be started"
    if SITE.exists() and not SITE.resolve().parents[1].name.startswith(PREFIX):
        return f"this machine belongs to a cluster ({SITE})"
    if all(shutil.which(program) for program in ("slurmctld", "slurmd", "sbatch", "munged")):
        return None
    if not shutil.which("apt-get"):
        return "slurmctld, slurmd or munged is missing, and there is no apt-get"
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(
            ["timeout", "-k", "5", "180", "apt-get", *command], env=environment, capture_output=True, text=True
        )
    return None if done.returncode == 0 else f"apt-get cannot install {' '.join(PACKAGES)}: {done.stderr[-500:]}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Cluster:
    """Slurm in a folder; two NPUs, which are empty files."""

    def __init__(self, folder: Path):
        self.folder = folder

    def start(self) -> None:
        # Only one Slurm at a time on this machine, since all use the same configuration path: wait for the tests of other sessions,
        # and stop what a killed session has left.
        self.turn = TURN.open("w")
        wait_for("the other session's Slurm tests", self._have_turn, 3600)
        if SITE.is_symlink():
            self._down(SITE.readlink().parents[1])
        ports = {"SLURMCTLD_PORT": str(free_port()), "SLURMD_PORT": str(free_port())}
        done = subprocess.run(
            ["timeout", "-k", "5", "90", HERE / "slurm/up.sh", self.folder], env=os.environ | ports, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-4000:]

    def stop(self) -> None:
        self._down(self.folder)
        self.turn.close()

    def _have_turn(self) -> bool:
        try:
            fcntl.flock(self.turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    @staticmethod
    def _down(folder: Path) -> None:
        subprocess.run(["timeout", "-k", "5", "150", HERE / "slurm/down.sh", folder], check=True)

    def ask(self, *command: str | Path, check: bool = True, **options) -> str:
        """The output of a command: stdout and stderr together."""
        done = subprocess.run(
            ["timeout", "-k", "5", "120", *command], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
        )
        assert not check or done.returncode == 0, done.stdout
        return done.stdout.strip()

    def jobs(self) -> dict[str, str]:
        """All jobs with their states, including ended ones."""
        return dict(line.split() for line in self.ask("squeue", "--noheader", "--states=all", "--format=%A %T").splitlines())

    def facts(self, job: str) -> dict[str, str]:
        """What Slurm knows about a job."""
        return dict(re.findall(r"(\w+)=(\S*)", self.ask("scontrol", "-o", "show", "job", job)))

    def started(self, job: str) -> float:
        """When a job began, as seconds since 1970."""
        return datetime.fromisoformat(self.facts(job)["StartTime"]).timestamp()

    def delay_next_job(self, seconds: float) -> None:
        """Delay the work of the next job by a number of seconds."""
        (self.folder / "delay").write_text(f"{seconds:.0f}\n")


class Run:
    """A snakemake in the background, with a time limit; its output is in a file beside the workspace."""

    def __init__(self, workspace: Workspace, *arguments: str, profile: str = "slurm", seconds: int = 2400):
        self.output = workspace.path.with_suffix(f".{time.time_ns()}.txt")
        polls = ["--slurm-init-seconds-before-status-checks", "8"] if profile == "slurm" else []  # for jobs of seconds
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        with self.output.open("w") as output:
            self.timeout = subprocess.Popen(
                ["timeout", "-k", "5", str(seconds), sys.executable, "-m", "snakemake", "--workflow-profile", f"profiles/{profile}",
                 *polls, *arguments],
                cwd=workspace.path, env=os.environ | {"PATH": path, "GLOG_v": "3"}, stdout=output, stderr=output,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def wait(self) -> str:
        """Its output, once it has succeeded."""
        code = self.timeout.wait()
        assert code == 0, f"exit code {code}:\n{self.output.read_text()[-6000:]}"
        return self.output.read_text()

    def kill(self) -> None:
        """SIGKILL to snakemake itself, as when a login node runs out of memory."""
        snakemake = Path(f"/proc/{self.timeout.pid}/task/{self.timeout.pid}/children").read_text().split()[0]
        os.kill(int(snakemake), signal.SIGKILL)
        self.timeout.wait()

    def end(self) -> None:
        """Ctrl-C, for cleanup after a failed test."""
        if self.timeout.poll() is None:
            self.timeout.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.timeout.wait(30)


def wait_for(what: str, condition, seconds: float = 900):
    """The condition's first true value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {seconds:.0f} s in vain for {what}"
        time.sleep(0.3)
    return value
