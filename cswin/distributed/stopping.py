"""When to stop early, and how a command ends: signals, a time limit, exit codes."""

from __future__ import annotations

import re
import signal
import time

from cswin.distributed.slurm import clock_seconds
from cswin.errors import UserError

EXIT_DEFECT = 1  # not the user's doing; a traceback is in the log
EXIT_USER = 2  # something that the user can put right, named on stderr
EXIT_INTERRUPTED = 75  # sysexits.h EX_TEMPFAIL: stopped on request, state saved, the same command goes on
EXIT_CTRL_C = 130  # ended at once by Ctrl-C
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stopping:
    """Answers, after each step, whether training is to stop.

    Args:
        max_runtime: seconds after the start by which the process must have ended, None for no limit.
        started: monotonic seconds of the start; None: now.

    The time kept back for the last save is three times the longest save so far (`took`), at least 5 s or 5 % of the limit.
    """

    def __init__(self, max_runtime: float | None, started: float | None = None):
        self.signal_name: str | None = None
        self.started, self.max_runtime = time.monotonic() if started is None else started, max_runtime
        self.reserve = min(5.0, 0.05 * max_runtime) if max_runtime else 0.0
        self._last_asked: float | None = None

    @property
    def asked(self) -> str | None:
        """The signal by which somebody asked to stop, as a reason; None if nobody did."""
        return f"asked to stop by {self.signal_name}" if self.signal_name else None

    def listen(self) -> None:
        """Take the signals over; a second SIGINT ends the process at once."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # a launcher starts its ranks with them blocked, until here

    def took(self, seconds: float) -> None:
        """A save took this long."""
        self.reserve = max(self.reserve, 3 * seconds)

    def __call__(self) -> str | None:
        """The reason to stop, or None."""
        now = time.monotonic()
        # What came before the first question, compilation with it, tells nothing about how long a step takes.
        since_last, self._last_asked = now - (self._last_asked or now), now
        if self.asked:
            return self.asked
        if self.max_runtime and now + since_last + self.reserve > self.started + self.max_runtime:
            return f"the time limit of {self.max_runtime:.0f} s is near"
        return None

    def _on_signal(self, number, frame) -> None:
        if number == signal.SIGINT and self.signal_name == "SIGINT":
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name


def parse_duration(text: str) -> float:
    """Seconds from `90`, `45m`, `11h`, `2d`, `HH:MM:SS` or Slurm's `D-HH:MM:SS`."""
    units = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text):
        return float(match[1]) * units[match[2]]
    if text.count(":") == 2 and (seconds := clock_seconds(text)) is not None:  # 01:30 could be hours or minutes
        return seconds
    raise UserError(f"max-runtime: {text!r} is not a duration; write 90, 45m, 11h, 2d, HH:MM:SS or D-HH:MM:SS")
