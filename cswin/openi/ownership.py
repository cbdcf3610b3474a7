"""Only one job per train_url: a record with a heartbeat in the storage."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

from cswin.errors import UserError
from cswin.openi.storage import Storage, join

SILENT_BEATS = 6  # missed heartbeats after which another job counts as dead


@contextlib.contextmanager
def ownership(storage: Storage, url: str, beat: float, say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Exclusive use of a URL in the storage while the context lasts.

    The clocks of two machines may differ, so times are not compared: a job that finds another job's record watches it, and the other
    job is alive if the record changes. A job whose own record was replaced has lost the URL and must not write there.

    Args:
        storage, url: the URL to own.
        beat: seconds between heartbeats.
        say: receives messages.

    Yields:
        A function that returns whether the URL is lost.

    Raises:
        UserError: if another job is at work there.
    """
    path, ended, nonce = join(url, "owner.json"), threading.Event(), os.urandom(8).hex()
    me = {"host": socket.gethostname(), "pid": os.getpid(), "nonce": nonce, "every_s": beat}

    def lost() -> bool:
        return (_read(storage, path) or {}).get("nonce") != nonce

    def keep() -> None:
        while not ended.wait(beat):
            try:
                if lost():
                    return
                storage.write(path, json.dumps(me | {"beat": os.urandom(8).hex()}))
            except UserError as error:  # a network failure; the job continues
                say(f"heartbeat: {error}")

    if (before := _read(storage, path)) is not None:
        _wait_for_silence(storage, path, before, max(beat, before.get("every_s", 0.0)), say)
    storage.write(path, json.dumps(me))
    heart = threading.Thread(target=keep, name="train-url-heartbeat", daemon=True)
    heart.start()
    try:
        yield lost
    finally:
        ended.set()
        heart.join()
        with contextlib.suppress(UserError):  # a remaining record costs the next job only a short wait
            if not lost():
                storage.remove(path)


def _wait_for_silence(storage: Storage, path: str, before: dict, beat: float, say: Callable[[str], None]) -> None:
    name = f"another job (host {before.get('host', '?')}, process {before.get('pid', '?')})"
    say(f"{path}: {name} was at work here; waiting {SILENT_BEATS * beat:.0f} s for its next heartbeat")
    until, now = time.monotonic() + SILENT_BEATS * beat, before
    while time.monotonic() < until and now is not None:
        if now != before:
            raise UserError(f"{path}: {name} is at work with this train_url; wait for it, end it, or give another train_url")
        time.sleep(beat / 2)
        now = _read(storage, path)


def _read(storage: Storage, path: str) -> dict | None:
    content = storage.read(path)
    try:
        return None if content is None else json.loads(content)
    except ValueError:
        return {}
