"""What a rank leaves in the launch's folder: who it is, and how it ended."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from cswin.atomic import atomic_path

ENVIRONMENT = "CSWIN_LAUNCH"  # how the launcher speaks to the processes that msrun starts
SCHEDULER = "scheduler"


@dataclass(frozen=True)
class LaunchFacts:
    """What the launcher tells its ranks.

    Attributes:
        folder: of logs and of these notes.
        started: monotonic seconds at which the launcher started, the same clock on one host.
    """

    folder: Path
    started: float

    def export(self) -> dict[str, str]:
        """As an environment variable."""
        return {ENVIRONMENT: json.dumps({"folder": str(self.folder), "started": self.started})}

    @classmethod
    def found(cls) -> LaunchFacts | None:
        """The launcher's facts; None in a process that was not started by one."""
        text = os.environ.get(ENVIRONMENT)
        if text is None or "MS_ROLE" not in os.environ:  # without it: inherited from a shell that a rank has started
            return None
        facts = json.loads(text)
        return cls(Path(facts["folder"]), facts["started"])


@dataclass(frozen=True)
class Note:
    """Who a rank is and, at its end, how it ended.

    Attributes:
        pid: its process.
        code: exit code of the command, None while it runs (or when it was killed).
        message: what the user is told, None after success.
        time: seconds since 1970 at which the note was written.
    """

    pid: int
    code: int | None = None
    message: str | None = None
    time: float = 0.0

    def write(self, folder: Path, rank: int | str) -> None:
        with atomic_path(_path(folder, rank)) as temporary:
            temporary.write_text(json.dumps(self.__dict__ | {"time": time.time()}) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path, rank: int | str) -> Note | None:
        """The note of a rank (or of SCHEDULER); None before it has written one."""
        try:
            return cls(**json.loads(_path(folder, rank).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None


def log_path(folder: Path, rank: int) -> Path:
    """What a rank has printed."""
    return folder / f"worker_{rank}.log"  # the name is msrun's


def _path(folder: Path, rank: int | str) -> Path:
    return folder / (f"rank_{rank}.json" if isinstance(rank, int) else f"{rank}.json")
