"""Append-only records of every attempt to train a stage.

Rows of attempts.jsonl, each with the attempt's id and a time (UTC):
    start: command, inputs with their hashes, resolved configuration, versions, git commit, host, process, job, devices.
    begin or resume: the step from which training went on.
    end: the reason, and the last saved step.
    lost: written by the next attempt for an attempt that was killed and so has no end; its time is the last sign of life.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cswin.distributed import slurm
from cswin.layout import HISTORY
from cswin.run.history import read_history
from cswin.run.lease import Holder, look

LOST, FINISHED = "killed, or its machine failed", "complete"


@dataclass(frozen=True)
class Signs:
    """Signs of life of a stage's last trainer. Read them before anything is written to the stage's folder.

    Attributes:
        holder: holder of the lease that was not released, or None.
        history: time of the last write to the history, seconds since 1970, or None.
    """

    holder: Holder | None
    history: float | None

    @classmethod
    def read(cls, folder: Path) -> Signs:
        """The signs in a stage's folder."""
        history = Path(folder) / HISTORY
        return cls(look(folder), history.stat().st_mtime if history.exists() else None)

    def last_life(self, start: dict[str, Any]) -> tuple[float, str]:
        """Time of an attempt's last sign of life, and the kind of sign: heartbeat, history or start."""
        if self.holder and (self.holder.host, self.holder.pid) == (start.get("host"), start.get("pid")):
            return self.holder.heartbeat, "heartbeat"
        if self.history:
            return self.history, "history"
        return _seconds(start["time"]), "start"


class Attempt:
    """An attempt to train a stage. As a context manager it records an error as the reason of its end.

    Args:
        path: the stage's attempts.jsonl.
        facts: command, versions, git commit, identity and the like, for the start row.
        signs: signs of life of the previous attempt, in case it was killed.
    """

    def __init__(self, path: Path, facts: dict, signs: Signs):
        self.path, self.ended = Path(path), False
        self.id = os.urandom(6).hex()
        self._close_lost(signs)
        where = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job": slurm.job_id(),
            "visible_devices": os.environ.get("ASCEND_RT_VISIBLE_DEVICES"),
        }
        self._append({"event": "start", "time": _now(), **where, **facts})

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if not self.ended:
            with contextlib.suppress(OSError):  # if a full disk ended the attempt, that error must be reported, not this one
                self.end(f"{kind.__name__}: {error}" if kind else "left without an end", None)

    def resumed(self, step: int, first_step: int, last_step: int) -> None:
        """Record the step from which training continues, and the first and last step of the stage."""
        event = "resume" if step > first_step else "begin"
        self._append({"event": event, "time": _now(), "step": step, "first_step": first_step, "last_step": last_step})

    def end(self, reason: str, step: int | None, **facts) -> None:
        """Record the reason of the end, and the last saved step."""
        self.ended = True
        self._append({"event": "end", "time": _now(), "reason": reason, "step": step, **facts})

    def _close_lost(self, signs: Signs) -> None:
        """Write an end for killed attempts: their last sign of life, limited to the time between their start and the next one."""
        if not self.path.exists():
            return
        whole = self.path.read_bytes().rpartition(b"\n")
        if whole[2]:  # an incomplete last row is removed, so that the next row is not appended to it
            os.truncate(self.path, len(whole[0] + whole[1]))
        tried = summaries(read_history(self.path))
        for one, following in zip(tried, [*tried[1:], None], strict=True):
            if one.ended is None:
                life, sign = signs.last_life(one.start)
                limit = _seconds(following.start["time"]) if following else _seconds(_now())
                life = max(min(life, limit), _seconds(one.start["time"]))
                self._append({"event": "lost", "time": _text(life), "sign": sign}, one.start["attempt"])

    def _append(self, row: dict, attempt: str | None = None) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"attempt": attempt or self.id, **row}) + "\n")
            file.flush()
            os.fsync(file.fileno())


@dataclass
class AttemptSummary:
    """One attempt.

    Attributes:
        start: its start row.
        from_step: step from which it trained; None if it ended before training.
        resumed: whether it resumed from a saved state.
        begun: time at which training began (ISO 8601).
        first_step, last_step: of the stage; None if unknown.
        ended: time of its end or of its last sign of life (ISO 8601); None while neither is known.
        reason: reason of its end; None while it runs.
        step: the last saved step; None if unknown.
    """

    start: dict[str, Any]
    from_step: int | None = None
    resumed: bool = False
    begun: str | None = None
    first_step: int | None = None
    last_step: int | None = None
    ended: str | None = None
    reason: str | None = None
    step: int | None = None

    @property
    def hours(self) -> float | None:
        """Hours from start to end; None without an end."""
        return None if self.ended is None else (_seconds(self.ended) - _seconds(self.start["time"])) / 3600

    @property
    def started(self) -> float:
        """Time of the start, seconds since 1970."""
        return _seconds(self.start["time"])


def summaries(rows: list[dict[str, Any]]) -> list[AttemptSummary]:
    """The attempts in the order of their starts."""
    found: dict[str, AttemptSummary] = {}
    for row in rows:
        if row["event"] == "start":
            found[row["attempt"]] = AttemptSummary(row)
            continue
        one = found.get(row["attempt"])
        if one is None:
            continue
        if row["event"] in ("begin", "resume"):
            one.from_step, one.resumed, one.begun = row["step"], row["event"] == "resume", row["time"]
            one.first_step, one.last_step = row.get("first_step"), row.get("last_step")
        elif row["event"] == "end":
            one.ended, one.reason, one.step = row["time"], row["reason"], row.get("step")
        elif row["event"] == "lost":
            one.ended, one.reason = row["time"], LOST
    return list(found.values())


def current(tried: list[AttemptSummary]) -> list[AttemptSummary]:
    """The attempts of the current training. A new training begins after the stage was complete, or with another identity."""
    begin = len(tried) - 1
    while begin > 0:
        one, before = tried[begin], tried[begin - 1]
        same = one.start.get("identity") == before.start.get("identity")
        if not (one.resumed or (same and before.reason != FINISHED)):
            break
        begin -= 1
    return tried[max(begin, 0) :]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
