"""The manifest: one row per image, and a small summary on which all later steps depend.

Rows (CSV, gzip, UTF-8): path, class, label, bytes, width, height, sha256; train before val, each in
storage order: a seeded permutation of the images sorted by class and name. A label is the position of its class in the sorted
names of the training classes. A shard is a slice of the rows of its split.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import itertools
import json
import os
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np

from cswin.atomic import atomic_path
from cswin.data.sources.source import SPLITS
from cswin.data.store.facts import read_facts
from cswin.errors import UserError

FORMAT = "cswin-manifest-2"
COLUMNS = ("path", "class", "label", "bytes", "width", "height", "sha256")
_MB = 1 << 20
_SHARD_ROWS = 100_000  # a conversion holds the rows of its shard in memory; this limits them if images are very small


class Row(NamedTuple):
    """One image.

    Attributes:
        path: below the folder of images, with `/`.
        class_name: its folder's name.
        label: position of the class in the sorted names.
        bytes: size of the file.
        width, height: pixels.
        sha256: of the file, hexadecimal.
    """

    path: str
    class_name: str
    label: int
    bytes: int
    width: int
    height: int
    sha256: str


def shard_count(images: int, size: int, shard_mb: int) -> int:
    """Number of shards for images of `size` bytes in total: rounded up, at most one per row, with a bounded number of rows each."""
    return min(images, max(1, -(-size // (shard_mb * _MB)), -(-images // _SHARD_ROWS)))


@dataclass(frozen=True)
class Split:
    """The summary of train or val.

    Attributes:
        images: number of rows.
        bytes: total size of all files.
        largest: bytes of the largest file.
        shards: number of MindRecord files.
        counts: images by label.
    """

    images: int
    bytes: int
    largest: int
    shards: int
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Summary:
    """manifest.json: less than 1 MB, and equal for equal images, seed and shard size.

    Attributes:
        rows_file: the rows' file, relative to the summary's folder.
        rows_sha256: of the rows' CSV text, not compressed.
        seed: of the order in which rows are stored.
        shard_mb: target size of a shard, MiB.
        class_names: in the order of the labels.
        splits: train and val.
        formats: number of files of each kind ("JPEG RGB", "PNG RGBA", …).
        skipped: number of images that could not be decoded and were left out.
        duplicates: see `duplicates.Duplicates`; None in files that were written before they were counted.

    The hash does not cover `formats`, `skipped` and `duplicates`: they follow from the rows.
    """

    rows_file: str
    rows_sha256: str
    seed: int
    shard_mb: int
    class_names: tuple[str, ...]
    splits: dict[str, Split]
    formats: dict[str, int]
    skipped: int
    duplicates: dict[str, int] | None = None

    @property
    def manifest_hash(self) -> str:
        """SHA-256 over the rows and the seed, which determine the position and label of each image."""
        return hashlib.sha256(f"{FORMAT}\n{self.rows_sha256}\n{self.seed}\n".encode()).hexdigest()

    def shard_range(self, split: str, shard: int) -> tuple[int, int]:
        """First position of a shard, and the position after its last one. Shards differ by one row at most.

        Raises:
            UserError: if there is no such shard.
        """
        facts = self.splits[split]
        if not 0 <= shard < facts.shards:
            raise UserError(f"{split} has no shard {shard}: they go from 0 to {facts.shards - 1}")
        return facts.images * shard // facts.shards, facts.images * (shard + 1) // facts.shards

    def recut(self, shard_mb: int) -> Summary:
        """The same images in the same order, divided into shards of another target size; the hash stays the same."""
        splits = {
            name: replace(split, shards=shard_count(split.images, split.bytes, shard_mb)) for name, split in self.splits.items()
        }
        return replace(self, shard_mb=shard_mb, splits=splits)

    def save(self, path: Path) -> None:
        """Write manifest.json."""
        _write(path, {"manifest_hash": self.manifest_hash, **asdict(self)})


def load_summary(path: Path) -> Summary:
    """Read manifest.json, or a plan that was made from it (`save_plan`): the same images, cut as the plan says.

    Raises:
        UserError: if it is missing, is not what `cswin data manifest` writes, or is the plan of another manifest.
    """
    content = read_facts(path, FORMAT, "run `cswin data manifest`")
    if "manifest" in content:
        return _planned(path, content)
    splits = {name: Split(**{**facts, "counts": tuple(facts["counts"])}) for name, facts in content["splits"].items()}
    fields = {key: content[key] for key in Summary.__dataclass_fields__ if key in content or key != "duplicates"}
    summary = Summary(**{**fields, "splits": splits, "class_names": tuple(content["class_names"])})
    if summary.manifest_hash != content["manifest_hash"]:
        raise UserError(f"{path}: was edited, its hash does not match; run `cswin data manifest` again")
    return summary


def save_plan(summary_path: Path, shard_mb: int, path: Path) -> None:
    """Write how a manifest's images are cut into shards of about `shard_mb` MiB: what is not in manifest.json, and where that is."""
    manifest = os.path.relpath(summary_path.absolute(), path.absolute().parent)
    _write(path, {"manifest": manifest, "manifest_hash": load_summary(summary_path).manifest_hash, "shard_mb": shard_mb})


