"""The history of a stage: JSON lines, one per step and one per epoch, each exactly once.

When training resumes from a state, the lines written after this state are cut off, so no step appears twice.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cswin.errors import UserError

STEP_COLUMNS = ("step", "loss", "lr", "seconds", "images_per_s", "wait")  # keys of a step that `read_columns` returns
BLOCK = 1 << 22  # bytes that `read_columns` decodes at a time

if TYPE_CHECKING:
    from cswin.run.events import EventFile


class History:
    """Append-only JSON lines.

    Args:
        path: the file.
        size: bytes that belong to the state from which training resumes; the rest is cut off.
        events: receives the existing rows, then each new row, and is closed with the history.
        guard: called before each write; raises if this process may no longer write.
    """

    def __init__(self, path: Path, size: int = 0, events: EventFile | None = None, guard: Callable[[], None] | None = None):
        path, self.guard = Path(path), guard
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        if path.stat().st_size < size:
            raise UserError(
                f"{path}: shorter than when the state was saved ({size} bytes); restore it from a copy, or delete the "
                "state folder beside it to train the stage again"
            )
        self._file.truncate(size)
        self._file.seek(0, os.SEEK_END)
        self._events = events
        if events:
            events.add(iterate_history(path))

    def append(self, rows: Iterable[dict]) -> None:
        """Write rows and hand them to the operating system.

        Raises:
            UserError: if they cannot be written (a full disk).
        """
        if self.guard is not None:
            self.guard()
        rows = list(rows)
        try:
            self._file.write(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"{self._file.name}: cannot be written ({error.strerror}); fix this (df -h) and give the same command again: it "
                "resumes from the last state"
            ) from error
        if self._events:
            self._events.add(rows)

    def size(self) -> int:
        """Flush to the disk; returns the size in bytes."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # buffered rows do not fit on a full disk; append() has reported it
            self._file.close()
        if self._events:
            self._events.close()


def iterate_history(path: Path) -> Iterator[dict]:
    """Complete rows, one by one; a last line that is still being written is left out."""
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
            except ValueError:
                raise _damaged(path, number) from None
            if not isinstance(row, dict):
                raise _damaged(path, number)
            yield row


def _damaged(path: Path, line: int | None = None) -> UserError:
    where = f"line {line} is damaged" if line else "is damaged"
    return UserError(f"{path}: {where}; restore the file from a copy")


def read_history(path: Path) -> list[dict]:
    """All complete rows."""
    return list(iterate_history(path))


def read_columns(path: Path) -> tuple[dict[str, np.ndarray], list[dict]]:
    """All complete rows: steps as columns, because a long run has 600,000 of them; the few other rows as dictionaries.

    Returns:
        `STEP_COLUMNS`, each (steps,) float64 with NaN where a step has no value; and the rows of other kinds, in order.
    """
    import msgspec  # takes a third of json's time; for each picture of a long stage 120 MB are read

    fields = [("kind", str), *((name, float | None, None) for name in STEP_COLUMNS)]
    decode = msgspec.json.Decoder(msgspec.defstruct("Row", fields, gc=False)).decode_lines
    columns, others = {name: [np.empty(0)] for name in STEP_COLUMNS}, []
    with Path(path).open("rb") as file:
        while lines := file.readlines(BLOCK):
            if growing := not lines[-1].endswith(b"\n"):
                lines.pop()
            try:
                rows = decode(b"".join(lines))
            except msgspec.MsgspecError:
                for _ in iterate_history(path):  # which names the line, unless this is JSON with a wrong type
                    pass
                raise _damaged(path) from None
            others += [json.loads(line) for line, row in zip(lines, rows, strict=True) if row.kind != "step"]
            steps = [row for row in rows if row.kind == "step"]
            for name, parts in columns.items():
                parts.append(np.array(list(map(attrgetter(name), steps)), dtype=float))
            if growing:  # rows appended in the meantime would begin in the middle of a line
                break
    return {name: np.concatenate(parts) for name, parts in columns.items()}, others


def read_tail(path: Path, size: int) -> list[dict]:
    """The complete rows in the last `size` bytes; the time does not depend on the length of the file."""
    with Path(path).open("rb") as file:
        begin = max(0, file.seek(0, os.SEEK_END) - size)
        file.seek(max(0, begin - 1))  # one byte more shows whether the first line is complete
        lines = file.read().splitlines(keepends=True)
    return [json.loads(line) for line in (lines[1:] if begin else lines) if line.endswith(b"\n")]
