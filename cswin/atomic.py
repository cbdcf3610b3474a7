"""Files that are either the old ones or the new ones, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from cswin.errors import UserError


@contextlib.contextmanager
def atomic_path(path: str | Path, check: Callable[[], None] | None = None) -> Iterator[Path]:
    """A path to write to; what was written there replaces `path` at the end, all at once and on the disk.

    The temporary file lies in the same folder (a rename does not cross file systems) under one fixed hidden name with the same
    suffix, so what a killed process leaves behind is overwritten by the next attempt instead of filling the disk. The data
    reach the disk before the name does: after a power failure, too, `path` is complete or untouched. If the body raises,
    the temporary file is removed and `path` stays as it was; the same if `check`, called last before the rename, raises.

    Raises:
        UserError: if the folder is missing or cannot be written, or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        try:
            temporary.unlink(missing_ok=True)
            temporary.touch()
            mode = temporary.stat().st_mode & 0o777  # what the user's umask gives; some writers set their own
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


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
