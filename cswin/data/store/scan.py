"""Makes the manifest of a folder of images: every file is read once, hashed, and decoded as a check.

The check is cheap: a JPEG is decoded at 1/8 of its size. This reads the whole compressed stream (so it finds a truncation anywhere,
as a full decode does) but computes few pixels.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from cswin.atomic import atomic_path
from cswin.data.images.decode import decode_rgb
from cswin.data.sources.folder import check_class_folders, class_folders, image_names
from cswin.data.sources.source import LISTED, listed
from cswin.data.store.duplicates import find_duplicates, judge
from cswin.data.store.manifest import SPLITS, Row, Split, SplitRows, Summary, shard_count, write_rows
from cswin.errors import BadImage, UserError
from cswin.progress import Console

_CHUNK = 32  # files per task of a thread


class Expected(NamedTuple):
    """Expected numbers; None: any number."""

    train: int | None = None
    val: int | None = None
    classes: int | None = None


@dataclass(frozen=True)
class ManifestOptions:
    """Options for making a manifest.

    Attributes:
        expected: expected numbers of images (with undecodable ones) and classes.
        on_bad_image: "fail" lists all bad images and stops, "skip" leaves them out.
        report: CSV of the bad images with reasons (path, reason); written in both cases.
        shard_mb: target size of a shard, MiB.
        seed: of the order in which rows are stored.
        workers: threads.
        on_duplicate: "report" says how many images are there more than once, "fail" stops.
    """

    expected: Expected = Expected()
    on_bad_image: str = "fail"
    report: Path | None = None
    shard_mb: int = 1024
    seed: int = 0
    workers: int = 1
    on_duplicate: str = "report"


USUAL = ManifestOptions()


class Bad(NamedTuple):
    """A file that is not a usable image, and the reason."""

    path: str
    reason: str


class Checked(NamedTuple):
    """The facts about one file: kind ("JPEG RGB"), size in bytes and pixels, hash."""

    kind: str
    bytes: int
    width: int
    height: int
    sha256: str


@dataclass
class _Tally:
    """Rows and counts of one split while it is read."""

    counts: list[int]
    rows: SplitRows = field(default_factory=SplitRows)
    bytes: int = 0
    largest: int = 0


@dataclass
class _Scan:
    """The facts about all images except the rows."""

    classes: list[str]
    tallies: dict[str, _Tally] = field(default_factory=dict)
    kinds: Counter = field(default_factory=Counter)
    bad: list[Bad] = field(default_factory=list)


def check_image(data: bytes) -> tuple[str, int, int]:
    """Kind ("JPEG RGB": format and mode), width and height of an image file that decodes.

    Raises:
        BadImage: with the reason, if it does not.
    """
    try:
        image = Image.open(io.BytesIO(data))
        kind, width, height = f"{image.format} {image.mode}", *image.size
        if image.format == "JPEG":
            image.draft(None, (width // 8, height // 8))
            image.load()
            return kind, width, height
    except Exception:  # any error of Pillow for a damaged file; the decoder of the training decides
        kind, (width, height) = "other", decode_rgb(data).size
    else:
        decode_rgb(data)
    return kind, width, height


def write_manifest(
    images: Path, output: Path, summary_path: Path, console: Console, options: ManifestOptions = USUAL
) -> Summary:
    """Read all images and write the rows and the summary.

    The rows are held in memory, about 200 bytes each (0.3 GB for ImageNet), because they are written in storage order.

    Args:
        images: folder with train/<class>/ and val/<class>/.
        output: rows' file (.csv.gz), in the summary's folder.
        summary_path: manifest.json, written last.
        console: for progress.
        options: expected numbers, treatment of bad images, seed and size of shards.

    Raises:
        UserError: another layout, empty classes, classes of val that train lacks, other numbers than expected, bad images.
    """
    if output.parent.resolve() != summary_path.parent.resolve():
        raise UserError(f"{output} and {summary_path} are in different folders: put the rows beside their summary")
    found = find_classes(images, options.expected.classes)
    classes, total = found["train"], check_counts(images, found, options.expected)
    output.parent.mkdir(parents=True, exist_ok=True)
    scan = _Scan(classes)
    with atomic_path(output) as temporary:
        with temporary.open("wb") as raw, console.progress("manifest", total, "images") as progress:
            with ThreadPoolExecutor(options.workers, thread_name_prefix="manifest") as pool:
                for files in _scan_images(images, scan, pool, 2 * options.workers):
                    progress.update(files)
            rows = {split: tally.rows for split, tally in scan.tallies.items()}
            rows_sha256 = write_rows(raw, rows, options.seed)
        _judge_bad_images(images, scan, options, console)
        duplicates = find_duplicates(rows)
        judge(duplicates, images, options.on_duplicate, console)
    splits = {name: _split(tally, options.shard_mb) for name, tally in scan.tallies.items()}
    kinds = dict(sorted(scan.kinds.items()))
    summary = Summary(
        output.name,
        rows_sha256,
        options.seed,
        options.shard_mb,
        tuple(classes),
        splits,
        kinds,
        len(scan.bad),
        duplicates.counts,
    )
    summary.save(summary_path)
    return summary


def _split(tally: _Tally, shard_mb: int) -> Split:
    images = sum(tally.counts)
    return Split(images, tally.bytes, tally.largest, shard_count(images, tally.bytes, shard_mb), tuple(tally.counts))


def find_classes(images: Path, promised: int | None = None) -> dict[str, list[str]]:
    """Sorted names of the classes by split.

    Raises:
        UserError: if train/ or val/ is missing or empty, has files instead of class folders, if val has a class that train
            lacks, or the number of classes is not the expected one.
    """
    found = {split: class_folders(images / split) for split in SPLITS}
    unknown = sorted(set(found["val"]) - set(found["train"]))
    if unknown:
        raise UserError(
            f"{images / 'val'}: has classes that train lacks: {listed(unknown)}; remove them or add training images"
        )
    if promised is not None and len(found["train"]) != promised:
        raise UserError(
            f"{images / 'train'}: has {len(found['train'])} classes ({listed(found['train'])}), promised are {promised} "
            "(data.classes): labels would be out of range; check the folder or the setting"
        )
    return found


def check_counts(images: Path, classes: dict[str, list[str]], expected: Expected) -> int:
    """Count the files before reading any of them.

    Returns:
        The number of files in all class folders.

    Raises:
        UserError: if a class is empty or contains folders, or the number of files of a split is not the expected one.
    """
    totals = check_class_folders(images, classes)
    for split, promised in (("train", expected.train), ("val", expected.val)):
        if promised is not None and totals[split] != promised:
            raise UserError(
                f"{images / split}: holds {totals[split]:,} images, promised are {promised:,} (data.expect_{split}); "
                "extract again, or correct the promise"
            )
    return sum(totals.values())


def _scan_images(images: Path, scan: _Scan, pool: ThreadPoolExecutor, ahead: int) -> Iterator[int]:
    """Read all files, sorted by class and name; yields the number of files of each chunk."""
    pending: deque = deque()
    labels = {name: label for label, name in enumerate(scan.classes)}
    for split in SPLITS:
        scan.tallies[split] = _Tally([0] * len(scan.classes))
        for class_name in scan.classes:
            folder = images / split / class_name
            if not folder.is_dir():
                continue
            for names in _chunks(image_names(folder)[0]):
                paths = [f"{split}/{class_name}/{name}" for name in names]
                pending.append((split, class_name, paths, pool.submit(_check_files, images, paths)))
                if len(pending) >= ahead:
                    yield _count(scan, labels, *pending.popleft())
    while pending:
        yield _count(scan, labels, *pending.popleft())


def _chunks(names: list[str]) -> Iterable[list[str]]:
    return (names[start : start + _CHUNK] for start in range(0, len(names), _CHUNK))


def _check_files(images: Path, paths: list[str]) -> list[Checked | Bad]:
    results = []
    for path in paths:
        try:
            data = (images / path).read_bytes()
            kind, width, height = check_image(data)
            results.append(Checked(kind, len(data), width, height, hashlib.sha256(data).hexdigest()))
        except BadImage as error:
            results.append(Bad(path, str(error)))
        except OSError as error:
            results.append(Bad(path, f"cannot be read: {error.strerror}"))
    return results


def _count(scan: _Scan, labels: dict[str, int], split: str, class_name: str, paths: list[str], future) -> int:
    tally, label = scan.tallies[split], labels[class_name]
    for path, result in zip(paths, future.result(), strict=True):
        if isinstance(result, Bad):
            scan.bad.append(result)
            continue
        tally.rows.add(Row(path, class_name, label, *result[1:]))
        scan.kinds[result.kind] += 1
        tally.counts[label] += 1
        tally.bytes += result.bytes
        tally.largest = max(tally.largest, result.bytes)
    return len(paths)


def _judge_bad_images(images: Path, scan: _Scan, options: ManifestOptions, console: Console) -> None:
    """Report the bad images; raise if they are not to be skipped, or if a class has no others."""
    report = options.report
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        with (
            atomic_path(report) as temporary,
            temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            csv.writer(file).writerows([Bad._fields, *scan.bad])
    if not scan.bad:
        return
    where = f"; all of them are in {report}" if report else ""
    first = "; ".join(f"{bad.path}: {bad.reason}" for bad in scan.bad[:LISTED])
    if options.on_bad_image == "fail":
        raise UserError(
            f"{images}: {len(scan.bad)} bad images: {first}{where}. Replace them, or leave them out with on_bad_image: skip"
        )
    console.say(f"manifest: {len(scan.bad)} bad images left out: {first}{where}")
    gone = [
        f"{split}/{name}"
        for split, tally in scan.tallies.items()
        for name, count in zip(scan.classes, tally.counts, strict=True)
        if count == 0 and (images / split / name).is_dir()
    ]
    if gone:
        raise UserError(f"{images}: classes with bad images alone: {listed(gone)}; replace the images or remove the folders")
