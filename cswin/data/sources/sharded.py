"""What sources of many files have in common: which files there are, of which split, and where reading goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cswin.data.sources.members import anchor, matching_files
from cswin.data.sources.source import SPLITS, Entry, Source, identify
from cswin.errors import UserError

_LFS = b"version https://git-lfs"


class Image(NamedTuple):
    """An image of one file: class, name, place for messages, bytes, and the cursor in the file."""

    class_name: str
    name: str
    place: str
    data: bytes
    after: dict[str, Any]


class Sharded(Source):
    """A folder or pattern of files. Their names, or those of their folders, say train or val(idation); others are left out.

    Args:
        path: folder, file or pattern.
        suffixes: of the files.

    Attributes:
        files: (split, file), train before val, sorted.
    """

    def __init__(self, path: Path, suffixes: tuple[str, ...]):
        self.path, self.root = path, Path(anchor(str(path))).absolute()
        found = [(_split_of(file.absolute(), self.root), file) for file in matching_files(path, suffixes)]
        self.files = [(split, file) for wanted in SPLITS for split, file in found if split == wanted]
        if missing := [split for split in SPLITS if split not in dict(self.files)]:
            raise UserError(f"{path}: no file is named after {' and '.join(missing)}; fetch all files, and keep their names")

    @property
    def title(self) -> str:
        return self.path.name

    def identity(self) -> dict[str, dict[str, Any]]:
        return {os.path.relpath(file.absolute(), self.root): _identify(file) for _, file in self.files}

    def entries(self, cursor: dict[str, Any] | None = None, splits: Sequence[str] = SPLITS) -> Iterator[Entry]:
        first, before = (cursor["file"], cursor["before"]) if cursor else (0, 0)
        for number, (split, file) in enumerate(self.files[first:], first):
            size, inner = file.stat().st_size, cursor["inner"] if cursor and number == first else None
            for image in self.images(file, inner) if split in splits else ():
                position = before + min(image.after["position"], size)  # of a tar.gz it counts decompressed bytes
                after = {"file": number, "before": before, "inner": image.after, "position": position}
                yield Entry(split, *image[:4], after)
            before += size

    def images(self, file: Path, cursor: dict[str, Any] | None) -> Iterator[Image]:
        """The images of a file from a cursor on, or from its start.

        Raises:
            UserError: damaged files, another layout, classes that are unknown.
        """
        raise NotImplementedError


def _identify(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            head = opened.read(len(_LFS))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error
    if head == _LFS:
        raise UserError(f"{file}: is a pointer of Git LFS, not the file itself; fetch it: git lfs pull")
    return identify(file)


def _split_of(path: Path, root: Path) -> str | None:
    """By the name of a file, else of its folders below `root`; None: another split (test)."""
    below = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
    return next((split for part in reversed(below.parts) for split in SPLITS if split in part.lower()), None)
