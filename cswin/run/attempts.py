"""Who trained when: append-only records of every attempt at a stage.

Rows of attempts.jsonl, each with the attempt's id and a time (UTC):
    start: command, inputs with their hashes, resolved configuration, versions, git commit, host, process, job, devices.
    begin or resume: the step from which training went on.
    end: the reason, and the last step that is saved.
    lost: written by the next attempt for one that was killed and so left no end; its time is the last sign of life.
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
    """What a stage's folder tells of who was at work there last; to be read before anything is written there.

    Attributes:
        holder: of the lease that was left behind, or None.
        history: when the history was last written, seconds since 1970, or None.
    """

    holder: Holder | None
    history: float | None

    @classmethod
    def read(cls, folder: Path) -> Signs:
        """The signs in a stage's folder."""
        history = Path(folder) / HISTORY
        return cls(look(folder), history.stat().st_mtime if history.exists() else None)

    def last_life(self, start: dict[str, Any]) -> tuple[float, str]:
        """When the attempt of this start row was last alive, and by which sign: heartbeat, history or start."""
        if self.holder and (self.holder.host, self.holder.pid) == (start.get("host"), start.get("pid")):
            return self.holder.heartbeat, "heartbeat"
        if self.history:
            return self.history, "history"
        return _seconds(start["time"]), "start"


class Attempt:
    """An attempt at a stage; a context, so that an error is recorded as the reason of its end.

    Args:
        path: the stage's attempts.jsonl.
        facts: what the attempt is: command, versions, git commit, identity.
        signs: of the attempt before, in case that it was killed.
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
            with contextlib.suppress(OSError):  # a full disk is what ended it, and must be what is reported
                self.end(f"{kind.__name__}: {error}" if kind else "left without an end", None)

    def resumed(self, step: int, first_step: int, last_step: int) -> None:
        """From which step training goes on, and where the stage begins and ends."""
        event = "resume" if step > first_step else "begin"
        self._append({"event": event, "time": _now(), "step": step, "first_step": first_step, "last_step": last_step})

    def end(self, reason: str, step: int | None, **facts) -> None:
        """How and where the attempt ended."""
        self.ended = True
        self._append({"event": "end", "time": _now(), "reason": reason, "step": step, **facts})

    def _close_lost(self, signs: Signs) -> None:
        """Give attempts that were killed an end: their last sign of life, which lies between their start and the next one's."""
        if not self.path.exists():
            return
        whole = self.path.read_bytes().rpartition(b"\n")
        if whole[2]:  # a row that was cut off in the middle; what is appended must not continue it
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
        from_step: where it began or went on; None if it did not come so far.
        resumed: whether it went on from a saved state.
        begun: time at which it came so far (ISO 8601).
        first_step, last_step: of the stage, where known.
        ended: time of its end or of its last sign of life (ISO 8601); None while neither is known.
        reason: of its end; None while it runs.
        step: the last step saved, where the end says it.
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
        """From start to end; None without an end."""
        return None if self.ended is None else (_seconds(self.ended) - _seconds(self.start["time"])) / 3600

    @property
    def started(self) -> float:
        """Seconds since 1970."""
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
    """The attempts of the training that the last one belongs to: a stage that was complete, or changed, was trained anew."""
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
