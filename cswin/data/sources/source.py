"""The interface of all sources of images: entries of (split, class, name, bytes) from a cursor on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from cswin.errors import UserError

SPLITS = ("train", "val")
LISTED = 10  # names in one message
LAYOUT = "the layout is train/<class>/<image> and val/<class>/<image>"
FLAT_VALIDATION = re.compile(r"ILSVRC2012_val_\d{8}\.JPEG")
SORT_VALIDATION = (
    "the validation images have no class folders, as in Kaggle's layout and in the official archive: set data.source: kaggle (with "
    "LOC_val_solution.csv, which names their classes), or use the official files with data.source: ilsvrc2012"
)


class Entry(NamedTuple):
    """One image of a source.

    Attributes:
        split: train or val.
        class_name, name: of its class and its file.
        place: the file, for messages.
        data: its bytes.
        cursor: where the next entry begins: JSON values, among them `position`, the bytes of the source read so far.
    """

    split: str
    class_name: str
    name: str
    place: str
    data: bytes
    cursor: dict[str, Any]


class Source:
    """A set of images in one layout. For a new layout, add a subclass in a new file and a line in `registry`.

    Class attributes:
        kind: its name in the configuration (data.source).
        inputs: the required keys of the data section, and what their paths contain. The constructor takes the paths in this order.
        extracts: whether the images must be copied to a folder before the conversion.
        classes: their number, if the source determines it.
        called: its layout, in messages.
        in_archive, in_folder: match names of files, with `/`, that occur in no other layout in an archive or a folder; None: the
            layout cannot be in one.
    """

    kind: ClassVar[str]
    inputs: ClassVar[dict[str, str]]
    extracts: ClassVar[bool] = True
    classes: ClassVar[int | None] = None
    called: ClassVar[str] = ""
    in_archive: ClassVar[re.Pattern | None] = None
    in_folder: ClassVar[re.Pattern | None] = None

    @classmethod
    def at(cls, path: Path) -> Source:
        """The source whose files are at `path`, where its layout was recognised."""
        return cls(path)

    @property
    def title(self) -> str:
        """A name for messages."""
        raise NotImplementedError

    def identity(self) -> dict[str, dict[str, Any]]:
        """Name, size and modification time of each file by its role. They identify the source without reading it."""
        raise NotImplementedError

    def entries(self, cursor: dict[str, Any] | None = None, splits: Sequence[str] = SPLITS) -> Iterator[Entry]:
        """The images of these splits from a cursor on, or from the start.

        Raises:
            UserError: damaged or rejected files, another layout.
        """
        raise NotImplementedError

    def complete(self, counts: dict[str, int]) -> dict[str, Any]:
        """Called after all entries were read.

        Args:
            counts: number of images by folder ("train/n01440764").

        Returns:
            Further facts for the receipt.

        Raises:
            UserError: if images are missing.
        """
        return {}


def identify(path: Path) -> dict[str, Any]:
    """Name, size and modification time of a file.

    Raises:
        UserError: if it does not exist or cannot be read.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path of the archive") from error
    return {"name": path.name, "bytes": status.st_size, "modified_ns": status.st_mtime_ns}


def listed(names: list[str]) -> str:
    """The first names, and the number of further ones."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
