"""The saved states of a stage, from which an interrupted stage is resumed.

They are in a folder that no workflow rule declares, because Snakemake deletes the declared files of an interrupted job. Each state
is one file with a checksum. It is written under a temporary name, flushed to the disk and renamed.
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
    """The cost of saving.

    Attributes:
        saves: number of states written.
        bytes: size of the last one.
        seconds: total time from the start of each write until the file is on the disk.
        slowest: the longest of these times, in seconds.
        held_up: seconds that training waited for saving, in total.
    """

    saves: int = 0
    bytes: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    held_up: float = 0.0


class StateFolder:
    """The newest `keep` states of one stage.

    Args:
        path: the folder; created when the first state is saved.
        keep: number of states to keep, at least 2, so that a damaged one has a predecessor.
        say: receives messages for the user's log.
        guard: called immediately before a state file is renamed; raises if this process may no longer write.
    """

    def __init__(self, path: Path, keep: int, say, guard: Callable[[], None] | None = None):
        self.path, self.keep, self.say, self.guard = Path(path), keep, say, guard
        self.figures = SaveFigures()
        self._writer: threading.Thread | None = None
        self._failure: BaseException | None = None

    def save(self, state: State, background: bool = True) -> None:
        """Write a state; in the background unless told otherwise.

        Raises:
            UserError: if this write, or the previous one in the background, failed (full disk). Older states are intact.
        """
        self.wait()
        self._writer = threading.Thread(target=self._write_guarded, args=(state,), name="state-writer")
        self._writer.start()
        if not background:
            self.wait()

    def wait(self) -> None:
        """Wait until the current write is on the disk; raises its error."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def check(self) -> None:
        """Raise the error of a failed background write, without waiting for the current one."""
        if self._failure is not None:
            self.wait()

    def load(self) -> State | None:
        """The newest undamaged state, or None. Damaged ones are renamed, with a message.

        Raises:
            UserError: if a state cannot be opened (permissions, unreachable file system): it may be undamaged.
        """

        def keep(file: Path, error: Exception) -> None:
            aside = file.with_suffix(".damaged")
            file.replace(aside)
            self.say(f"{file} is damaged ({error}); kept as {aside.name}, the previous state is used")

        return self._newest_whole(keep)

    def look(self) -> State | None:
        """The result of `load`, without renaming anything."""
        return self._newest_whole(lambda file, error: self.say(f"{file} is damaged ({error})"))

    def _newest_whole(self, damaged: Callable[[Path, Exception], None]) -> State | None:
        for file in sorted(self.path.glob(PATTERN), reverse=True):
            try:
                return _read(file)
            except OSError as error:
                raise UserError(
                    f"{file}: cannot be read ({error.strerror or error}); nothing was changed. Make it readable and give the same "
                    "command again, or remove it to resume from the previous state"
                ) from error
            except (SafetensorError, ValueError, KeyError) as error:
                damaged(file, error)
        return None

    def set_aside(self, why: str) -> Path:
        """Move the history into the folder, and rename the folder with the date."""
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        aside, history = self.path.with_name(f"{self.path.name}.{stamp}"), self.path.with_name(HISTORY)
        if history.exists():
            history.rename(self.path / HISTORY)
        self.path.rename(aside)
        self.say(f"the state in {self.path} is not continued: {why}; it is kept as {aside} (you may delete it)")
        return aside

    def bring_history_back(self) -> None:
        """Undo a `set_aside` that was killed between its two steps."""
        if (inside := self.path / HISTORY).exists():
            inside.rename(self.path.with_name(HISTORY))

    @property
    def accepted_versions(self) -> dict[str, Any] | None:
        """The versions of the code with which the user has decided to continue, see `code_of`; None without such a decision."""
        return self._note(VERSIONS)

    def accept_versions(self, code: dict[str, Any]) -> None:
        """Note that the stage may continue with these versions of the code."""
        self._write_note(VERSIONS, code)

    @property
    def completed(self) -> dict[str, Any]:
        """The record that `mark_complete` wrote; empty if the stage is not complete."""
        return self._note(COMPLETE) or {}

    def mark_complete(self, record: dict) -> None:
        """Note that the stage is complete."""
        self._write_note(COMPLETE, record)

    @property
    def repeat(self) -> bool:
        """Whether training the stage again from its first step was requested."""
        return (self.path / REPEAT).exists()

    def reopen(self) -> None:
        """Remove the mark `accepted`: the stage's files are about to be written, and no later job has used them yet."""
        (self.path / ACCEPTED).unlink(missing_ok=True)

    def _note(self, name: str) -> dict[str, Any] | None:
        """The content of a JSON file beside the states; None if it does not exist."""
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
        except BaseException as failure:  # raised by the next wait() in the main thread
            self._failure = failure

    def _write(self, state: State) -> None:
        began = time.monotonic()
        file = self.path / f"state-{state.step:09d}.safetensors"
        needed = sum(a.nbytes for a in state.arrays.values())
        meta = {"step": str(state.step), "meta": json.dumps(state.meta), "digest": _digest(state)}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for stale in self.path.glob(PARTIAL):  # left by a killed process: this is the only writer
                stale.unlink()
            free = shutil.disk_usage(self.path).free
            if free < needed * 1.05:
                raise self._not_written(f"it needs {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free")
            with atomic_path(file, self.guard) as temporary:
                save_file(state.arrays, temporary, meta)
            for old in sorted(self.path.glob(PATTERN))[: -self.keep]:
                old.unlink()
            self._count(file.stat().st_size, time.monotonic() - began)
        except (SafetensorError, OSError) as error:  # safetensors reports a full disk as SafetensorError
            raise self._not_written(error) from error

    def _not_written(self, reason) -> UserError:
        return UserError(
            f"{self.path}: the training state cannot be written ({reason}); free some space (df -h) and give the same command "
            "again. The older states are intact"
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
    file.open("rb").close()  # raises OSError if it cannot be opened; safetensors would report it as damaged
    with safe_open(file, framework="numpy") as reader:
        header = reader.metadata() or {}
        arrays = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118 (not a mapping)
    state = State(int(header["step"]), arrays, json.loads(header["meta"]))
    if _digest(state) != header["digest"]:
        raise ValueError("its checksum does not match")
    return state
