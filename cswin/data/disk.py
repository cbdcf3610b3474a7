"""The disk that images are written to: room, locks, errors, flushing."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from cswin.errors import UserError
from cswin.progress import size_text

LOCK = ".lock"
_MARGIN = 1.05  # beside the bytes of the images: partly filled blocks and folders


@contextlib.contextmanager
def exclusive(folder: Path, wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Make a folder, and keep a second process out of it; a killed process keeps nobody out.

    Args:
        folder: the folder.
        wait: called before waiting for another process that is in there; None: not to wait.

    Raises:
        UserError: if another process is in there, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a")
    except OSError as error:
        raise write_error(folder, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if wait is None:
                raise UserError(f"{folder}: another process is writing there; wait for it or stop it") from error
            wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            # Some cluster file systems have no locks; there it is up to Snakemake alone.
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                raise write_error(folder, error) from error
        yield


def check_space(output: Path, needed: int, what: str) -> None:
    """Refuse to begin what the disk cannot hold.

    Args:
        output: the folder to be made.
        needed: bytes of data.
        what: for the message.

    Raises:
        UserError: if less is free than that plus a margin for blocks and folders.
    """
    folder = output.parent
    folder.mkdir(parents=True, exist_ok=True)
    free, needed = shutil.disk_usage(folder).free, int(needed * _MARGIN)
    if free < needed:
        raise UserError(
            f"{folder}: {what} needs {size_text(needed)}, free are {size_text(free)}; make room or choose another folder"
        )


def write_error(path: Path, error: OSError) -> UserError:
    """A failed write as something that a person can act on."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "make room (df -h, df -i) and run the same command again" if full else "check the folder and its permissions"
    return UserError(f"{error.filename or path}: cannot be written ({error.strerror or error}); {remedy}")


def flush_file_system(folder: Path) -> None:
    """Everything written to the folder's file system is on the disk; Python has no name for syncfs(2)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(folder))
    finally:
        os.close(descriptor)
