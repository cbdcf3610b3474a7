"""The saved states of a stage: what an interrupted stage is resumed from.

States lie in a folder that no workflow rule declares, beside the stage's declared files: an interrupted job's declared files
are deleted, these are not. Each is one file with a checksum, written under a temporary name, flushed to the disk and renamed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cswin.atomic import atomic_path
from cswin.errors import UserError
from cswin.layout import HISTORY
from cswin.run.repeat import ACCEPTED, COMPLETE, REPEAT
from cswin.train.state import State

PATTERN, PARTIAL = "state-*.safetensors", ".state-*.partial.safetensors"
VERSIONS = "accepted_versions.json"


@dataclass
class SaveFigures:
    """What saving cost.

    Attributes:
        saves: number of states written.
        bytes: size of the last one.
        seconds: sum of the times from the start of a write to its being on the disk.
        slowest: the longest of them.
        held_up: sum of the seconds that training waited for saving.
    """

    saves: int = 0
    bytes: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    held_up: float = 0.0


class StateFolder:
    """The states of one stage, newest `keep` of them.

    Args:
        path: the folder; made when the first state is saved.
        keep: states kept, at least 2, so that a damaged newest one has a predecessor.
        say: receives messages for the user's log.
        guard: called last before a state gets its name; raises if this process may not write any more.
    """

    def __init__(self, path: Path, keep: int, say, guard: Callable[[], None] | None = None):
        self.path, self.keep, self.say, self.guard = Path(path), keep, say, guard
        self.figures = SaveFigures()
        self._writer: threading.Thread | None = None
        self._failure: BaseException | None = None

    def save(self, state: State, background: bool = True) -> None:
        """Write a state; in the background unless told otherwise.

        Raises:
            UserError: if this write, or the one before in the background, failed (a full disk, say). Older states are whole.
        """
        self.wait()
        self._writer = threading.Thread(target=self._write_guarded, args=(state,), name="state-writer")
        self._writer.start()
        if not background:
            self.wait()

    def wait(self) -> None:
        """Until the write under way is on the disk; raises what went wrong in it."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def check(self) -> None:
        """Raise what went wrong in the background, if anything did; waits for nothing."""
        if self._failure is not None:
            self.wait()

    def load(self) -> State | None:
        """The newest whole state; damaged ones are named and set aside. None where there is none.

        Raises:
            UserError: if a state cannot be read at all (permissions, a file system that is away): it may be whole.
        """

        def keep(file: Path, error: Exception) -> None:
            aside = file.with_suffix(".damaged")
            file.replace(aside)
            self.say(f"{file} is damaged ({error}); kept as {aside.name}, going on from the state before it")

        return self._newest_whole(keep)

    def look(self) -> State | None:
        """What `load` would return; nothing is changed."""
        return self._newest_whole(lambda file, error: self.say(f"{file} is damaged ({error})"))

    def _newest_whole(self, damaged: Callable[[Path, Exception], None]) -> State | None:
        for file in sorted(self.path.glob(PATTERN), reverse=True):
            try:
                return _read(file)
            except OSError as error:
                raise UserError(
                    f"{file}: cannot be read ({error.strerror or error}); nothing was changed. Make it readable and give the same "
                    "command again, or remove it to go on from the state before it"
                ) from error
            except (SafetensorError, ValueError, KeyError) as error:
                damaged(file, error)
        return None

    def set_aside(self, why: str) -> Path:
        """Move the whole folder, and the history with it, to a dated name beside it."""
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        aside, history = self.path.with_name(f"{self.path.name}.{stamp}"), self.path.with_name(HISTORY)
        if history.exists():
            history.rename(self.path / HISTORY)
        self.path.rename(aside)
        self.say(f"the state in {self.path} is not continued: {why}; it is kept as {aside} (delete it when it is not needed)")
        return aside

    def bring_history_back(self) -> None:
        """Undo a `set_aside` that was killed between its two steps."""
        if (inside := self.path / HISTORY).exists():
            inside.rename(self.path.with_name(HISTORY))

    @property
    def accepted_versions(self) -> dict[str, Any] | None:
        """With which code the user has decided to go on, see `code_of`; None if there was no such decision."""
        return self._note(VERSIONS)

    def accept_versions(self, code: dict[str, Any]) -> None:
        """Note that the stage may go on with this code."""
        self._write_note(VERSIONS, code)

    @property
    def completed(self) -> dict[str, Any]:
        """What `mark_complete` noted; empty if the stage has not ended."""
        return self._note(COMPLETE) or {}

    def mark_complete(self, record: dict) -> None:
        """Note that the stage has ended."""
        self._write_note(COMPLETE, record)

    @property
    def repeat(self) -> bool:
        """Whether the stage's repetition from nothing was asked for."""
        return (self.path / REPEAT).exists()

    def reopen(self) -> None:
        """Note that the stage's files are about to be made (again): its result is not in use until somebody says so."""
        (self.path / ACCEPTED).unlink(missing_ok=True)

    def _note(self, name: str) -> dict[str, Any] | None:
        """A JSON file beside the states; None where there is none."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def _write_note(self, name: str, content: dict[str, Any]) -> None:
        with atomic_path(self.path / name) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def _write_guarded(self, state: State) -> None:
        try:
            self._write(state)
        except BaseException as failure:  # reported by the next wait(), in the main thread
            self._failure = failure

    def _write(self, state: State) -> None:
        began = time.monotonic()
        file = self.path / f"state-{state.step:09d}.safetensors"
        needed = sum(a.nbytes for a in state.arrays.values())
        meta = {"step": str(state.step), "meta": json.dumps(state.meta), "digest": _digest(state)}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for stale in self.path.glob(PARTIAL):  # of a killed process; there is one writer
                stale.unlink()
            free = shutil.disk_usage(self.path).free
            if free < needed * 1.05:
                raise self._not_written(f"it needs {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free")
            with atomic_path(file, self.guard) as temporary:
                save_file(state.arrays, temporary, meta)
            for old in sorted(self.path.glob(PATTERN))[: -self.keep]:
                old.unlink()
            self._count(file.stat().st_size, time.monotonic() - began)
        except (SafetensorError, OSError) as error:  # SafetensorError: its way to say that the disk is full
            raise self._not_written(error) from error

    def _not_written(self, reason) -> UserError:
        return UserError(
            f"{self.path}: the training state cannot be written ({reason}); free some space (df -h) and give the same command "
            "again, the older states are whole"
        )

    def _count(self, size: int, seconds: float) -> None:
        figures = self.figures
        figures.saves, figures.bytes = figures.saves + 1, size
        figures.seconds, figures.slowest = figures.seconds + seconds, max(figures.slowest, seconds)


def _digest(state: State) -> str:
    digest = hashlib.blake2b(digest_size=32)
    digest.update(f"{state.step} {json.dumps(state.meta)}".encode())
    for name in sorted(state.arrays):
        array = state.arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _read(file: Path) -> State:
    file.open("rb").close()  # what cannot be opened is not damaged: safetensors does not tell the two apart
    with safe_open(file, framework="numpy") as reader:
        header = reader.metadata() or {}
        arrays = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118 (not a mapping)
    state = State(int(header["step"]), arrays, json.loads(header["meta"]))
    if _digest(state) != header["digest"]:
        raise ValueError("its checksum does not match")
    return state
