"""An exclusive lease on a stage's folder, so that it has one writer.

A lease is a numbered record (lease-000007.json: host, process, job, heartbeat); the highest number is valid. A process takes the
lease by creating the file of the next number. This is atomic, so only one process succeeds, also without file locks. A suspended
holder whose lease was taken over finds the higher number and stops before it writes again. When a holder finishes, it marks its
record as released and leaves it there, so that no number is used twice.

On the same host the process table shows whether a holder is alive. From another host only the heartbeat is visible. It is watched
until it changes (alive) or has not changed for the time-out (dead), so differing clocks do no harm. A kernel lock is taken too:
on a file system that supports locks between hosts it shows a live holder at once, even a suspended one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cswin.distributed import slurm
from cswin.errors import UserError

LOCK, RECORDS = "lease.lock", re.compile(r"lease-(\d{6,})\.json")
LONGEST_BEAT = 10.0  # seconds between two heartbeats, at most
POLL = 0.2  # seconds between two reads of another holder's heartbeat


class LeaseLost(UserError):
    """Another trainer has taken over the lease: this process may no longer write."""


class Lease:
    """Exclusive use of a folder for as long as the context lasts.

    Args:
        folder: created if missing.
        timeout: seconds without heartbeat after which a holder on another host counts as dead.
        say: receives a message when the process waits for a heartbeat.
        use_lock: also take the kernel lock; False only in tests, for a file system without locks.

    Raises (on entering):
        UserError: if there is a live holder, with its name; nothing was changed.
    """

    def __init__(self, folder: Path, timeout: float, say: Callable[[str], None] = print, use_lock: bool = True):
        self.folder, self.timeout, self.say, self.use_lock = Path(folder), timeout, say, use_lock
        self.me = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": _process_start(os.getpid()),
            "processes": _process_table(),
            "job": slurm.job_id(),
            "nonce": os.urandom(8).hex(),
            "every": min(LONGEST_BEAT, timeout / 4),
        }
        self.number = 0
        self._stop, self._lock = threading.Event(), None

    def __enter__(self) -> Lease:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            self._claim()
        except BaseException:
            self._drop_lock()
            raise
        self._beat = threading.Thread(target=self._heartbeat, name="lease-heartbeat", daemon=True)
        self._beat.start()
        return self

    def __exit__(self, *exception) -> None:
        self._stop.set()
        self._beat.join()
        with contextlib.suppress(OSError):  # full disk: without a process the lease counts as free anyway
            if self._is_mine():
                self._write(released=time.time())
        self._drop_lock()

    def check(self) -> None:
        """Call this before each write.

        Raises:
            LeaseLost: if another trainer has taken over, because this process sent no heartbeat for the time-out.
        """
        if not self._is_mine():
            raise LeaseLost(
                f"{self.folder}: {_who(_read(self.folder, _newest(self.folder)))} has taken this stage over, because this "
                f"process sent no heartbeat for {self.timeout:.0f} s (suspended? file system not reachable?). This process stops "
                "without writing; nothing is lost, the other one continues"
            )

    def _is_mine(self) -> bool:
        if _newest(self.folder) != self.number:
            return False
        record = _read(self.folder, self.number)  # if all records were deleted, another process may have the same number
        return record is not None and record.get("nonce", self.me["nonce"]) == self.me["nonce"]

    def _claim(self) -> None:
        """Create the record with the next number; repeat if another process was faster."""
        while True:
            newest = _newest(self.folder)
            if newest:
                self._wait_for_death(newest)
            number = newest + 1
            try:
                with _path(self.folder, number).open("x", encoding="utf-8") as file:
                    file.write(self._record())
            except FileExistsError:
                continue
            if _newest(self.folder) != number:  # the number was already used: its successors have removed its record
                _path(self.folder, number).unlink(missing_ok=True)
                continue
            self.number = number
            for old in _numbers(self.folder):
                if old < number:
                    _path(self.folder, old).unlink(missing_ok=True)
                    _temporary(self.folder, old).unlink(missing_ok=True)
            return

    def _wait_for_death(self, number: int) -> None:
        """Return when the holder of a record has released it or is dead; raise UserError if it is alive."""
        seen, told, deadline = _read(self.folder, number), False, None
        while seen is not None and "released" not in seen:
            if self._sees_process_of(seen):
                if _lives(seen):
                    raise UserError(self._held_by(seen))
                return
            if deadline is None:  # wait for at least two heartbeats, because the other clock may be wrong
                age = time.time() - seen.get("heartbeat", time.time())
                deadline = time.monotonic() + max(self.timeout - max(age, 0), 2.5 * seen.get("every", self.me["every"]))
            if time.monotonic() >= deadline:
                return
            if not told and seen:
                told = True
                self.say(
                    f"{self.folder}: held by {_who(seen)}; waiting up to {deadline - time.monotonic():.0f} s for its next heartbeat"
                )
            time.sleep(min(POLL, self.timeout / 10))
            now = _read(self.folder, number)
            if now is not None and now != seen and "released" not in now:
                if seen:
                    raise UserError(self._held_by(now))
                deadline = None  # it was just being written
            seen = now

    def _take_lock(self) -> None:
        if not self.use_lock:
            return
        lock = (self.folder / LOCK).open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            holder = _read(self.folder, _newest(self.folder)) or {}
            if not self._sees_process_of(holder) or _lives(holder):  # otherwise a child of the dead holder has the lock
                raise UserError(self._held_by(holder)) from None
        except OSError:  # no locks on this file system: only the records count
            lock.close()
        else:
            self._lock = lock

    def _drop_lock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _sees_process_of(self, record: dict) -> bool:
        return self.me["processes"] is not None and record.get("processes") == self.me["processes"]

    def _held_by(self, holder: dict) -> str:
        return (
            f"{self.folder}: another trainer is at work here ({_who(holder)}). Wait for it or end it, then give the same command "
            f"again. If it was killed on another host, its lease expires {self.timeout:.0f} s after its last heartbeat"
        )

    def _record(self, **more) -> str:
        return json.dumps(self.me | {"heartbeat": time.time()} | more) + "\n"

    def _write(self, **more) -> None:
        temporary = _temporary(self.folder, self.number)
        temporary.write_text(self._record(**more), encoding="utf-8")
        temporary.replace(_path(self.folder, self.number))

    def _heartbeat(self) -> None:
        while not self._stop.wait(self.me["every"]):
            with contextlib.suppress(OSError):  # a full disk must not end training here
                if not self._is_mine():
                    return  # the next check() raises
                self._write()


@dataclass(frozen=True)
class Holder:
    """The holder of a lease that was not released. It may be dead.

    Attributes:
        host, pid, job: of the trainer.
        heartbeat: time of its last heartbeat, seconds since 1970 by its own clock.
        written: modification time of the record, often by the clock of a file server.
        lives: whether its process is alive; None on another host, where only the heartbeat is visible.
    """

    host: str | None
    pid: int | None
    job: str | None
    heartbeat: float
    written: float
    lives: bool | None


def look(folder: Path) -> Holder | None:
    """The holder of a folder's lease; None if there is none or it was released. Nothing is locked or written."""
    record = holder(folder)
    if record is None:
        return None
    try:
        written = _path(Path(folder), _newest(Path(folder))).stat().st_mtime
    except OSError:
        written = record.get("heartbeat", 0.0)
    here = record.get("processes") is not None and record["processes"] == _process_table()
    lives = _lives(record) if here else None
    known = (record.get(key) for key in ("host", "pid", "job"))
    return Holder(*known, record.get("heartbeat", written), written, lives)


