"""A command in a process group of its own: a stop reaches all of its processes, and none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

POLL_SECONDS = 0.5


class ProcessGroup:
    """Runs one command after the other.

    Args:
        environment: of the commands.
        keep_open: file descriptors that live as long as they do.

    Attributes:
        stopped: why no command is to run any more; None as long as nobody has asked.
    """

    def __init__(self, environment: Mapping[str, str], keep_open: tuple[int, ...] = ()):
        self.environment, self.keep_open = environment, keep_open
        self.stopped: str | None = None
        self._group: int | None = None

    def listen(self) -> None:
        """Take SIGTERM and SIGINT over: they go, as SIGTERM, to everything that runs."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: self.stop(signal.Signals(number).name))

    def run(self, command: Sequence[str], meanwhile: Callable[[], None]) -> int:
        """Run a command until its last process has ended; `meanwhile` is called again and again. Returns its exit code."""
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
                while _alive(self._group):  # a trainer that was asked to stop still saves when its parent has gone
                    time.sleep(POLL_SECONDS)
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
