"""Snakemake's output on the terminal: one line per finished job, and warnings and errors in full.

No plugin does this. snakemake-logger-plugin-rich 0.5.1 shows neither finished jobs nor seconds, and its panel and the trainer's
progress bar overwrite each other. Snakemake does not find a plugin in a package that is installed in editable mode. So Snakemake's
own handler gets another filter and formatter. The log file in .snakemake/log is always complete.
"""

from __future__ import annotations

import logging
import re

from cswin.progress import duration_text
from cswin.workflow.internals import Internals

_HIDDEN = {"workflow_started", "run_info", "resources_info", "rulegraph", "job_info", "job_started", "job_finished", "shellcmd"}
_NO_NEWS = re.compile(
    r"Assuming unrestricted|Building DAG|Using shell|Singularity containers|Select jobs|Execute \d+ jobs|DAG of jobs will|"
    r"Updating checkpoint|Elapsed time"
)
_CLEAR = "\r\x1b[K"  # clears the line of a progress bar, which is drawn again at its next step


class JobLines(logging.Formatter):
    """Filter and formatter for a handler of Snakemake's messages.

    Args:
        other: Snakemake's formatter, for messages that are shown unchanged.
        terminal: whether the stream is a terminal, which may show a progress bar.
    """

    def __init__(self, other: logging.Formatter, terminal: bool):
        super().__init__()
        self.other, self.clear = other, _CLEAR if terminal else ""
        self._started: dict[int, tuple[float, str]] = {}
        self._finished: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the message is shown. The name and start time of a job are kept for its line."""
        event = getattr(record, "event", None)
        if event == "job_info":
            self._started[record.jobid] = record.created, " ".join([record.rule_name, *map(str, record.wildcards.values())])
        elif event == "job_finished" and record.job_id in self._started:
            start, name = self._started.pop(record.job_id)
            self._finished.append(f"{name}: {duration_text(record.created - start)}")
        if record.levelno >= logging.WARNING:
            return True
        return event not in _HIDDEN and not (event is None and _NO_NEWS.match(record.getMessage()))

    def format(self, record: logging.LogRecord) -> str:
        if getattr(record, "event", None) != "progress":
            text = self.other.format(record)
        else:  # Snakemake sends this message immediately after each finished job
            text = "\n".join(f"{record.done} of {record.total}  {line}" for line in self._finished)
            self._finished.clear()
        return text and self.clear + text


def shorten_output(snakemake: Internals) -> None:
    """Show job lines on the terminal, except in a dry run and with `--verbose`, `-p` or a logger plugin."""
    for handler in snakemake.terminal_handlers():
        lines = JobLines(handler.formatter, handler.stream.isatty())
        handler.addFilter(lines)
        handler.setFormatter(lines)
