"""One writer: an exclusive lease on a stage's state folder.

Two guards, because either alone fails somewhere: a kernel lock, which dies with its holder but which some shared file systems
do not pass between hosts; and a readable record with a heartbeat, which works on any file system but needs a time-out.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from cswin.errors import UserError

LOCK, RECORD = "lease.lock", "lease.json"


class Lease:
    """Exclusive use of a folder for as long as the context lasts.

    Args:
        folder: made if missing.
        timeout: seconds without heartbeat after which a lease of another host is dead.
        use_lock: take the kernel lock too; off only where the file system has none.

    Raises (on entering):
        UserError: naming the holder, if there is a live one; nothing has been touched then.
    """

    def __init__(self, folder: Path, timeout: float, use_lock: bool = True):
        self.folder, self.timeout, self.use_lock = Path(folder), timeout, use_lock
        self.me = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": _process_start(os.getpid()),
            "job": os.environ.get("SLURM_JOB_ID"),
            "nonce": os.urandom(8).hex(),
        }
        self._stop = threading.Event()
        self._lock = None

    def __enter__(self) -> Lease:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            self._refuse_live_holder()
            self._write()
            time.sleep(0.05)  # without locks two may write at once: the later one stays
            self._refuse_other_writer()
        except BaseException:
            self._drop_lock()
            raise
        self._beat = threading.Thread(target=self._heartbeat, name="lease-heartbeat", daemon=True)
        self._beat.start()
        return self

    def __exit__(self, *exception) -> None:
        self._stop.set()
        self._beat.join()
        holder = self._holder()
        if holder and holder.get("nonce") == self.me["nonce"]:
            (self.folder / RECORD).unlink(missing_ok=True)
        self._drop_lock()

    def _take_lock(self) -> None:
        if not self.use_lock:
            return
        lock = (self.folder / LOCK).open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise UserError(self._held_by(self._holder() or {})) from None
        except OSError:  # this file system has no locks: the heartbeat decides
            lock.close()
            return
        self._lock = lock

    def _drop_lock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _refuse_live_holder(self) -> None:
        holder = self._holder()
        if holder is None:
            return
        if holder.get("host") == self.me["host"]:
            alive = _process_start(holder.get("pid", -1)) == holder.get("started") is not None
        else:
            alive = time.time() - holder.get("heartbeat", 0) < self.timeout
        if alive:
            raise UserError(self._held_by(holder))

    def _refuse_other_writer(self) -> None:
        holder = self._holder() or {}
        if holder.get("nonce") != self.me["nonce"]:
            raise UserError(self._held_by(holder))

    def _held_by(self, holder: dict) -> str:
        who = f"host {holder.get('host', '?')}, process {holder.get('pid', '?')}"
        if holder.get("job"):
            who += f", job {holder['job']}"
        age = time.time() - holder.get("heartbeat", time.time())
        return (
            f"{self.folder}: another trainer is at work here ({who}, last heartbeat {age:.0f} s ago). Wait for it or end it; "
            f"if it is dead on another host, its lease runs out {self.timeout:.0f} s after its last heartbeat"
        )

    def _holder(self) -> dict | None:
        try:
            return json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def _write(self) -> None:
        temporary = self.folder / f".{RECORD}.{self.me['nonce']}"
        temporary.write_text(json.dumps(self.me | {"heartbeat": time.time()}), encoding="utf-8")
        temporary.replace(self.folder / RECORD)

    def _heartbeat(self) -> None:
        while not self._stop.wait(min(10.0, self.timeout / 4)):
            with contextlib.suppress(OSError):  # a full disk must not end training here
                self._write()


@dataclass(frozen=True)
class Holder:
    """Who holds a lease, or left it behind, as somebody sees it who only looks.

    Attributes:
        host, pid, job: of the trainer.
        heartbeat: its last one, seconds since 1970 by its own clock.
        written: the same moment by the date of the file, often a server's clock.
        lives: whether its process lives; None if it is on another host, where only the heartbeat can tell.
    """

    host: str | None
    pid: int | None
    job: str | None
    heartbeat: float
    written: float
    lives: bool | None


def look(folder: Path) -> Holder | None:
    """The holder of a folder's lease; None where there is none. Nothing is locked or written."""
    path = Path(folder) / RECORD
    try:
        record, written = json.loads(path.read_text(encoding="utf-8")), path.stat().st_mtime
    except (OSError, ValueError):
        return None
    here = record.get("host") == socket.gethostname()
    lives = _process_start(record.get("pid", -1)) == record.get("started") is not None if here else None
    known = (record.get(key) for key in ("host", "pid", "job"))
    return Holder(*known, record.get("heartbeat", written), written, lives)


def _process_start(pid: int) -> str | None:
    """Start time of a live process in clock ticks, so that a reused number is not taken for the holder; None if it is dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
