"""Conversion of one MindRecord shard: it is written to a hidden folder, read back, and moved to its place."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cswin.atomic import atomic_path
from cswin.data.disk import check_space, exclusive, write_error
from cswin.data.store.dataset import ShardFacts
from cswin.data.store.facts import read_facts
from cswin.data.store.manifest import Row, Summary, load_summary, shard_rows
from cswin.data.store.shard_reader import index_path, read_image, read_index
from cswin.errors import UserError
from cswin.progress import Console, Progress

RECEIPT_FORMAT = "cswin-shard-1"
SCHEMA = {"index": {"type": "int64"}, "label": {"type": "int32"}, "image": {"type": "bytes"}}
_BATCH_ROWS, _BATCH_BYTES = 128, 32 << 20  # FileWriter is slow with fewer than 100 rows at once
_READERS, _READ_CHUNK = 4, 16
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_USUAL_PAGE, _LARGEST_PAGE = 1 << 25, 1 << 28  # FileWriter's default and upper bound, bytes
_SMALLEST_PAGE, _SMALLEST_HEADER = 1 << 16, 1 << 16
_ROW_OVERHEAD = 64  # above the length before each blob and the bytes of index and label
_HEADER_PER_PAGE = 1 << 10  # an entry of a page in the header has less than 200 bytes, twice that for a page of rows


@dataclass(frozen=True)
class Receipt(ShardFacts):
    """The file beside a shard. It is written last, so a shard without it does not count. `file` is a name without a folder.

    Attributes:
        split, shard: split and number of the shard.
        manifest_hash: hash of the manifest from which it was made.
    """

    split: str
    shard: int
    manifest_hash: str


class Layout(NamedTuple):
    """Sizes inside a MindRecord file, in bytes. MindSpore reads files together only if these sizes are equal."""

    page: int
    header: int


def layout_of(summary: Summary) -> Layout:
    """Pages and header for the shards of a dataset.

    The header and the first page take their full sizes in the file (by default 16 and 32 MiB). So small shards get small ones.
    Every image must fit into a page.

    Raises:
        UserError: if an image is larger than the largest possible page.
    """
    splits = summary.splits.values()
    rows = max(-(-split.images // split.shards) for split in splits)
    shard = max(-(-split.bytes // split.shards) for split in splits) + rows * _ROW_OVERHEAD
    largest = max(split.largest for split in splits)
    page = max(_SMALLEST_PAGE, min(_USUAL_PAGE, _power_of_two(shard)), _power_of_two(largest + _ROW_OVERHEAD))
    if page > _LARGEST_PAGE:
        raise UserError(f"an image has {largest:,} bytes and does not fit into MindRecord (256 MiB); make it smaller")
    # The free rest of a page of blobs is smaller than its largest blob; the factor is a margin, also for pages of index and label.
    pages = 4 * (shard // max(page - largest, page // 2) + 2)
    return Layout(page, _power_of_two(max(_SMALLEST_HEADER, pages * _HEADER_PER_PAGE)))


def content_hash(entries: Iterable[tuple[int, int, str]]) -> str:
    """SHA-256 over one line `position label sha256` for each row."""
    sha = hashlib.sha256()
    for position, label, image in entries:
        sha.update(f"{position} {label} {image}\n".encode())
    return sha.hexdigest()


def label_hash(labels: np.ndarray, classes: int) -> str:
    """SHA-256 over the numbers of rows by label, separated by blanks."""
    return hashlib.sha256(" ".join(map(str, np.bincount(labels, minlength=classes))).encode()).hexdigest()


def load_receipt(path: Path) -> Receipt:
    """Read the receipt of a shard.

    Raises:
        UserError: if it is missing or no receipt.
    """
    remedy = "run `cswin data convert` for this shard"
    content = read_facts(path, RECEIPT_FORMAT, remedy)
    try:
        return Receipt(**content)
    except TypeError as error:
        raise UserError(f"{path}: is no receipt of a shard ({error}); {remedy}") from error


def convert_shard(
    images: Path, manifest: Path, summary_path: Path, shard: tuple[str, int], output: Path, console: Console
) -> Receipt:
    """Write one shard, its index and its receipt.

    The files are written in a hidden folder beside `output` under their final names, because the names are inside the files. Then
    they are read back, and the hash of every image is compared with the manifest. This verifies reading and writing together.

    Args:
        images: folder with train/ and val/.
        manifest, summary_path: rows and summary.
        shard: its split, train or val, and its number, from 0.
        output: the .mindrecord file; `.mindrecord.db` and `.json` lie beside it.
        console: for progress.

    Raises:
        UserError: if an image has changed since the manifest was made, the disk is full, or reading back finds a difference.
    """
    if output.suffix != ".mindrecord":
        raise UserError(f"{output}: a shard's name ends in .mindrecord")
    summary, (split, number) = load_summary(summary_path), shard
    if split not in summary.splits:
        raise UserError(f"{summary_path}: there is no split {split!r}; choose one of {', '.join(summary.splits)}")
    if not images.is_dir():
        raise UserError(f"{images}: the images are not there (any more); extract again (snakemake --forcerun extract)")
    first, rows = shard_rows(manifest, summary, split, number)
    check_space(output, sum(row.bytes for row in rows), output.name)
    receipt_path, aside = output.with_suffix(".json"), output.with_name(f".{output.stem}.partial")
    with exclusive(aside):
        written = aside / output.name
        for stale in (receipt_path, written, index_path(written)):
            stale.unlink(missing_ok=True)
        try:
            content = _write_and_read_back(written, rows, first, images, layout_of(summary), console)
            for path in (index_path(written), written):
                _publish(path, output.with_name(path.name))
        except OSError as error:
            raise write_error(output, error) from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        sizes = output.stat().st_size, index_path(output).stat().st_size
        labels = label_hash(np.array([row.label for row in rows]), len(summary.class_names))
        facts = (output.name, len(rows), first, *sizes, labels, content)
        receipt = Receipt(*facts, split, number, summary.manifest_hash)
        with atomic_path(receipt_path) as temporary:
            temporary.write_text(json.dumps({"format": RECEIPT_FORMAT, **asdict(receipt)}, indent=1) + "\n")
    return receipt


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the rest of the process, instead of returning it to the system.

    FileWriter copies every batch several times into new memory; this saves a third of its time. Only for processes that do nothing
    else. It has no effect with another C library than glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            mallopt(parameter, _LARGEST_PAGE)


def _write_and_read_back(path: Path, rows: list[Row], first: int, images: Path, layout: Layout, console: Console) -> str:
    total = sum(row.bytes for row in rows)
    with console.progress(f"convert {path.stem}", total) as progress:
        _write(path, rows, first, images, layout, progress)
    with console.progress(f"read back {path.stem}", total) as progress:
        return _read_back(path, rows, first, progress)


def _write(path: Path, rows: list[Row], first: int, images: Path, layout: Layout, progress: Progress) -> None:
    from mindspore.mindrecord import FileWriter, MindRecordException

    try:
        writer = FileWriter(str(path), 1, overwrite=True)
        writer.set_page_size(layout.page)
        writer.set_header_size(layout.header)
        writer.add_schema(SCHEMA, "original image files")
        writer.add_index(["index", "label"])
        for batch in _batches(rows, first, images):
            writer.write_raw_data(batch)
            progress.update(sum(len(row["image"]) for row in batch))
        writer.commit()
    except (RuntimeError, MindRecordException) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{path}: MindSpore cannot write it ({reason[0]}); is the disk full (df -h)?") from error


def _batches(rows: list[Row], first: int, images: Path) -> Iterator[list[dict]]:
    """Batches of rows for FileWriter: large enough for its speed, with bounded memory."""
    batch, size = [], 0
    for position, (row, data) in enumerate(_read_files(images, rows), start=first):
        batch.append({"index": position, "label": row.label, "image": data})
        size += len(data)
        if len(batch) >= _BATCH_ROWS or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _power_of_two(value: int) -> int:
    return 1 << (value - 1).bit_length()


def _read_files(images: Path, rows: list[Row]) -> Iterator[tuple[Row, bytes]]:
    """Files in the order of the rows, some of them read ahead: the order is random, and a disk serves several requests at once."""
    pending: deque = deque()
    with ThreadPoolExecutor(_READERS, thread_name_prefix="read") as pool:
        for start in range(0, len(rows), _READ_CHUNK):
            chunk = rows[start : start + _READ_CHUNK]
            pending.append((chunk, pool.submit(_read_chunk, images, chunk)))
            if len(pending) >= 2 * _READERS:
                ready, future = pending.popleft()
                yield from zip(ready, future.result(), strict=True)
        for ready, future in pending:
            yield from zip(ready, future.result(), strict=True)


def _read_chunk(images: Path, rows: list[Row]) -> list[bytes]:
    result = []
    for row in rows:
        path = images / row.path
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: is in the manifest but cannot be read ({error.strerror}); {_AGAIN}") from error
        if len(data) != row.bytes:
            raise UserError(f"{path}: {_CHANGED} ({row.bytes:,} bytes then, {len(data):,} now)")
        result.append(data)
    return result


_AGAIN = "make the manifest again (snakemake --forcerun manifest) or, if images come from archives, extract again (--forcerun extract)"
_CHANGED = f"has changed since the manifest was made; {_AGAIN}"


def _read_back(path: Path, rows: list[Row], first: int, progress: Progress) -> str:
    """Compare every row of a shard with the manifest; its content hash."""
    index = read_index(path)
    if index.first != first or len(index.labels) != len(rows):
        raise UserError(f"{path}: reading back gives {len(index.labels)} rows from {index.first}, not {len(rows)} from {first}")
    if index.labels.tolist() != [row.label for row in rows]:
        raise UserError(f"{path}: reading back gives other labels than the manifest; run the same command again")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for row, offset, size in zip(rows, index.offsets.tolist(), index.sizes.tolist(), strict=True):
            data = read_image(descriptor, path, offset, size)
            if hashlib.sha256(data).hexdigest() != row.sha256:
                raise UserError(f"{row.path}: {_CHANGED} (its hash differs)")
            progress.update(len(data))
    finally:
        os.close(descriptor)
    return content_hash((first + number, row.label, row.sha256) for number, row in enumerate(rows))


def _publish(path: Path, target: Path) -> None:
    """Move a finished file to its place, with the usual permissions (FileWriter's are for the owner only)."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    path.replace(target)
