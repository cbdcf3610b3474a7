"""One snakemake at a time runs jobs in a folder.

Snakemake has locks of its own, but they name nobody, outlive a killed process, and the end of one snakemake removes those of all
others in the folder. This one is the kernel's: it ends with its process, and the file says which process that is.
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

TRIES, PAUSE = 10, 0.1  # somebody who only looks holds the lock for an instant


class Presence:
    """This process in a workflow's folder.

    Args:
        folder: the workflow's.
    """

    def __init__(self, folder: Path = Path()):
        self._path, self._locks, self._file = folder / AT_WORK, folder / SNAKEMAKE_LOCKS, None

    def take(self) -> None:
        """Be the one that runs jobs here, until this process ends.

        On a file system without locks nothing is checked; a stage's lease still keeps a second trainer away.

        Raises:
            UserError: if another process is; it is named.
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
        self._file = file  # open: closing it would end the lock

    def other(self) -> str | None:
        """Who runs jobs here, in words; None: nobody, as far as this file system tells."""
        try:
            with self._path.open(encoding="utf-8") as file:
                if not _is_locked(file, fcntl.LOCK_SH):
                    return None
                facts = json.load(file)
            who = f"host {facts['host']}, process {facts['pid']}, since {facts['since']}"
        except OSError:  # nobody has run jobs here, or this user may not look
            return None
        except (ValueError, KeyError, TypeError):  # it has just begun to write
            who = "another process"
        return f"another snakemake runs jobs in {self._path.parent.parent.absolute()} ({who})"

    def advice(self) -> str | None:
        """What to do about locks that are in the folder; None: there are none."""
        if other := self.other():
            return f"{other}: do not use --unlock"
        if any(self._locks.glob("*.lock")):
            return "a snakemake that is gone has left its lock in this folder: `snakemake --unlock` removes it"
        return None


def _is_locked(file, kind: int) -> bool:
    """Whether another process keeps this one from the lock; if not, it is taken."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    return False
