"""Runs a command in its own process group: a stop reaches all its processes, and none remains."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

POLL_SECONDS = 0.5


class ProcessGroup:
    """Runs commands one after the other.

    Args:
        environment: environment of the commands.
        keep_open: file descriptors that the commands keep open.

    Attributes:
        stopped: the reason why no further command may run; None if there is none.
    """

    def __init__(self, environment: Mapping[str, str], keep_open: tuple[int, ...] = ()):
        self.environment, self.keep_open = environment, keep_open
        self.stopped: str | None = None
        self._group: int | None = None

    def listen(self) -> None:
        """Handle SIGTERM and SIGINT: all running processes get SIGTERM."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: self.stop(signal.Signals(number).name))

    def run(self, command: Sequence[str], meanwhile: Callable[[], None]) -> int:
        """Run a command until its last process has ended; `meanwhile` is called repeatedly. Returns the exit code."""
        if self.stopped:
            return 1
        with subprocess.Popen(command, env=self.environment, start_new_session=True, pass_fds=self.keep_open) as process:
            self._group = process.pid
            try:
                while process.poll() is None:
                    meanwhile()
                    time.sleep(POLL_SECONDS)
            except BaseException:
                self.stop("an error")
                raise
            finally:
                while _alive(self._group):  # a trainer that was asked to stop still saves after its parent has ended
                    time.sleep(POLL_SECONDS)
                self._group = None
        return process.returncode

    def stop(self, why: str) -> None:
        """Ask all running processes to end."""
        self.stopped = self.stopped or why
        if self._group is not None:
            try:
                os.killpg(self._group, signal.SIGTERM)
            except ProcessLookupError:
                return


def _alive(group: int) -> bool:
    """Whether a process group has a running process. Zombies do not count: a container's first process may never fetch them."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of_group = file.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has just ended
            continue
        if int(of_group) == group and state not in "ZX":
            return True
    return False
