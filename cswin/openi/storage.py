"""Where data_url and train_url point: plain folders, or the platform's object storage through its `moxing` module.

Only calls that MoXing's documentation describes are used: `mox.file.exists`, `is_directory`, `list_directory`, `get_size`, `copy`
(one file), `copy_parallel` (a folder), `make_dirs`, `remove`, `read` and `write`. An object appears in the storage when it is whole;
a plain file is written under another name and renamed, so both hold whole files only, whenever the writer is killed.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from cswin.atomic import atomic_path
from cswin.errors import UserError

REMOTE = ("obs://", "s3://")
PAUSES = (2.0, 10.0, 30.0)  # seconds between tries where the network fails


class Storage(Protocol):
    """Files by their path or URL; the separator is `/`."""

    def exists(self, path: str) -> bool:
        """Whether there is a file or folder."""

    def is_folder(self, path: str) -> bool:
        """Whether it is a folder."""

    def names(self, folder: str) -> list[str]:
        """What lies directly in a folder; nothing where there is no folder."""

    def size(self, path: str) -> int:
        """Bytes of a file."""

    def get(self, path: str, local: Path) -> None:
        """Copy a file here: `local` is whole or not there."""

    def get_folder(self, path: str, local: Path) -> None:
        """Copy a folder here."""

    def put(self, local: Path, path: str) -> None:
        """Copy a file there; what was there is replaced."""

    def read(self, path: str) -> bytes | None:
        """A small file's content; None where there is none."""

    def write(self, path: str, text: str) -> None:
        """Write a small file."""

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""


def storage_for(url: str) -> Storage:
    """The storage of a URL: obs:// and s3:// through moxing, everything else a path of this machine.

    Raises:
        UserError: if the URL needs moxing and it is not here.
    """
    if not url.startswith(REMOTE):
        return Folder()
    try:
        import moxing
    except ImportError as error:
        raise UserError(
            f"{url}: reading object storage needs the module moxing, which the platform's Ascend images bring along ({error}); "
            "choose such an image, or give a folder"
        ) from error
    return Moxing(moxing)


def join(*parts: str) -> str:
    """Path or URL of parts, one `/` between them."""
    return "/".join([parts[0].rstrip("/"), *(part.strip("/") for part in parts[1:])])


class Folder:
    """Files of this machine, a mounted network folder among them; see `Storage`."""

    def exists(self, path: str) -> bool:
        return Path(path).exists()

    def is_folder(self, path: str) -> bool:
        return Path(path).is_dir()

    def names(self, folder: str) -> list[str]:
        return sorted(entry.name for entry in Path(folder).iterdir()) if Path(folder).is_dir() else []

    def size(self, path: str) -> int:
        return Path(path).stat().st_size

    def get(self, path: str, local: Path) -> None:
        _copy(Path(path), local)

    def get_folder(self, path: str, local: Path) -> None:
        shutil.copytree(path, local, dirs_exist_ok=True)

    def put(self, local: Path, path: str) -> None:
        _copy(local, Path(path))

    def read(self, path: str) -> bytes | None:
        return Path(path).read_bytes() if Path(path).is_file() else None

    def write(self, path: str, text: str) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def remove(self, path: str) -> None:
        Path(path).unlink(missing_ok=True)


class Moxing:
    """Object storage; see `Storage`.

    Args:
        moxing: the module.
        pauses: seconds before each further try of a call that failed.
    """

    def __init__(self, moxing: Any, pauses: tuple[float, ...] = PAUSES):
        self.file, self.pauses = moxing.file, pauses

    def exists(self, path: str) -> bool:
        return self._try(self.file.exists, path)

    def is_folder(self, path: str) -> bool:
        return self._try(self.file.is_directory, path)

    def names(self, folder: str) -> list[str]:
        if not self.exists(folder):
            return []
        return sorted(name.rstrip("/") for name in self._try(self.file.list_directory, folder))

    def size(self, path: str) -> int:
        return self._try(self.file.get_size, path)

    def get(self, path: str, local: Path) -> None:
        local.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(local) as temporary:
            self._try(self.file.copy, path, str(temporary))

    def get_folder(self, path: str, local: Path) -> None:
        self._try(self.file.copy_parallel, path, str(local))

    def put(self, local: Path, path: str) -> None:
        self._make_folder(path)
        self._try(self.file.copy, str(local), path)

    def read(self, path: str) -> bytes | None:
        return self._try(self.file.read, path, binary=True) if self.exists(path) else None

    def write(self, path: str, text: str) -> None:
        self._make_folder(path)
        self._try(self.file.write, path, text)

    def remove(self, path: str) -> None:
        if self.exists(path):
            self._try(self.file.remove, path)

    def _make_folder(self, path: str) -> None:
        folder = path.rpartition("/")[0]
        if not self.exists(folder):
            self._try(self.file.make_dirs, folder)

    def _try(self, call: Callable, path: str, *arguments, **options):
        """A call that is repeated where it fails: the module's errors are of many kinds, and most pass."""
        for pause in self.pauses:
            try:
                return call(path, *arguments, **options)
            except Exception:
                time.sleep(pause)
        try:
            return call(path, *arguments, **options)
        except Exception as error:
            raise UserError(
                f"{path}: the object storage refused it {len(self.pauses) + 1} times ({type(error).__name__}: {error}); check the "
                "path and the job's access rights"
            ) from error


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
