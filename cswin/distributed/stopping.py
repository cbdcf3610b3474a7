"""Early stops of a training (signals, a time limit), and exit codes."""

from __future__ import annotations

import re
import signal
import time

from cswin.distributed.slurm import clock_seconds
from cswin.errors import UserError

EXIT_DEFECT = 1  # an error of the program; a traceback is in the log
EXIT_USER = 2  # an error that the user can fix, named on stderr
EXIT_INTERRUPTED = 75  # sysexits.h EX_TEMPFAIL: stopped on request, state saved, the same command resumes
EXIT_CTRL_C = 130  # ended immediately by Ctrl-C
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stopping:
    """Decides after each step whether training must stop.

    Args:
        max_runtime: seconds after the start by which the process must have ended, None for no limit.
        started: monotonic seconds of the start; None: now.

    The reserve for the last save is three times the longest save so far (`took`), but at least 5 s (5 % of a limit below 100 s).
    """

    def __init__(self, max_runtime: float | None, started: float | None = None):
        self.signal_name: str | None = None
        self.started, self.max_runtime = time.monotonic() if started is None else started, max_runtime
        self.reserve = min(5.0, 0.05 * max_runtime) if max_runtime else 0.0
        self._last_asked: float | None = None

    @property
    def asked(self) -> str | None:
        """The received stop signal, as a reason; None if there was none."""
        return f"asked to stop by {self.signal_name}" if self.signal_name else None

    def listen(self) -> None:
        """Install the signal handlers; a second SIGINT ends the process at once."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # a launcher starts its ranks with blocked signals

    def took(self, seconds: float) -> None:
        """Record the duration of a save."""
        self.reserve = max(self.reserve, 3 * seconds)

    def __call__(self) -> str | None:
        """The reason to stop, or None."""
        now = time.monotonic()
        # The time before the first call, with compilation, does not show how long a step takes.
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
