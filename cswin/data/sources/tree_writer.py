"""Writes a tree of extracted images, completely or not at all.

Files are written to `<output>.partial`, which is renamed to `<output>` when all of them are on the disk. A journal in the partial
tree records up to which position of the archive all files are written; a killed extraction resumes there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cswin.atomic import atomic_path
from cswin.data.disk import LOCK, exclusive, flush_file_system, write_error
from cswin.distributed.cores import usable_cores
from cswin.errors import UserError

MARKER = ".cswin-extracted.json"
_JOURNAL = ".journal-2.json"  # the number changes with the content of cursors
_BATCH_BYTES, _BATCH_FILES = 1 << 20, 64
JOURNAL_SECONDS = 30.0
_MOST_THREADS = 16


class TreeWriter:
    """Writes files below a folder with several threads; see `open_tree`.

    Attributes:
        cursor: position of the killed extraction, None at the start.
        written: number of files in the tree, with those of earlier attempts.
    """

    def __init__(self, output: Path, source: dict[str, Any], journal_seconds: float):
        self.output, self.partial = output, output.with_name(output.name + ".partial")
        self.source, self.journal_seconds = source, journal_seconds
        self.cursor: Any = None
        self.written = 0
        self._read_journal()
        # Files that the last attempt wrote after its last journal entry exist already and are written again.
        self._flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | (os.O_EXCL if self.cursor is None else os.O_TRUNC)
        self._pool = ThreadPoolExecutor(min(usable_cores(), _MOST_THREADS), thread_name_prefix="write")
        self._limit = 4 * min(usable_cores(), _MOST_THREADS)
        self._pending: deque[Future] = deque()
        self._batch: list[tuple[str, bytes]] = []
        self._batch_bytes = 0
        self._folders: set[str] = set()
        self._journal_due = time.monotonic() + journal_seconds

    def add(self, folder: str, name: str, data: bytes) -> None:
        """Write a file; the reader of the archive has checked `folder` (with `/`) and `name`."""
        if folder not in self._folders:
            with self._writing():
                (self.partial / folder).mkdir(parents=True, exist_ok=True)
            self._folders.add(folder)
        self._batch.append((f"{self.partial}/{folder}/{name}", data))
        self._batch_bytes += len(data)
        self.written += 1
        if self._batch_bytes >= _BATCH_BYTES or len(self._batch) >= _BATCH_FILES:
            self._submit()

    def reached(self, cursor: Any) -> None:
        """All files before `cursor` (a JSON value) were added; from time to time the journal records this."""
        if time.monotonic() < self._journal_due:
            return
        self._drain()
        with self._writing():
            flush_file_system(self.partial)
        self._write_json(_JOURNAL, {"source": self.source, "cursor": cursor, "written": self.written})
        self._journal_due = time.monotonic() + self.journal_seconds

    def complete(self, check: Callable[[dict[str, int]], dict[str, Any]]) -> dict[str, Any]:
        """Move the complete tree to its final place.

        Args:
            check: gets the number of files by folder, and raises UserError if the tree must not be used; its result is stored in
                the marker beside the counts.

        Returns:
            The content of the marker in the tree: source, facts, and the number of files by folder.

        Raises:
            UserError: if the tree has fewer files than were added, because some had the same path.
        """
        self._drain()
        counts = count_files(self.partial)
        if sum(counts.values()) != self.written:
            raise UserError(
                f"{self.output}: {self.written} files were extracted but {sum(counts.values())} are there: the archive holds "
                f"duplicate names. Remove {self.partial} and run again to see the first of them"
            )
        marker = {"source": self.source, **check(counts), "files": counts}
        with self._writing():
            flush_file_system(self.partial)
            self._write_json(MARKER, marker)
            for name in (_JOURNAL, LOCK):
                (self.partial / name).unlink(missing_ok=True)
            self.partial.rename(self.output)
            flush_file_system(self.output.parent)
        return marker

    def close(self) -> None:
        """End the threads; files that were not begun are not written."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self) -> None:
        if len(self._pending) >= self._limit:
            self._wait(self._pending.popleft())
        self._pending.append(self._pool.submit(_write_files, self._batch, self._flags))
        self._batch, self._batch_bytes = [], 0

    def _drain(self) -> None:
        self._submit()
        while self._pending:
            self._wait(self._pending.popleft())

    def _wait(self, future: Future) -> None:
        with self._writing():
            future.result()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except FileExistsError as error:
            name = os.path.relpath(error.filename, self.partial)
            raise UserError(f"the archive holds {name!r} twice: repack it with unique names") from error
        except OSError as error:
            raise write_error(self.partial, error) from error

    def _read_journal(self) -> None:
        try:
            journal = json.loads((self.partial / _JOURNAL).read_text())
        except (OSError, ValueError):
            return
        if journal.get("source") == self.source:
            self.cursor, self.written = journal["cursor"], journal["written"]

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        with atomic_path(self.partial / name) as temporary:
            temporary.write_text(json.dumps(content))


@contextlib.contextmanager
def open_tree(output: Path, source: dict[str, Any], journal_seconds: float = JOURNAL_SECONDS) -> Iterator[TreeWriter]:
    """A tree to write to; it resumes a killed extraction of the same source.

    Args:
        output: the final folder.
        source: identity of the archives (names, sizes, times); a partial tree of another source is removed.
        journal_seconds: time between two entries of the journal.

    Raises:
        UserError: if `output` exists, another process is extracting to it, or the disk is full.
    """
    partial = output.with_name(output.name + ".partial")
    with exclusive(partial):
        writer = TreeWriter(output, source, journal_seconds)
        if writer.cursor is None:
            _clear(partial)
        try:
            yield writer
        finally:
            writer.close()


def _clear(partial: Path) -> None:
    for entry in partial.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink()


def existing_tree(output: Path, source: dict[str, Any]) -> dict[str, Any] | None:
    """The content of the marker of a complete tree of this source; None if there is no tree.

    A tree of another source, or one with missing files, is removed.

    Raises:
        UserError: if `output` has content that this program did not extract.
    """
    if not output.exists():
        return None
    try:
        marker = json.loads((output / MARKER).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{output}: exists and was not made by `cswin data extract`; move it away or choose another folder"
        ) from error
    if marker["source"] == source and marker["files"] == count_files(output):
        return marker
    remove_tree(output)
    return None


def remove_tree(output: Path) -> None:
    """Remove an extracted tree; the rest after a kill in between does not count as a tree.

    Raises:
        UserError: if this program did not extract it.
    """
    doomed = output.with_name(output.name + ".removed")
    if output.exists():
        if output.is_symlink() or not (output / MARKER).is_file():
            raise UserError(f"{output}: was not made by `cswin data extract` and is not removed; remove it yourself")
        shutil.rmtree(doomed, ignore_errors=True)
        output.rename(doomed)
    if doomed.exists():
        shutil.rmtree(doomed)


def count_files(tree: Path) -> dict[str, int]:
    """Number of files by folder ("train/n01440764": 1300), in the order of the names; hidden entries are not counted."""
    counts = {}
    for split in sorted(entry.name for entry in os.scandir(tree) if entry.is_dir()):
        for folder in sorted(entry.name for entry in os.scandir(tree / split) if entry.is_dir()):
            counts[f"{split}/{folder}"] = sum(not entry.name.startswith(".") for entry in os.scandir(tree / split / folder))
    return counts


def _write_files(batch: list[tuple[str, bytes]], flags: int) -> None:
    for path, data in batch:
        descriptor = os.open(path, flags, 0o666)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
        finally:
            os.close(descriptor)
