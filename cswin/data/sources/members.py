"""The files in a tar, tar.gz, zip or folder, from a cursor on, read one after the other in constant memory."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from glob import glob, has_magic
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from cswin.data.sources.folder import read_file
from cswin.data.sources.source import identify
from cswin.data.sources.tar_reader import damage, files, is_gzip, is_zip, open_archive, read_data
from cswin.distributed.cores import usable_cores
from cswin.errors import UserError

START = {"position": 0, "members": 0}
Wanted = Callable[[str], bool]


class Member(NamedTuple):
    """A file.

    Attributes:
        name: its path in the archive or folder, with `/`.
        place: archive and name, for messages.
        data: its bytes; empty if they were not wanted.
        after: cursor: where the next member begins, as JSON values. `position` counts bytes, `members` files.
    """

    name: str
    place: str
    data: bytes
    after: dict[str, Any]


def everything(name: str) -> bool:
    """All members are read."""
    return True


def members(
    path: Path, cursor: dict[str, Any] | None = None, wanted: Wanted = everything, folders: Sequence[str] = ("",)
) -> Iterator[Member]:
    """The files of an archive, in its order, or of a folder, sorted.

    Args:
        path: tar, tar.gz, zip or folder.
        cursor: `Member.after` of the last file that was read; None: from the start.
        wanted: tells by a member's name whether its bytes are read.
        folders: only what is below these folders, if `path` is a folder.

    Raises:
        UserError: damaged files, and names that lead out of the archive.
    """
    cursor = cursor or START
    if path.is_dir():
        return _folder_members(path, cursor, wanted, folders)
    return (_zip_members if is_zip(path) else _tar_members)(path, cursor, wanted)


def _tar_members(path: Path, cursor: dict[str, Any], wanted: Wanted) -> Iterator[Member]:
    """A plain tar is read from the position on; a tar.gz is decompressed from the start."""
    packed, done = is_gzip(path), cursor["members"]
    with open_archive(path, usable_cores()) as stream:
        found = files(path, stream, 0 if packed else cursor["position"])
        for number, member in enumerate(islice(found, done if packed else 0, None), done + 1):
            name = "/".join(member.parts)
            after = {"position": member.next, "members": number}
            data = read_data(path, stream, member) if wanted(name) else b""
            yield Member(name, f"{path}: {member.name!r}", data, after)


def _zip_members(path: Path, cursor: dict[str, Any], wanted: Wanted) -> Iterator[Member]:
    with open_zip(path) as archive:
        position = cursor["position"]
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        for number, entry in enumerate(entries[cursor["members"] :], cursor["members"] + 1):
            parts = [part for part in entry.filename.split("/") if part not in ("", ".")]
            if entry.filename.startswith("/") or ".." in parts:
                raise UserError(f"{path}: member {entry.filename!r} has a path that leads out of its folder; repack it")
            position += entry.compress_size
            after = {"position": position, "members": number}
            name = "/".join(parts)
            data = _read_zip(path, archive, entry) if wanted(name) else b""
            yield Member(name, f"{path}: {entry.filename!r}", data, after)


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip file.

    Raises:
        UserError: if it is damaged.
    """
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(damage(path, str(error))) from error


def _read_zip(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    try:
        return archive.read(entry)
    except Exception as error:  # zipfile passes on the errors of each decompressor
        raise UserError(damage(path, f"{entry.filename!r}: {error}")) from error


def _folder_members(path: Path, cursor: dict[str, Any], wanted: Wanted, folders: Sequence[str]) -> Iterator[Member]:
    position = cursor["position"]
    paths = (Path(parent, name) for folder in folders for parent, names in _walk(path / folder) for name in names)
    for number, file in enumerate(islice(paths, cursor["members"], None), cursor["members"] + 1):
        position += identify(file)["bytes"]
        after = {"position": position, "members": number}
        name = file.relative_to(path).as_posix()
        yield Member(name, str(file), read_file(file) if wanted(name) else b"", after)


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Each folder with its sorted files; hidden ones are left out."""
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield parent, sorted(name for name in names if not name.startswith("."))


def identify_folder(path: Path, folders: Sequence[str] = ("",)) -> dict[str, Any]:
    """As `identify`, of all files below the folders: their number, bytes together, and the time of the last change."""
    facts = [identify(Path(parent, name)) for folder in folders for parent, names in _walk(path / folder) for name in names]
    newest = max((fact["modified_ns"] for fact in facts), default=0)
    return {"name": path.name, "bytes": sum(fact["bytes"] for fact in facts), "modified_ns": newest, "files": len(facts)}


def look(path: Path, most: int = 1000) -> Iterator[str]:
    """Names of the first files, to recognise a layout: of an archive's first members; of a folder, of a few files in each folder."""
    if not path.is_dir():
        yield from (member.name for member in islice(members(path, wanted=lambda name: False), most))
        return
    for parent, folders, names in os.walk(path, followlinks=True):
        below = Path(parent).relative_to(path)
        folders[:] = sorted(name for name in folders if not name.startswith("."))[: 5 if len(below.parts) < 4 else 0]
        yield from ((below / name).as_posix() for name in sorted(names)[:most] if not name.startswith("."))


def matching_files(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files that a path names: a file, all files below a folder, or those that match a pattern; sorted.

    Raises:
        UserError: if there are none that end in one of `suffixes`.
    """
    if path.is_dir():
        found = [Path(parent, name) for parent, names in _walk(path) for name in names]
    else:
        found = [path] if path.is_file() else [Path(name) for name in sorted(glob(str(path)))]  # noqa: PTH207 (path may be absolute)
    found = [file for file in found if file.name.endswith(suffixes)]
    if not found:
        raise UserError(f"{path}: holds no files of the kind {', '.join(suffixes)}; check data.path")
    return found


def anchor(path: str) -> str:
    """What must exist before the files are read: the path itself; of a pattern, its folder."""
    return str(Path(path).parent) if has_magic(Path(path).name) and not Path(path).exists() else path
