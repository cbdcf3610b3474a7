"""The notes of the ranks in the folder of a launch: process and result of each rank."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from cswin.atomic import atomic_path

ENVIRONMENT = "CSWIN_LAUNCH"  # passes the launcher's facts to the processes that msrun starts
SCHEDULER = "scheduler"


@dataclass(frozen=True)
class LaunchFacts:
    """Facts that the launcher passes to its ranks.

    Attributes:
        folder: folder of the logs and of these notes.
        started: monotonic seconds at which the launcher started, the same clock on one host.
    """

    folder: Path
    started: float

    def export(self) -> dict[str, str]:
        """As an environment variable."""
        return {ENVIRONMENT: json.dumps({"folder": str(self.folder), "started": self.started})}

    @classmethod
    def found(cls) -> LaunchFacts | None:
        """The launcher's facts; None in a process that no launcher has started."""
        text = os.environ.get(ENVIRONMENT)
        if text is None or "MS_ROLE" not in os.environ:  # otherwise the variable is inherited from a rank's shell
            return None
        facts = json.loads(text)
        return cls(Path(facts["folder"]), facts["started"])


@dataclass(frozen=True)
class Note:
    """A rank's process and, after its end, how it ended.

    Attributes:
        pid: process of the rank.
        code: exit code of the command; None while it runs, or if it was killed.
        message: message for the user; None after success.
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
    """Path of a rank's output."""
    return folder / f"worker_{rank}.log"  # msrun's name for it


def _path(folder: Path, rank: int | str) -> Path:
    return folder / (f"rank_{rank}.json" if isinstance(rank, int) else f"{rank}.json")
