"""Who trained when: one record at the start and one at the end of every attempt, append-only."""

from __future__ import annotations

import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path


class Attempt:
    """An attempt at a stage; a context, so that an error is recorded as the reason of its end.

    Args:
        path: the stage's attempts.jsonl.
        facts: what the attempt is: command, versions, git commit, identity.
    """

    def __init__(self, path: Path, facts: dict):
        self.path, self.ended = Path(path), False
        self.id = os.urandom(6).hex()
        where = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job": os.environ.get("SLURM_JOB_ID"),
            "visible_devices": os.environ.get("ASCEND_RT_VISIBLE_DEVICES"),
        }
        self._append({"event": "start", "time": _now(), **where, **facts})

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if not self.ended:
            self.end(f"{kind.__name__}: {error}" if kind else "left without an end", None)

    def resumed(self, step: int, first_step: int) -> None:
        """From which step training goes on."""
        self._append({"event": "resume" if step > first_step else "begin", "time": _now(), "step": step})

    def end(self, reason: str, step: int | None) -> None:
        """How and where the attempt ended."""
        self.ended = True
        self._append({"event": "end", "time": _now(), "reason": reason, "step": step})

    def _append(self, row: dict) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"attempt": self.id, **row}) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
