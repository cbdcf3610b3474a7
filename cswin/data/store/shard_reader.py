"""Single rows of a MindRecord file, in any order, without MindSpore.

MindDataset reads a random order at a twentieth of this speed and has its own thread pool beside the loader's. A MindRecord file
consists of a header (8 bytes with the length of a JSON text, the text, zeros up to `header_size`) and pages of `page_size` bytes.
The SQLite file beside it gives the page and the offset of each row's blob. A blob of one field is 8 bytes with its length, then the
field. Files of other versions, and compressed or encrypted files, are errors. tests/data/test_mindrecord.py reads the same files
with MindDataset.
"""

from __future__ import annotations

import json
import os
import sqlite3
import struct
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np

from cswin.errors import UserError

_VERSION = "3.0"
_BLOB_FIELDS = ["image"]
_LENGTH = struct.Struct("<Q")
_QUERY = "SELECT ROW_ID, PAGE_ID_BLOB, PAGE_OFFSET_BLOB, PAGE_OFFSET_BLOB_END, {index}, {label} FROM INDEXES ORDER BY ROW_ID"


@dataclass(frozen=True)
class ShardIndex:
    """The locations of a shard's rows.

    Attributes:
        offsets: (rows,) int64, the first byte of each image in the file.
        sizes: (rows,) int32, bytes.
        labels: (rows,) int32.
        first: the `index` of the first row; the others follow it.
    """

    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    first: int


def index_path(shard: Path) -> Path:
    """The SQLite file that belongs to a MindRecord file."""
    return shard.with_name(shard.name + ".db")


def read_index(shard: Path) -> ShardIndex:
    """Read the header and the index of a shard; about 2 microseconds per row.

    Raises:
        UserError: if one of the two files is missing, damaged, or has another format than `cswin data convert` writes.
    """
    try:
        header = _read_header(shard)
        cells = _read_cells(shard, header)
    except (OSError, sqlite3.Error, ValueError, KeyError, struct.error) as error:
        raise damaged(shard, f"cannot be read as MindRecord: {error}") from error
    rows = np.array(cells, dtype=np.int64).reshape(-1, 6)
    numbers, page, begin, end, index, label = rows.T
    first = int(index[0]) if len(rows) else 0
    if not (np.array_equal(numbers, np.arange(len(rows))) and np.array_equal(index, first + np.arange(len(rows)))):
        raise damaged(shard, "its rows are not numbered one after the other")
    offsets = header["header_size"] + page * header["page_size"] + begin + _LENGTH.size
    return ShardIndex(offsets, (end - begin - _LENGTH.size).astype(np.int32), label.astype(np.int32), first)


def read_image(descriptor: int, shard: Path, offset: int, size: int) -> bytes:
    """The image of `size` bytes at `offset`; safe to call from several threads.

    Raises:
        UserError: if the file is truncated, or the row's length differs from the index.
    """
    try:
        # Two reads: after a single one, the data would be copied once more to remove the length.
        length = os.pread(descriptor, _LENGTH.size, offset - _LENGTH.size)
        data = os.pread(descriptor, size, offset)
    except OSError as error:
        raise damaged(shard, f"the row at byte {offset} cannot be read ({error.strerror})") from error
    if len(data) != size or length != _LENGTH.pack(size):
        raise damaged(shard, f"the row at byte {offset} is not what the index says")
    return data


def damaged(shard: Path, reason: str) -> UserError:
    """The error for a damaged shard, with the remedy."""
    return UserError(
        f"{shard}: {reason}; convert again only this shard with `snakemake -f {shard}` (this trains nothing), then check all shards "
        "with `cswin data verify`"
    )


def _read_header(shard: Path) -> dict:
    with shard.open("rb") as file:
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        if length > shard.stat().st_size:
            raise ValueError("the header is longer than the file")
        header = json.loads(file.read(length))
    fields = header["schema"][0]["blob_fields"]
    if header["version"] != _VERSION or header.get("compression_size") or fields != _BLOB_FIELDS:
        raise ValueError(f"version {header['version']}, blob fields {fields}; wanted are {_VERSION} and {_BLOB_FIELDS}")
    return header


def _read_cells(shard: Path, header: dict) -> list[tuple]:
    names = [f"{field['index_field']}_{field['schema_id']}" for field in header["index_fields"]]
    index, label = "index_0", "label_0"
    if not {index, label} <= set(names):
        raise ValueError(f"index fields {names}; wanted are index and label")
    database = index_path(shard)
    if not database.is_file():
        raise FileNotFoundError(f"{database} is missing")
    # Immutable: the file does not change, and locks do not work on every cluster file system.
    connection = sqlite3.connect(f"file:{quote(str(database.absolute()))}?immutable=1", uri=True)
    try:
        return connection.execute(_QUERY.format(index=index, label=label)).fetchall()
    finally:
        connection.close()