def holder(folder: Path) -> dict | None:
    """The record of a folder's lease: host, pid, job, heartbeat (seconds since 1970); None if there is none or it was released."""
    folder = Path(folder)
    record = _read(folder, _newest(folder)) if folder.is_dir() else None
    return record if record and "released" not in record else None


def _who(record: dict | None) -> str:
    record = record or {}
    who = f"host {record.get('host', '?')}, process {record.get('pid', '?')}"
    if record.get("job"):
        who += f", job {record['job']}"
    if "heartbeat" in record:
        who += f", last heartbeat {max(time.time() - record['heartbeat'], 0):.0f} s ago"
    return who


def _numbers(folder: Path) -> list[int]:
    return [int(match[1]) for path in folder.iterdir() if (match := RECORDS.fullmatch(path.name))]


def _newest(folder: Path) -> int:
    return max(_numbers(folder), default=0)


def _path(folder: Path, number: int) -> Path:
    return folder / f"lease-{number:06d}.json"


def _temporary(folder: Path, number: int) -> Path:
    return folder / f".lease-{number:06d}.partial"


def _read(folder: Path, number: int) -> dict | None:
    """A record; {} while it is being written, None if it is missing."""
    try:
        record = json.loads(_path(folder, number).read_text(encoding="utf-8"))
        return record if isinstance(record, dict) else {}
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}


def _lives(record: dict) -> bool:
    """Whether the process of a record is alive; the record must be of this machine."""
    return _process_start(record["pid"]) == record["started"] is not None


def _process_table() -> str | None:
    """An id of this process table: the boot id of the machine and the PID namespace. None if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _process_start(pid: int) -> str | None:
    """Start time of a live process in clock ticks, so that a reused PID is not mistaken for the holder; None if it is dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