def _planned(path: Path, plan: dict) -> Summary:
    manifest = path.parent / plan["manifest"]
    summary = load_summary(manifest)
    if summary.manifest_hash != plan["manifest_hash"]:
        raise UserError(f"{path}: was made from another manifest than {manifest} is now; run `snakemake` again")
    rows = os.path.relpath(manifest.parent.absolute() / summary.rows_file, path.absolute().parent)
    return replace(summary.recut(plan["shard_mb"]), rows_file=rows)


def _write(path: Path, content: dict) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({"format": FORMAT, **content}, ensure_ascii=False) + "\n", encoding="utf-8")


def storage_order(seed: int, split: str, images: int) -> np.ndarray:
    """(images,) int64: for each position, the index of its image in the order of class and name."""
    # PCG64's permutation has been the same since NumPy 1.17; the second number separates the splits.
    return np.random.Generator(np.random.PCG64([seed, SPLITS.index(split)])).permutation(images)


class SplitRows:
    """The rows of a split as text, sorted by class and name; about 200 bytes of memory each.

    Attributes:
        keys: the first 64 bits of each hash.
    """

    def __init__(self):
        self.keys = array("Q")
        self._text, self._ends = bytearray(), array("q", [0])
        self._buffer = io.StringIO(newline="")
        self._csv = csv.writer(self._buffer, lineterminator="\n")
        # A carriage return ends a line for the reader, but the writer does not quote it.
        self._quoting = csv.writer(self._buffer, lineterminator="\n", quoting=csv.QUOTE_ALL)

    def add(self, row: Row) -> None:
        """Append a row."""
        (self._quoting if "\r" in row.path else self._csv).writerow(row)
        self._text += self._buffer.getvalue().encode("utf-8", "surrogateescape")
        self._ends.append(len(self._text))
        self.keys.append(int(row.sha256[:16], 16))
        self._buffer.seek(0)
        self._buffer.truncate()

    def row(self, number: int) -> Row:
        """A row, in the order in which they were added."""
        text = self._text[self._ends[number] : self._ends[number + 1]].decode("utf-8", "surrogateescape")
        path, class_name, label, size, width, height, sha = next(csv.reader(io.StringIO(text, newline="")))
        return Row(path, class_name, int(label), int(size), int(width), int(height), sha)

    def stored(self, split: str, seed: int) -> Iterator[memoryview]:
        """The text of the rows in storage order."""
        text = memoryview(self._text)
        for row in storage_order(seed, split, len(self._ends) - 1).tolist():
            yield text[self._ends[row] : self._ends[row + 1]]


def write_rows(raw: io.BufferedIOBase, splits: Mapping[str, SplitRows], seed: int) -> str:
    """Write the file of the rows; returns the SHA-256 of its text."""
    sha = hashlib.sha256()
    # Level 1: most of a row is its hash, which no level compresses to less than half.
    with (
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=1, mtime=0) as packed,
        io.BufferedWriter(packed, 1 << 18) as buffered,
    ):
        header = ",".join(COLUMNS).encode() + b"\n"
        for text in itertools.chain([header], *(rows.stored(split, seed) for split, rows in splits.items())):
            sha.update(text)
            buffered.write(text)
    return sha.hexdigest()


class _Hashing(io.RawIOBase):
    """Passes bytes through and hashes them."""

    def __init__(self, file: gzip.GzipFile):
        self._file, self.sha = file, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        count = self._file.readinto(buffer)
        self.sha.update(buffer[:count])
        return count


def read_manifest(path: Path, summary: Summary) -> Iterator[Row]:
    """All rows in their order, as a stream; at the end their hash is compared with the summary.

    Raises:
        UserError: if the file is missing, damaged, or does not belong to the summary, or a label is out of range.
    """
    try:
        with gzip.open(path, "rb") as packed:
            hashing = _Hashing(packed)
            text = io.TextIOWrapper(io.BufferedReader(hashing, 1 << 18), "utf-8", "surrogateescape", newline="")
            yield from _parse(path, text, len(summary.class_names))
            if hashing.sha.hexdigest() != summary.rows_sha256:
                raise UserError(f"{path}: does not belong to the summary (hash differs); run `cswin data manifest` again")
    except (OSError, EOFError, csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run `cswin data manifest` again") from error


def _parse(path: Path, text: TextIO, classes: int) -> Iterator[Row]:
    reader = csv.reader(text)
    if tuple(next(reader, ())) != COLUMNS:
        raise UserError(f"{path}: is no manifest (first line is not {','.join(COLUMNS)}); run `cswin data manifest` again")
    for number, cells in enumerate(reader, start=2):
        try:
            file, class_name, label, size, width, height, sha = cells
            row = Row(file, class_name, int(label), int(size), int(width), int(height), sha)
        except ValueError as error:
            raise UserError(f"{path}: line {number} is no row ({error}); run `cswin data manifest` again") from error
        if not 0 <= row.label < classes:
            raise UserError(f"{path}: line {number}: label {row.label} of {file!r} is outside of 0 to {classes - 1}")
        yield row


def shard_rows(path: Path, summary: Summary, split: str, shard: int) -> tuple[int, list[Row]]:
    """The position of a shard's first row, and its rows in storage order.

    Raises:
        UserError: as `read_manifest` and `Summary.shard_range`.
    """
    first, last = summary.shard_range(split, shard)
    before = sum(summary.splits[name].images for name in SPLITS[: SPLITS.index(split)])
    return first, [row for number, row in enumerate(read_manifest(path, summary), -before) if first <= number < last]
