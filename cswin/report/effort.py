"""What a stage has cost, over all its attempts: hours of training, hours of waiting, interruptions.

Two files say it. attempts.jsonl has the wall clock: when each attempt started and ended, or when it was last alive. history.jsonl
has the seconds of the optimizer steps that count; steps that were repeated after a kill are in it once.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

Rows = list[dict[str, Any]]
NO_TIME = timedelta()


@dataclass(frozen=True)
class Effort:
    """Figures of one training of a stage, from its beginning to its last attempt.

    Attributes:
        attempts: how many times it was started.
        resumes: how many of them went on from a saved state.
        unended: attempts of which neither an end nor a last sign of life is recorded. Their time is taken up to their last logged
            step that counts, so train_hours is too low by what they did after it, and between_hours too high by the same.
        train_hours: wall clock of all attempts: start-up, compilation, steps (repeated ones too), validation, saving.
        data_wait_hours: part of it in which the steps that count waited for images.
        between_hours: from the end of each attempt to the start of the next.
        images_per_s: images of the steps that count over their seconds; None before the first.
        devices: of the last attempt.
        commits: git commits of the attempts, each once, in order; "-dirty" where tracked files differed from it.
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


@dataclass(frozen=True)
class _Attempt:
    """The rows of one attempt."""

    rows: Rows

    def row(self, *events: str) -> dict[str, Any]:
        return next((row for row in self.rows if row["event"] in events), {})

    @property
    def start(self) -> datetime:
        return _time(self.rows[0])

    @property
    def step(self) -> int | None:
        """The step from which it trained; None if it did not come so far."""
        return self.row("begin", "resume").get("step")

    def continues(self, before: _Attempt) -> bool:
        """Whether it belongs to the same training. A stage that was complete, or has another identity, is trained anew."""
        same = self.row("start").get("identity") == before.row("start").get("identity")
        return bool(self.row("resume")) or (same and before.row("end").get("reason") != "complete")


def measure_effort(attempts: Rows, steps: Rows, global_batch: int) -> Effort:
    """The effort of the training that attempts.jsonl ends with.

    Args:
        attempts: all rows of attempts.jsonl.
        steps: the step rows of history.jsonl.
        global_batch: images per step.
    """
    current = _current(attempts)
    logged = [row for row in steps if "seconds" in row]
    ends, unended = [], 0
    for i, attempt in enumerate(current):
        end = attempt.row("end", "lost")
        ends.append(_time(end) if end else _last_logged(attempt, current[i + 1 :], logged))
        unended += not end
    training = sum((max(NO_TIME, end - a.start) for a, end in zip(current, ends, strict=True)), NO_TIME)
    between = sum((max(NO_TIME, b.start - end) for b, end in zip(current[1:], ends, strict=False)), NO_TIME)
    seconds = sum(row["seconds"] for row in logged)
    return Effort(
        attempts=len(current),
        resumes=sum(bool(attempt.row("resume")) for attempt in current),
        unended=unended,
        train_hours=training / timedelta(hours=1),
        data_wait_hours=sum(row["seconds"] * row["wait"] for row in logged) / 3600,
        between_hours=between / timedelta(hours=1),
        images_per_s=len(steps) * global_batch / seconds if seconds else None,
        devices=current[-1].row("start").get("devices") if current else None,
        commits=tuple(dict.fromkeys(_commit(attempt.row("start").get("git")) for attempt in current)),
    )


def _current(rows: Rows) -> list[_Attempt]:
    """The attempts of the last training: back to the one with which it began."""
    by_id: dict[str, Rows] = {}
    for row in rows:
        by_id.setdefault(row["attempt"], []).append(row)
    attempts = [_Attempt(rows) for rows in by_id.values()]
    begin = len(attempts) - 1
    while begin > 0 and attempts[begin].continues(attempts[begin - 1]):
        begin -= 1
    return attempts[max(begin, 0) :]


def _last_logged(attempt: _Attempt, later: list[_Attempt], logged: Rows) -> datetime:
    """When an attempt logged the last of its steps that count: its first step's time and the seconds of the steps after it."""
    last = max(map(_time, attempt.rows))
    if attempt.step is None:
        return last
    until = next((a.step for a in later if a.step is not None), None)
    own = itertools.takewhile(
        lambda row: until is None or row["step"] <= until, (r for r in logged if r["step"] > attempt.step)
    )
    return last + timedelta(seconds=sum(row["seconds"] for row in own))


def _commit(git: dict[str, Any] | None) -> str:
    return "unknown" if git is None else git["commit"] + ("-dirty" if git["dirty"] else "")


def _time(row: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(row["time"])
