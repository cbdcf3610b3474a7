"""Atomic writing of files: after an interruption a file is either the old one or the new one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from cswin.errors import UserError


@contextlib.contextmanager
def atomic_path(path: str | Path, check: Callable[[], None] | None = None) -> Iterator[Path]:
    """A temporary path to write to. At the end the file is flushed to the disk and atomically replaces `path`.

    The temporary file is in the same folder (a rename does not cross file systems) under a fixed hidden name with the same
    suffix. So the next attempt overwrites the file of a killed process, and the disk does not fill up. The data reach the disk
    before the name: even after a power failure `path` is complete or unchanged. If the body raises, the temporary file is
    removed and `path` is unchanged; the same if `check`, which is called last before the rename, raises.

    A link stays a link; its target is replaced.

    Raises:
        UserError: if the folder is missing or cannot be written, or the disk is full; if the path is a device or a pipe, which a
            rename would replace by a file.
    """
    path = Path(os.path.realpath(path)) if Path(path).is_symlink() else Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path}: is a device or a pipe; name a file")
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        try:
            temporary.unlink(missing_ok=True)
            temporary.touch()
            mode = temporary.stat().st_mode & 0o777  # the permissions of the user's umask; some writers set their own
            yield temporary
            temporary.chmod(mode)
            _flush(temporary, os.O_RDWR)
            if check is not None:
                check()
            temporary.replace(path)
            _flush(path.parent, os.O_RDONLY)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); check that the folder exists, its "
                        "permissions and the free space") from error  # fmt: skip


class _Tried(Exception):
    pass


def require_writable(*paths: Path | None) -> None:
    """Before long work: raise the UserError of `atomic_path` if one of these files could not be written. No file changes."""
    for path in filter(None, paths):
        with contextlib.suppress(_Tried), atomic_path(path):
            raise _Tried


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
