"""The effort of a stage over all its attempts: hours of training, hours of waiting, interruptions.

It comes from two files. attempts.jsonl has the wall-clock times: when each attempt started and ended, or was last alive.
history.jsonl has the seconds of the optimizer steps; steps that were repeated after a kill appear in it once.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pandas as pd

from cswin.run.attempts import FINISHED, AttemptSummary, current, summaries

Rows = list[dict[str, Any]]
NO_TIME = timedelta()


@dataclass(frozen=True)
class Effort:
    """Figures of one training of a stage, from its beginning to its last attempt.

    Attributes:
        attempts: number of starts until the stage was complete.
        resumes: number of attempts that resumed from a saved state.
        unended: attempts without a recorded end or last sign of life. Their time counts up to their last step in the history, so
            train_hours is too low by the time after this step, and between_hours is too high by the same time.
        train_hours: wall-clock time of all attempts: start-up, compilation, steps (also repeated ones), validation, saving.
        data_wait_hours: time in which the steps of the history waited for images.
        between_hours: from the end of each attempt to the start of the next.
        images_per_s: images of the steps of the history divided by their seconds; None before the first step.
        devices: of the last attempt.
        commits: git commits of the attempts, without repetition, in order; with "-dirty" if tracked files differed.
    """

    attempts: int
    resumes: int
    unended: int
    train_hours: float
    data_wait_hours: float
    between_hours: float
    images_per_s: float | None
    devices: int | None
    commits: tuple[str, ...]


def training_attempts(attempts: Rows) -> list[AttemptSummary]:
    """The attempts of the last training in attempts.jsonl, up to the one that completed it. Later attempts train nothing: they write
    the stage's files again from its state."""
    tried = current(summaries(attempts))
    completed = [i for i, one in enumerate(tried) if one.reason == FINISHED]
    return tried[: completed[0] + 1] if completed else tried


def measure_effort(attempts: Rows, steps: pd.DataFrame, global_batch: int) -> Effort:
    """The effort of the last training in attempts.jsonl.

    Args:
        attempts: all rows of attempts.jsonl.
        steps: of history.jsonl, columns step, seconds and wait; seconds is NaN where the device was not read.
        global_batch: images per step.
    """
    tried = training_attempts(attempts)
    logged = steps.dropna(subset="seconds")
    ends, unended = [], 0
    for i, one in enumerate(tried):
        ends.append(_time(one.ended) if one.ended else _last_logged(one, tried[i + 1 :], logged))
        unended += one.ended is None
    starts = [_time(one.start["time"]) for one in tried]
    training = sum((max(NO_TIME, end - start) for start, end in zip(starts, ends, strict=True)), NO_TIME)
    between = sum((max(NO_TIME, start - end) for start, end in zip(starts[1:], ends, strict=False)), NO_TIME)
    seconds = float(logged.seconds.sum())
    return Effort(
        attempts=len(tried),
        resumes=sum(one.resumed for one in tried),
        unended=unended,
        train_hours=training / timedelta(hours=1),
        data_wait_hours=float((logged.seconds * logged.wait).sum()) / 3600,
        between_hours=between / timedelta(hours=1),
        images_per_s=len(steps) * global_batch / seconds if seconds else None,
        devices=tried[-1].start.get("devices") if tried else None,
        commits=tuple(dict.fromkeys(_commit(one.start.get("git")) for one in tried)),
    )


def _last_logged(one: AttemptSummary, later: list[AttemptSummary], logged: pd.DataFrame) -> datetime:
    """Time of an attempt's last step in the history: its start of training plus the seconds of its steps."""
    last = _time(one.begun or one.start["time"])
    if one.from_step is None:
        return last
    until = next((a.from_step for a in later if a.from_step is not None), None)
    own = logged[(logged.step > one.from_step) & (True if until is None else logged.step <= until)]
    return last + timedelta(seconds=float(own.seconds.sum()))


def _commit(git: dict[str, Any] | None) -> str:
    return "unknown" if git is None else git["commit"] + ("-dirty" if git["dirty"] else "")


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
