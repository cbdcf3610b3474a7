"""Snakemake in a process group of its own, so that a stop reaches the trainer and nothing is left behind."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cswin.errors import UserError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
POLL_SECONDS = 0.5


class Workflow:
    """Runs the workflow in a work folder.

    Args:
        root: the repository, with Snakefile, rules and profiles.
        work: the folder in which it runs.
        config: the configuration file.
        keep_open: file descriptors that live as long as Snakemake does.
    """

    def __init__(self, root: Path, work: Path, config: Path, keep_open: tuple[int, ...] = ()):
        self.root, self.work, self.config, self.keep_open = root, work, config, keep_open
        self.stopped: str | None = None
        self._group: int | None = None
        binaries = Path(sys.executable).parent
        path = f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}"
        if importlib.util.find_spec("snakemake") is None or shutil.which("cswin", path=path) is None:
            raise UserError(
                f"the workflow is not installed for {sys.executable}: pip install -c requirements.txt -e '.[workflow]' in {root}"
            )
        if not (root / "Snakefile").is_file():
            raise UserError(f"{root}: holds no Snakefile; start from a copy of the repository, installed with pip install -e")
        self.environment = {**os.environ, "PATH": path, "PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}

    def listen(self) -> None:
        """Take SIGTERM and SIGINT over: they go to everything that runs, the trainer saves its state and ends."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._stop)

    def unlock(self) -> None:
        """Remove what a killed Snakemake left; the caller has made sure that none is at work here."""
        if any((self.work / ".snakemake" / "locks").glob("*")):
            subprocess.run([*self._command(), "--unlock"], check=True, env=self.environment)

    def run(self, target: str, meanwhile: Callable[[], None]) -> int:
        """Make a target; `meanwhile` is called again and again until it ends. Returns Snakemake's exit code."""
        if self.stopped:
            return 1
        with subprocess.Popen(
            [*self._command(), target], env=self.environment, start_new_session=True, pass_fds=self.keep_open
        ) as process:
            self._group = process.pid
            try:
                while process.poll() is None:
                    meanwhile()
                    time.sleep(POLL_SECONDS)
                self._wait_for_group()
            except BaseException:
                self.stop("an error")
                self._wait_for_group()
                raise
            finally:
                self._group = None
        return process.returncode

    def stop(self, why: str) -> None:
        """Ask everything that runs to end."""
        self.stopped = self.stopped or why
        if self._group is not None:
            try:
                os.killpg(self._group, signal.SIGTERM)
            except ProcessLookupError:
                return

    def _stop(self, number, frame) -> None:
        self.stop(signal.Signals(number).name)

    def _wait_for_group(self) -> None:
        """Until the last process has ended: a trainer that was asked to stop is still saving when Snakemake has gone."""
        while _alive(self._group):
            time.sleep(POLL_SECONDS)

    def _command(self) -> list[str]:
        return [
            sys.executable, "-m", "snakemake", "--snakefile", str(self.root / "Snakefile"), "--directory", str(self.work),
            "--workflow-profile", str(self.root / "profiles" / "default"), "--configfile", str(self.config), "--cores", "all",
            "--keep-going",  # nobody looks on: a picture that fails must not end weeks of training
        ]  # fmt: skip


def _alive(group: int) -> bool:
    """Whether a process group has a process that runs; what ended and was not fetched by its parent (a container's first
    process may never do so) does not count."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of_group = file.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # ended just now
            continue
        if int(of_group) == group and state not in "ZX":
            return True
    return False
