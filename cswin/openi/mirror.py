"""A copy of the results folder at train_url, for readers and for the next job.

A job can be killed at any moment, so after each single write the next job must be able to continue. Files appear complete or not at
all (see `storage`). A state needs a history that is at least as long as the state says. So the states are listed first, then all
other files are copied, then these states, and older states are removed last. The trainer decides whether a state is undamaged and
belongs to the configuration; it has two states of each folder.

The next job restores only files that no rule makes. From these the trainer resumes, or writes a complete stage's files again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from cswin.layout import ATTEMPTS, HISTORY, RESULTS
from cswin.openi.storage import Storage, join
from cswin.run.history import read_tail
from cswin.run.repeat import COMPLETE
from cswin.run.states import PATTERN

TAIL = 1 << 20  # bytes at the end of a history that contain its last time
STATES_KEPT = 2  # of each state folder, also of those that were set aside
RESTORED = (f"state*/{PATTERN}", f"state*/{COMPLETE}", HISTORY, ATTEMPTS, "logs/train_*.log")
LEFT_OUT = (PATTERN, "*.damaged", "lease[.-]*", ".*")  # states are copied separately


class Mirror:
    """Copies a work folder's results to train_url and back.

    Args:
        storage, url: where to copy to.
        work: the folder in which the workflow runs.
        guard: called before each write to `url`; raises if this job may no longer write there.
    """

    def __init__(self, storage: Storage, url: str, work: Path, guard: Callable[[], None]):
        self.storage, self.url, self.results, self.guard = storage, join(url, str(RESULTS)), work / RESULTS, guard
        self._there: dict[str, tuple[int, int]] = {}  # path -> date and size of the copied file

    def copy(self) -> None:
        """Copy all files that have changed since the last copy.

        Raises:
            UserError: if the storage fails, or from `guard`.
            OSError: if a file was removed during the copy; call it again.
        """
        folders = [folder for folder in sorted(self.results.glob("*/*/state*")) if folder.is_dir()]
        states = {folder: sorted(folder.glob(PATTERN))[-STATES_KEPT:] for folder in folders}
        for file in sorted(self.results.rglob("*")):
            if file.is_file() and not any(file.match(pattern) for pattern in LEFT_OUT):
                self._put(file)
        for folder, newest in states.items():
            for state in newest:
                self._put(state)
            place = join(self.url, self._path(folder))
            for name in self.storage.names(place) if newest else ():
                if PurePosixPath(name).match(PATTERN) and folder / name not in newest:
                    self.guard()
                    self.storage.remove(join(place, name))

    def restore(self) -> int:
        """Restore the files that this job needs to continue, into an empty results folder. Returns their number."""
        paths = [
            path for path in self.storage.names(self.url, below=True) if any(PurePosixPath(path).match(p) for p in RESTORED)
        ]
        for path in paths:
            local = self.results / path
            self.storage.get(join(self.url, path), local)
            if local.name == HISTORY and (times := [row["time"] for row in read_tail(local, TAIL) if "time" in row]):
                os.utime(local, (times[-1], times[-1]))  # the killed attempt's last sign of life, see cswin.run.attempts
            self._there[path] = _version(local)
        return len(paths)

    def _put(self, file: Path) -> None:
        path, version = self._path(file), _version(file)
        if self._there.get(path) != version:
            self.guard()
            self.storage.put(file, join(self.url, path))
            self._there[path] = version

    def _path(self, file: Path) -> str:
        return file.relative_to(self.results).as_posix()


def _version(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_mtime_ns, status.st_size
