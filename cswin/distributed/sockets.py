"""The folder of the sockets by which processes of a program communicate."""

from __future__ import annotations

import os
import tempfile
from multiprocessing import util

from cswin.errors import UserError

LONGEST = 107 - len("/pymp-12345678/listener-12345678")  # bytes: a socket's path has at most 107, and multiprocessing adds this
SHORT = ("/tmp", "/var/tmp", "/dev/shm")


def use_short_socket_folder() -> None:
    """Make multiprocessing use a short path for its sockets if TMPDIR is too long. Call it before the first socket.

    Raises:
        UserError: if no short folder is writable.
    """
    given = tempfile.gettempdir()
    if len(os.fsencode(given)) <= LONGEST:
        return
    short = next((folder for folder in SHORT if os.access(folder, os.W_OK | os.X_OK)), None)
    if short is None:
        raise UserError(
            f"TMPDIR={given}: too long for the sockets of worker processes ({len(os.fsencode(given))} bytes, {LONGEST} are "
            "possible); set a shorter TMPDIR, or runtime.worker_kind: thread"
        )
    try:
        tempfile.tempdir = short
        util.get_temp_dir()  # makes the folder of this process, which is then used always
    finally:
        tempfile.tempdir = given
