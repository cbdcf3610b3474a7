"""Progress displays: bars in a terminal, plain lines elsewhere.

Outside a terminal (log file, cluster job) a line is written every ten seconds. This is readable in `tail -f` and keeps the log of a
long run short. With a log file, a terminal also shows the bar.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from cswin.errors import UserError

LINE_SECONDS = 10.0


def duration_text(seconds: float) -> str:
    """Seconds in readable units: 42s, 7m05s, 3h12m, 8d03h."""
    seconds = int(seconds)
    for unit, size, lower, lower_size in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if seconds >= size:
            return f"{seconds // size}{unit}{seconds % size // lower_size:02d}{lower}"
    return f"{seconds}s"


def size_text(size: float) -> str:
    """Bytes in decimal units, as disks are labelled: 12 B, 3.4 kB, 150.1 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"


class Console:
    """Output of messages and progress to stderr and optionally a log file.

    Args:
        log: file that receives everything as plain lines; its folder is created.
        append: whether to append to an existing log instead of replacing it.
        stream: the output for the user (default: stderr); its `isatty` decides between bars and lines.
        clock: monotonic seconds (tests pass their own).
    """

    def __init__(
        self,
        log: Path | None = None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        append: bool = False,
    ):
        self.stream = stream if stream is not None else sys.stderr
        self.terminal = self.stream.isatty()
        self.clock = clock
        self._log = None
        if log is not None:
            try:
                log.parent.mkdir(parents=True, exist_ok=True)
                self._log = log.open("a" if append else "w", encoding="utf-8", errors="backslashreplace", buffering=1)
            except OSError as error:
                raise UserError(f"{log}: cannot be written ({error.strerror}); choose another --log") from error

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the log file."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def say(self, line: str) -> None:
        """Print a line, above a progress bar if there is one."""
        if self.terminal:
            tqdm.write(line, file=self.stream)
        else:
            print(line, file=self.stream, flush=True)
        self.record(line)

    def record(self, line: str) -> None:
        """Write a line to the log file only."""
        if self._log is not None:
            self._log.write(line + "\n")

    def progress(self, name: str, total: int, unit: str = "B", done: int = 0) -> Progress:
        """The display of one long task.

        Args:
            name: name of the task.
            total: total amount, in `unit`.
            unit: "B" for bytes, otherwise a noun in the plural ("images", "steps").
            done: amount completed before this start; it does not count for the speed.
        """
        return Progress(self, name, total, unit, done)


class Progress:
    """The progress of a task; created by `Console.progress`."""

    def __init__(self, console: Console, name: str, total: int, unit: str, done: int):
        self.console, self.name, self.total, self.unit = console, name, total, unit
        self.done = self._begun_at = done
        self._started = self._next_line = console.clock()
        self._next_line += LINE_SECONDS
        self._details: dict[str, str] = {}
        self._bar = None
        if console.terminal:
            self._bar = tqdm(
                desc=name, total=total, initial=done, unit=unit if unit == "B" else f" {unit}", unit_scale=unit == "B",
                file=console.stream, dynamic_ncols=True, leave=False,
            )  # fmt: skip

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def update(self, amount: int, **details: str) -> None:
        """`amount` more is complete; `details` (name=text) are shown after the figures until they are replaced."""
        self.done += amount
        self._details.update(details)
        if self._bar is not None:
            if details:
                self._bar.set_postfix(self._details, refresh=False)
            self._bar.update(amount)
        now = self.console.clock()
        if now >= self._next_line:
            self._next_line = now + LINE_SECONDS
            self._write(self.line(now))

    def line(self, now: float) -> str:
        """The progress as a plain line."""
        seconds = max(now - self._started, 1e-9)
        rate = (self.done - self._begun_at) / seconds
        share = f"{100 * self.done / self.total:.0f} %" if self.total else "100 %"
        text = f"{self.name}: {self._done_of_total()}, {share}, {self._rate(rate)}"
        if rate > 0:
            text += f", {duration_text((self.total - self.done) / rate)} left"
        return "  ".join([text, *(f"{key} {value}" for key, value in self._details.items())])

    def close(self) -> None:
        """Remove the bar and write the total as a line."""
        if self._bar is not None:
            self._bar.close()
        seconds = max(self.console.clock() - self._started, 1e-9)
        rate = (self.done - self._begun_at) / seconds
        text = f"{self.name}: {self._done_of_total()}"
        self.console.say(f"{text} in {duration_text(seconds)} ({self._rate(rate)})")

    def _write(self, line: str) -> None:
        if self._bar is None:
            print(line, file=self.console.stream, flush=True)
        self.console.record(line)

    def _done_of_total(self) -> str:
        if self.unit == "B":
            return f"{size_text(self.done)} of {size_text(self.total)}"
        return f"{self.done:,} of {self.total:,} {self.unit}"

    def _rate(self, value: float) -> str:
        if self.unit == "B":
            return f"{value / 1e6:.0f} MB/s" if value >= 1e7 else f"{value / 1e6:.2f} MB/s"
        return f"{value:,.0f} {self.unit}/s" if value >= 10 else f"{value:.2f} {self.unit}/s"
