"""One job per train_url: a record with a heartbeat in the storage.

Clocks of two machines may differ, so nobody compares times: a job that finds another one's record watches it, and the other is
alive if the record changes. A job that finds its own record replaced has lost the place and stops writing.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable

from cswin.errors import UserError
from cswin.openi.storage import Storage, join

RECORD = "owner.json"
SILENT_BEATS = 6  # heartbeats that another job must miss before it is dead


class Ownership:
    """Exclusive use of a place in the storage for as long as the context lasts.

    Args:
        storage, url: the place.
        beat: seconds between heartbeats.
        say: receives messages.

    Raises (on entering):
        UserError: if another job is at work there.
    """

    def __init__(self, storage: Storage, url: str, beat: float, say: Callable[[str], None]):
        self.storage, self.path, self.beat, self.say = storage, join(url, RECORD), beat, say
        self.me = {"host": socket.gethostname(), "pid": os.getpid(), "nonce": os.urandom(8).hex(), "every_s": beat}
        self._beats, self._ended, self._lost = 0, threading.Event(), False

    def __enter__(self) -> Ownership:
        self._wait_for_silence()
        self._write()
        self._thread = threading.Thread(target=self._keep, name="train-url-heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(UserError):  # what is left behind costs the next job a short wait
            if not self.lost():
                self.storage.remove(self.path)

    def lost(self) -> bool:
        """Whether another job has taken the place."""
        holder = self._read()
        self._lost = self._lost or (holder is not None and holder.get("nonce") != self.me["nonce"])
        return self._lost

    def _wait_for_silence(self) -> None:
        if (holder := self._read()) is None:
            return
        beat = max(self.beat, holder.get("every_s", 0.0))
        self.say(f"{self.path}: {_name(holder)} was at work here; waiting {SILENT_BEATS * beat:.0f} s for a sign of life")
        until = time.monotonic() + SILENT_BEATS * beat
        while time.monotonic() < until:
            time.sleep(beat / 2)
            if (now := self._read()) is None:
                return
            if now != holder:
                raise UserError(
                    f"{self.path}: {_name(now)} is at work with this train_url; wait for it, end it, or give another train_url"
                )

    def _keep(self) -> None:
        while not self._ended.wait(self.beat):
            try:
                if self.lost():
                    return
                self._write()
            except UserError as error:  # the network is away; the job goes on
                self.say(f"heartbeat: {error}")

    def _write(self) -> None:
        self._beats += 1
        self.storage.write(self.path, json.dumps(self.me | {"beat": self._beats}))

    def _read(self) -> dict | None:
        content = self.storage.read(self.path)
        try:
            return None if content is None else json.loads(content)
        except ValueError:
            return {"nonce": "?"}


def _name(holder: dict) -> str:
    return f"another job (host {holder.get('host', '?')}, process {holder.get('pid', '?')})"
