"""Only one snakemake at a time runs jobs in a folder.

Snakemake's own locks do not name the process, remain after a kill, and are removed when any snakemake in the folder ends. This
lock is a kernel lock (flock): it ends with its process. The locked file names the process.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from cswin.errors import UserError
from cswin.layout import AT_WORK, SNAKEMAKE_LOCKS

TRIES, PAUSE = 10, 0.1  # `other` of another process takes the lock for a moment


class Presence:
    """The lock of a workflow's folder.

    Args:
        folder: the workflow's folder.
    """

    def __init__(self, folder: Path = Path()):
        self._path, self._locks, self._file = folder / AT_WORK, folder / SNAKEMAKE_LOCKS, None

    def take(self) -> None:
        """Take the lock until this process ends.

        On a file system without locks nothing is checked; the lease of a stage still prevents a second trainer.

        Raises:
            UserError: if another process has the lock, with the host and the PID.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = self._path.open("a+", encoding="utf-8")
        for _ in range(TRIES):
            if not _is_locked(file, fcntl.LOCK_EX):
                break
            time.sleep(PAUSE)
        else:
            other = self.other() or "another snakemake was at work here just now"
            raise UserError(f"{other}. Wait for it or end it; two runs at once need a folder each (docs/recovery.md)")
        file.truncate(0)
        facts = {"host": socket.gethostname(), "pid": os.getpid(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
        json.dump(facts | {"command": sys.argv}, file)
        file.flush()
        self._file = file  # kept open: closing it would release the lock

    def other(self) -> str | None:
        """A description of the snakemake that runs jobs here; None if there is none, or if this file system has no locks."""
        try:
            with self._path.open(encoding="utf-8") as file:
                if not _is_locked(file, fcntl.LOCK_SH):
                    return None
                facts = json.load(file)
            who = f"host {facts['host']}, process {facts['pid']}, since {facts['since']}"
        except OSError:  # no job was ever run here, or this user may not read the file
            return None
        except (ValueError, KeyError, TypeError):  # the file is being written
            who = "another process"
        return f"another snakemake runs jobs in {self._path.parent.parent.absolute()} ({who})"

    def advice(self) -> str | None:
        """What to do about the locks in the folder; None if there are none."""
        if other := self.other():
            return f"{other}: do not use --unlock"
        if any(self._locks.glob("*.lock")):
            return "a snakemake that has ended has left its lock in this folder: `snakemake --unlock` removes it"
        return None


def _is_locked(file, kind: int) -> bool:
    """Whether another process has the lock; if not, this process takes it."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    return False
