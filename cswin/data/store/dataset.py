"""A converted dataset, and random access to its rows.

dataset.json is beside the folder of the shards. For each split it lists the shards with their sizes and hashes. This module does
not need MindSpore and decodes no image.
"""

from __future__ import annotations

import os
import resource
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cswin.data.store.facts import read_facts
from cswin.data.store.shard_reader import damaged, index_path, read_image, read_index
from cswin.errors import UserError

FORMAT = "cswin-dataset-1"
_OTHER_FILES = 512  # for the other open files of a trainer
_CHUNK, _CHUNKS_AHEAD = 16, 8  # rows that are announced to the system at once, and how far ahead


@dataclass(frozen=True)
class ShardFacts:
    """A shard in dataset.json.

    Attributes:
        file: path, relative to dataset.json.
        rows: number of rows.
        first: position of its first row.
        bytes, index_bytes: sizes of the MindRecord file and of its index.
        labels: SHA-256 of the histogram of the labels.
        content: SHA-256 over position, label and SHA-256 of every image, see `mindrecord.content_hash`.
    """

    file: str
    rows: int
    first: int
    bytes: int
    index_bytes: int
    labels: str
    content: str


@dataclass(frozen=True)
class _SplitIndex:
    """The location of every row of a split; 16 bytes of memory per row.

    Attributes:
        shards: files, in the order of their rows.
        starts: (shards,) int64, position of the first row of each.
        offsets, sizes, labels: (images,), by position; see `ShardIndex`.
    """

    shards: list[Path]
    starts: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray


