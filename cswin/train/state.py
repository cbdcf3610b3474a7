"""Training state: what an interrupted stage goes on from.

States lie in a folder that no workflow rule declares, beside the stage's declared files: an interrupted job's declared files
are deleted, these are not. Each is one file with a checksum, written under a temporary name, flushed to the disk and renamed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cswin.atomic import atomic_path
from cswin.errors import UserError

PATTERN = "state-*.safetensors"
COMPLETE, ACCEPTED = "complete.json", "accepted"


@dataclass
class State:
    """A point in training.

    Attributes:
        step: optimizer steps done on the whole schedule.
        arrays: the training step's parameters by name, and the best weights so far behind `best.`.
        meta: fingerprint, position in the history, best-so-far, scalar counters; plain JSON values.
    """

    step: int
    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]


class StateFolder:
    """The states of one stage, newest `keep` of them.

    Args:
        path: the folder; made when the first state is saved.
        keep: states kept, at least 2, so that a damaged newest one has a predecessor.
        say: receives messages for the user's log.
    """

    def __init__(self, path: Path, keep: int, say):
        self.path, self.keep, self.say = Path(path), keep, say
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

    def load(self) -> State | None:
        """The newest whole state; damaged ones are named and set aside. None where there is none."""
        for file in sorted(self.path.glob(PATTERN), reverse=True):
            try:
                return _read(file)
            except (SafetensorError, OSError, ValueError, KeyError) as error:
                aside = file.with_suffix(".damaged")
                file.replace(aside)
                self.say(f"{file} is damaged ({error}); kept as {aside.name}, going on from the state before it")
        return None

    def set_aside(self, why: str) -> Path:
        """Move the whole folder to a dated name beside it."""
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        aside = self.path.with_name(f"{self.path.name}.{stamp}")
        self.path.rename(aside)
        self.say(f"the state in {self.path} is not continued: {why}; it is kept as {aside} (delete it when it is not needed)")
        return aside

    def mark_complete(self, record: dict) -> None:
        """Note that the stage has ended."""
        with atomic_path(self.path / COMPLETE) as temporary:
            temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    @property
    def accepted(self) -> bool:
        """Whether the stage has ended and its result was used or its workflow succeeded."""
        return (self.path / ACCEPTED).exists()

    def _write_guarded(self, state: State) -> None:
        try:
            self._write(state)
        except BaseException as failure:  # reported by the next wait(), in the main thread
            self._failure = failure

    def _write(self, state: State) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        needed = sum(a.nbytes for a in state.arrays.values())
        free = shutil.disk_usage(self.path).free
        if free < needed * 1.05:
            raise UserError(
                f"{self.path}: the training state needs {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free; free some "
                "space and give the same command again, the older states are whole"
            )
        meta = {"step": str(state.step), "meta": json.dumps(state.meta), "digest": _digest(state)}
        with atomic_path(self.path / f"state-{state.step:09d}.safetensors") as temporary:
            save_file(state.arrays, temporary, meta)
        for old in sorted(self.path.glob(PATTERN))[: -self.keep]:
            old.unlink()


def accept(folder: Path) -> None:
    """Note that a completed stage's result is in use: to train it again from now on means from nothing.

    Without this note a stage that ended just before its workflow was killed would look like one whose repetition was asked for.
    """
    folder = Path(folder)
    if (folder / COMPLETE).exists():
        (folder / ACCEPTED).touch()


def _digest(state: State) -> str:
    digest = hashlib.blake2b(digest_size=32)
    digest.update(f"{state.step} {json.dumps(state.meta)}".encode())
    for name in sorted(state.arrays):
        array = state.arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _read(file: Path) -> State:
    with safe_open(file, framework="numpy") as reader:
        header = reader.metadata() or {}
        arrays = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118 (not a mapping)
    state = State(int(header["step"]), arrays, json.loads(header["meta"]))
    if _digest(state) != header["digest"]:
        raise ValueError("its checksum does not match")
    return state
