"""Where the sockets lie by which processes of one program talk."""

from __future__ import annotations

import os
import tempfile
from multiprocessing import util

from cswin.errors import UserError

LONGEST = 107 - len("/pymp-12345678/listener-12345678")  # bytes: a socket's path has at most 107, and multiprocessing adds this
SHORT = ("/tmp", "/var/tmp", "/dev/shm")


def use_short_socket_folder() -> None:
    """Let multiprocessing put its sockets below a short path, where TMPDIR is too long; to be called before it makes one.

    Raises:
        UserError: if there is no short folder that can be written.
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
        util.get_temp_dir()  # makes the folder of this process, and keeps to it
    finally:
        tempfile.tempdir = given
