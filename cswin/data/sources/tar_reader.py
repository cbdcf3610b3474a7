"""Sequential reader of a tar or tar.gz in constant memory; it checks the names and kinds of the members.

Python's tarfile reads the headers (GNU and pax names included). Two things are done here. tarfile takes a damaged header
in the middle of an archive for its end; here this is an error. rapidgzip decompresses gzip on all cores, in a separate process that
keeps no index of the archive in memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import os
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn, Protocol

from cswin.errors import UserError

_BUFFER = 1 << 20
_MOST_DECODERS = 8
_GZIP_MAGIC = b"\x1f\x8b"
_ZIP_MAGIC = b"PK\x03\x04"
_TAR_MAGIC_AT, _TAR_MAGIC = 257, b"ustar"
_RAPIDGZIP = "import sys, rapidgzip; sys.exit(rapidgzip.cli())"
_KINDS = (
    ("isfile", "a file"),
    ("isdir", "a folder"),
    ("issym", "a symbolic link"),
    ("islnk", "a hard link"),
    ("isfifo", "a pipe"),
    ("ischr", "a device"),
    ("isblk", "a device"),
)


class _Stream(Protocol):
    """The part of a file's interface that tarfile needs."""

    def read(self, size: int, /) -> bytes: ...
    def seek(self, position: int, /) -> int: ...
    def tell(self) -> int: ...


@dataclass(frozen=True)
class Member:
    """A regular file in an archive.

    Attributes:
        name: name in the archive.
        parts: its checked path: relative, without `.`, `..` and empty parts.
        size: bytes.
        start: where its data begin in the (decompressed) archive.
        next: where the next header is; reading can resume there.
    """

    name: str
    parts: tuple[str, ...]
    size: int
    start: int
    next: int


class Forward:
    """A pipe as a file that can skip forward and knows its position."""

    def __init__(self, pipe: BinaryIO):
        self._pipe, self._position = pipe, 0

    def read(self, size: int) -> bytes:
        data = self._pipe.read(size)
        self._position += len(data)
        return data

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        if position < self._position:
            raise OSError(f"a stream cannot go back from {self._position} to {position}")
        while self._position < position and self.read(min(_BUFFER, position - self._position)):
            pass
        return self._position


