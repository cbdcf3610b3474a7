"""One job per train_url: a record with a heartbeat in the storage."""

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

SILENT_BEATS = 6  # heartbeats that another job must miss before it is dead


@contextlib.contextmanager
def ownership(storage: Storage, url: str, beat: float, say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Exclusive use of a place in the storage for as long as the context lasts.

    Clocks of two machines may differ, so nobody compares times: a job that finds another one's record watches it, and the other
    is alive if the record changes. A job that finds its own record replaced has lost the place and must write nothing more.

    Args:
        storage, url: the place.
        beat: seconds between heartbeats.
        say: receives messages.

    Yields:
        A function that tells whether the place is lost.

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
            except UserError as error:  # the network is away; the job goes on
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
        with contextlib.suppress(UserError):  # what is left behind costs the next job a short wait
            if not lost():
                storage.remove(path)


def _wait_for_silence(storage: Storage, path: str, before: dict, beat: float, say: Callable[[str], None]) -> None:
    name = f"another job (host {before.get('host', '?')}, process {before.get('pid', '?')})"
    say(f"{path}: {name} was at work here; waiting {SILENT_BEATS * beat:.0f} s for a sign of life")
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
