"""The storage behind data_url and train_url: local folders, or the platform's object storage through its `moxing` module.

Only documented calls of MoXing (`mox.file.…`) are used. An object appears in the storage only when it is complete; a local file is
written under another name and renamed. So both contain complete files only, whenever the writer is killed.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cswin.atomic import atomic_path
from cswin.errors import UserError

REMOTE = ("obs://", "s3://")
join = posixpath.join  # for paths and URLs
PAUSES = (2.0, 10.0, 30.0)  # seconds between tries after a network failure


def storage_for(url: str) -> Storage:
    """The storage of a URL: moxing for obs:// and s3://, otherwise the local file system.

    Raises:
        UserError: if the URL needs moxing and it is not installed.
    """
    if not url.startswith(REMOTE):
        return Storage()
    try:
        import moxing
    except ImportError as error:
        raise UserError(
            f"{url}: object storage needs the module moxing, which the platform's Ascend images include ({error}); choose such an "
            "image, or give a folder"
        ) from error
    return Storage(moxing.file, PAUSES)


class Storage:
    """Files by path or URL, with `/` as separator. Failed calls are repeated, because most network failures are temporary.

    Args:
        file: an object with the calls of `moxing.file`; by default the local file system, including mounted network folders.
        pauses: seconds before each further try.

    Raises (all methods):
        UserError: if the last try fails as well.
    """

    def __init__(self, file: Any = None, pauses: tuple[float, ...] = ()):
        self.file, self.pauses = file or _LOCAL, pauses
        self.is_local = file is None

    def exists(self, path: str) -> bool:
        """Whether there is a file or folder."""
        return self._try(self.file.exists, path)

    def is_folder(self, path: str) -> bool:
        """Whether it is a folder."""
        return self._try(self.file.is_directory, path)

    def names(self, folder: str, below: bool = False) -> list[str]:
        """The names in a folder or, with `below`, the paths of everything below it; empty if the folder does not exist."""
        if not self.exists(folder) or not self.is_folder(folder):
            return []
        found = self._try(lambda path: self.file.list_directory(path, recursive=below), folder)
        return sorted(name.rstrip("/") for name in found)

    def size(self, path: str) -> int:
        """Bytes of a file."""
        return self._try(self.file.get_size, path)

    def get(self, path: str, local: Path) -> None:
        """Copy a file to this machine: `local` is then complete or missing."""
        local.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(local) as temporary:
            self._try(self.file.copy, path, str(temporary))

    def get_folder(self, path: str, local: Path) -> None:
        """Copy a folder to this machine."""
        self._try(self.file.copy_parallel, path, str(local))

    def put(self, local: Path, path: str) -> None:
        """Copy a file to the storage; an existing one is replaced. The file may grow during the copy."""
        here = local.stat().st_size
        self._try(lambda target: self.file.copy(str(local), target), path)
        if (there := self.size(path)) < here:
            raise UserError(f"{path}: has {there:,} bytes after copying, not {here:,}; is the storage full?")

    def read(self, path: str) -> bytes | None:
        """The content of a small file; None if it does not exist."""
        return self._try(lambda name: self.file.read(name, binary=True), path) if self.exists(path) else None

    def write(self, path: str, text: str) -> None:
        """Write a small file."""
        self._try(self.file.write, path, text)

    def remove(self, path: str) -> None:
        """Remove a file, if it exists."""
        if self.exists(path):
            self._try(self.file.remove, path)

    def _try(self, call: Callable, path: str, *arguments: str) -> Any:
        for pause in self.pauses:
            with contextlib.suppress(Exception):  # moxing raises many kinds of errors
                return call(path, *arguments)
            time.sleep(pause)
        try:
            return call(path, *arguments)
        except Exception as error:
            raise UserError(
                f"{path}: access failed {len(self.pauses) + 1} times ({type(error).__name__}: {error}); check the path and the job's "
                "access rights"
            ) from error


@contextlib.contextmanager
def _new_file(path: str) -> Iterator[Path]:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        yield temporary


def _copy(path: str, target: str) -> None:
    with _new_file(target) as temporary:
        shutil.copyfile(path, temporary)


def _write(path: str, text: str) -> None:
    with _new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


_LOCAL = SimpleNamespace(
    exists=os.path.exists, is_directory=os.path.isdir, get_size=os.path.getsize, copy=_copy,
    list_directory=lambda folder, recursive=False: [
        str(path.relative_to(folder)) for path in Path(folder).glob("**/*" if recursive else "*")
    ],
    copy_parallel=lambda path, target: shutil.copytree(path, target, dirs_exist_ok=True), remove=os.remove, write=_write,
    read=lambda path, binary: Path(path).read_bytes(),
)  # fmt: skip