def is_gzip(path: Path) -> bool:
    """Whether the archive is compressed.

    Raises:
        UserError: if the file is missing, cannot be read, or is neither a tar nor a gzip file.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path of the archive") from error
    if head.startswith(_GZIP_MAGIC):
        return True
    # A tar from before 1988 has no magic number; an empty one consists of zeros.
    if head[_TAR_MAGIC_AT : _TAR_MAGIC_AT + len(_TAR_MAGIC)] == _TAR_MAGIC or (len(head) == 512 and not any(head)):
        return False
    if head.startswith(_ZIP_MAGIC):
        raise UserError(
            f"{path}: is a zip file; unpack it, and set data.source: folder; Kaggle's is read with data.source: kaggle"
        )
    raise UserError(f"{path}: is neither a tar nor a tar.gz file; is the download complete, is it the right file?")


def is_zip(path: Path) -> bool:
    """Whether a file begins as a zip does; one that cannot be read does not."""
    try:
        with path.open("rb") as file:
            return file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
    except OSError:
        return False


@contextlib.contextmanager
def open_archive(path: Path, threads: int) -> Iterator[_Stream]:
    """The decompressed archive; a plain tar can be read from any position, a tar.gz only forward.

    Args:
        path: tar or tar.gz.
        threads: for decompression, at most eight; more would decompress faster than the files are written, and need memory.

    Raises:
        UserError: if the file cannot be read, or at the end if it is damaged.
    """
    try:
        with _gzip_stream(path, threads) if is_gzip(path) else path.open("rb", buffering=_BUFFER) as stream:
            yield stream
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


@contextlib.contextmanager
def _gzip_stream(path: Path, threads: int) -> Iterator[Forward]:
    options = ["--decompress", "--stdout", "--verify", "--decoder-parallelism", str(min(threads, _MOST_DECODERS))]
    command = [sys.executable, "-c", _RAPIDGZIP, *options]
    with subprocess.Popen([*command, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=_BUFFER) as process:
        try:
            with contextlib.suppress(OSError):  # only affects speed
                fcntl.fcntl(process.stdout.fileno(), fcntl.F_SETPIPE_SZ, _BUFFER)
            stream = Forward(process.stdout)
            yield stream
            _finish(path, process, stream)
        except _Damaged as damaged:
            with contextlib.suppress(subprocess.TimeoutExpired):  # at a truncation it ends by itself with a message
                process.wait(timeout=2)
            process.kill()
            raise UserError(damage(path, _complaint(process) or str(damaged))) from damaged
        finally:
            process.kill()


def _finish(path: Path, process: subprocess.Popen, stream: Forward) -> None:
    """Read to the end, where the checksum is, and check the result."""
    while stream.read(_BUFFER):
        pass
    complaint = _complaint(process)
    if process.wait() != 0:
        raise UserError(damage(path, complaint or f"rapidgzip ended with code {process.returncode}"))
    _check_end(path, stream.tell())


def _check_end(path: Path, size: int) -> None:
    """Raise for a file that is truncated in its last bytes, where the checksum is: rapidgzip does not detect this.

    The last four bytes contain the size. If they differ, the file may still be valid (several consecutive gzip streams), and
    Python's decompressor decides; it is slow.
    """
    with path.open("rb") as file:
        file.seek(-4, os.SEEK_END)
        if int.from_bytes(file.read(4), "little") == size % (1 << 32):
            return
    try:
        with gzip.open(path) as file:
            while file.read(_BUFFER):
                pass
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(damage(path, str(error))) from error


def _complaint(process: subprocess.Popen) -> str:
    lines = process.stderr.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


class _Damaged(Exception):
    """The bytes are not a complete tar."""


def damage(path: Path, reason: str) -> str:
    """The message for a damaged or truncated archive."""
    return f"{path}: is damaged or cut off ({reason}); compare its size and checksum with the published ones, or copy it again"


def files(path: Path, stream: _Stream, start: int = 0) -> Iterator[Member]:
    """The regular files of the tar, beginning at `start`, where a header must be.

    After a member is yielded, its data can be read from `stream`; unread data are skipped.

    Raises:
        UserError: for a member that is neither a file nor a folder, for a path that leads out of the archive's tree (the message
            names it), and for an archive that is damaged or has no end mark.
    """
    try:
        stream.seek(start)
        header = None
        archive = tarfile.TarFile(fileobj=stream, mode="r", errorlevel=2)
        header = archive.firstmember
        while header is not None:
            parts = _checked_parts(path, header)
            after = archive.offset
            if header.isfile():
                yield Member(header.name, parts, header.size, header.offset_data, after)
            if stream.tell() != after:
                _skip_to(stream, after)
            header = tarfile.TarInfo.fromtarfile(archive)
    except tarfile.EOFHeaderError:
        return
    except (tarfile.TarError, _Damaged) as error:
        _fail(path, stream, f"after {'the start' if header is None else repr(header.name)}: {error}")


def _fail(path: Path, stream: _Stream, reason: str) -> NoReturn:
    if isinstance(stream, Forward):
        raise _Damaged(reason)  # the decompressor may have a better reason
    raise UserError(damage(path, reason))


def _skip_to(stream: _Stream, position: int) -> None:
    """Go to the next header, and check that the data before it exist."""
    stream.seek(position - 1)
    if not stream.read(1):
        raise _Damaged("the data end in the middle of a member")


def read_data(path: Path, stream: _Stream, member: Member) -> bytes:
    """The data of the last member that was yielded.

    Raises:
        UserError: if the archive ends before their end.
    """
    data = stream.read(member.size)
    if len(data) != member.size:
        _fail(path, stream, f"{member.name!r} is cut off")
    return data


def _checked_parts(path: Path, header: tarfile.TarInfo) -> tuple[str, ...]:
    name = header.name
    if not (header.isfile() or header.isdir()) or header.issparse():
        kind = next((text for test, text in _KINDS if getattr(header, test)()), "of an unknown kind")
        kind = "a sparse file" if header.issparse() else kind
        raise UserError(f"{path}: member {name!r} is {kind}; only files and folders are extracted, pack it without")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if name.startswith("/") or ".." in parts or "\0" in name or "\\" in name:
        raise UserError(
            f"{path}: member {name!r} has a path that leads out of its folder; nothing was written there, repack it"
        )
    return parts