@dataclass
class Dataset:
    """A converted dataset.

    Attributes:
        path: dataset.json.
        name: of the dataset.
        manifest_hash: hash over positions and labels of all images.
        class_names: in the order of the labels.
        summary: path of manifest.json, relative to dataset.json.
        splits: shards of train and val.
    """

    path: Path
    name: str
    manifest_hash: str
    class_names: tuple[str, ...]
    summary: str
    splits: dict[str, tuple[ShardFacts, ...]]
    _indexes: dict[str, _SplitIndex] = field(default_factory=dict, repr=False, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @classmethod
    def load(cls, path: str | Path, check_files: bool = True) -> Dataset:
        """Read dataset.json and check that all shards exist with the right sizes (one `stat` per file, none is opened).

        Args:
            path: dataset.json.
            check_files: False skips this check, for callers that report damage themselves.

        Raises:
            UserError: if it is missing or not a dataset, or a shard is missing or has another size; names the file.
        """
        path = Path(path)
        content = read_facts(path, FORMAT, f"convert the dataset (snakemake {path})")
        splits = {
            name: tuple(ShardFacts(**facts) for facts in split["shards"]) for name, split in content["splits"].items()
        }  # fmt: skip
        dataset = cls(
            path, content["name"], content["manifest_hash"], tuple(content["class_names"]), content["summary"], splits
        )  # fmt: skip
        if check_files:
            dataset.check_files()
        return dataset

    def images(self, split: str) -> int:
        """Number of rows of a split."""
        return sum(shard.rows for shard in self._split(split))

    def shards(self, split: str) -> list[Path]:
        """The MindRecord files of a split, in the order of the rows."""
        return [self.path.parent / shard.file for shard in self._split(split)]

    def check_files(self) -> None:
        """Check that all shards exist with the right sizes.

        Raises:
            UserError: for the first wrong one.
        """
        for split in self.splits:
            for shard, facts in zip(self.shards(split), self._split(split), strict=True):
                problem = file_problem(shard, facts)
                if problem:
                    raise damaged(shard, problem)

    def index(self, split: str) -> _SplitIndex:
        """The locations of a split's rows; read once per process."""
        with self._lock:
            if split not in self._indexes:
                self._indexes[split] = self._read_index(split)
            return self._indexes[split]

    def _read_index(self, split: str) -> _SplitIndex:
        parts, shards = [], self.shards(split)
        for shard, facts in zip(shards, self._split(split), strict=True):
            part = read_index(shard)
            if len(part.labels) != facts.rows or part.first != facts.first:
                raise damaged(shard, f"holds {len(part.labels)} rows from {part.first}, not {facts.rows} from {facts.first}")
            parts.append(part)
        starts = np.array([part.first for part in parts], dtype=np.int64)
        joined = (np.concatenate([getattr(part, name) for part in parts]) for name in ("offsets", "sizes", "labels"))
        return _SplitIndex(shards, starts, *joined)

    def __getstate__(self) -> dict:
        # A lock cannot be sent to another process, and reading the index there is faster than sending it.
        return {**self.__dict__, "_indexes": {}, "_lock": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def _split(self, split: str) -> tuple[ShardFacts, ...]:
        if split not in self.splits:
            raise UserError(f"{self.path}: has no split {split!r}; choose one of {', '.join(self.splits)}")
        return self.splits[split]


def file_problem(shard: Path, facts: ShardFacts) -> str | None:
    """The problem with the files of a shard, judged by their sizes; None if there is none."""
    for file, size in ((shard, facts.bytes), (index_path(shard), facts.index_bytes)):
        try:
            there = file.stat().st_size
        except OSError as error:
            return f"{file.name}: {error.strerror}"
        if there != size:
            return f"{file.name} has {there:,} bytes instead of {size:,}"
    return None


def read_rows(dataset: Dataset, split: str, positions: np.ndarray) -> Iterator[tuple[int, int, bytes]]:
    """Rows in exactly the order of `positions`, not decoded.

    The next rows are announced to the system, so a disk or a network file system serves many requests at once without threads here.
    Memory: 16 bytes per row of the split (21 MB for ImageNet; read once per process, 2 microseconds per row), `positions`, and
    one image. Only the requested rows are read.

    Args:
        dataset: the dataset.
        split: train or val.
        positions: (n,) integers from 0 to images - 1; may repeat.

    Yields:
        (position, label, bytes of the original image file).

    Raises:
        UserError: a position out of range; a shard that is missing or damaged.
    """
    positions = np.asarray(positions, dtype=np.int64)
    images = dataset.images(split)
    if len(positions) and not (positions.min() >= 0 and positions.max() < images):
        asked = f"{positions.min()} to {positions.max()}"
        raise UserError(f"{dataset.path}: {split} has positions 0 to {images - 1}, asked for {asked}")
    index = dataset.index(split)
    _allow_open_files(len(index.shards))
    descriptors: list[int] = []
    try:
        for shard in index.shards:
            descriptors.append(_open(shard))
        ahead: deque[list[tuple[int, int, int, int, int]]] = deque()
        for start in range(0, len(positions), _CHUNK):
            ahead.append(_announce(index, descriptors, positions[start : start + _CHUNK]))
            if len(ahead) > _CHUNKS_AHEAD:
                yield from _read(index, descriptors, ahead.popleft())
        while ahead:
            yield from _read(index, descriptors, ahead.popleft())
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _allow_open_files(shards: int) -> None:
    """Raise this process's limit of open files, usually 1,024, if a very large dataset needs it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = shards + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise UserError(f"{shards} shards are open at once and {hard} files may be: raise `ulimit -n`, or data.shard_mb")
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _open(shard: Path) -> int:
    try:
        descriptor = os.open(shard, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # the next bytes of the file are not read next
        return descriptor
    except OSError as error:
        raise damaged(shard, f"cannot be opened ({error.strerror})") from error


def _announce(index: _SplitIndex, descriptors: list[int], positions: np.ndarray) -> list[tuple[int, int, int, int, int]]:
    """(position, label, shard, offset, size) of the rows that are read next; the system begins to fetch them."""
    shards = np.searchsorted(index.starts, positions, side="right") - 1
    columns = (positions, index.labels[positions], shards, index.offsets[positions], index.sizes[positions])
    rows = list(zip(*(column.tolist() for column in columns), strict=True))
    for _, _, shard, offset, size in rows:
        os.posix_fadvise(descriptors[shard], offset, size, os.POSIX_FADV_WILLNEED)
    return rows


def _read(
    index: _SplitIndex, descriptors: list[int], rows: list[tuple[int, int, int, int, int]]
) -> Iterator[tuple[int, int, bytes]]:
    for position, label, shard, offset, size in rows:
        yield position, label, read_image(descriptors[shard], index.shards[shard], offset, size)
