"""Writes dataset.json from the receipts of all shards, and verifies a whole dataset."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from cswin.atomic import atomic_path
from cswin.data.sources.tree_writer import remove_tree
from cswin.data.store.dataset import FORMAT, Dataset, ShardFacts, file_problem
from cswin.data.store.manifest import Summary, load_summary, read_manifest
from cswin.data.store.mindrecord import Receipt, content_hash, label_hash, load_receipt
from cswin.data.store.shard_reader import ShardIndex, damaged, read_image, read_index
from cswin.errors import UserError
from cswin.progress import Console, Progress


def shard_name(split: str, shard: int) -> str:
    """File name of a shard without its suffix."""
    return f"{split}-{shard:05d}"


def write_dataset(summary_path: Path, shards: Path, output: Path, remove_images: Path | None = None) -> Dataset:
    """Collect the receipts of all shards and write dataset.json.

    Args:
        summary_path: manifest.json, or a plan made from it.
        shards: folder with the shards and their receipts.
        output: dataset.json; its folder gives the dataset its name.
        remove_images: extracted tree that is removed after dataset.json was written.

    Raises:
        UserError: if a shard is missing, was made from another manifest, or its sizes have changed.
    """
    summary = load_summary(summary_path)
    splits = {}
    for split, facts in summary.splits.items():
        entries = [shard_entry(summary, split, shard, shards, output.parent) for shard in range(facts.shards)]
        splits[split] = {"images": facts.images, "shards": entries}
    content = {
        "format": FORMAT,
        "name": output.absolute().parent.name,
        "manifest_hash": summary.manifest_hash,
        "summary": os.path.relpath(summary_path.absolute(), output.absolute().parent),
        "class_names": summary.class_names,
        "splits": splits,
    }
    with atomic_path(output) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    dataset = Dataset.load(output)
    if remove_images is not None:
        remove_tree(remove_images)
    return dataset


def shard_entry(summary: Summary, split: str, shard: int, shards: Path, folder: Path) -> dict:
    """The entry of a shard for dataset.json in `folder`. Raises `UserError` if it is missing or does not belong to the summary."""
    path = shards / f"{shard_name(split, shard)}.mindrecord"
    receipt = load_receipt(path.with_suffix(".json"))
    first, last = summary.shard_range(split, shard)
    if receipt.manifest_hash != summary.manifest_hash or (receipt.first, receipt.rows) != (first, last - first):
        raise UserError(f"{path}: was made from another manifest or shard size; remove it and convert again")
    facts = _facts(receipt, os.path.relpath(path.absolute(), folder.absolute()))
    problem = file_problem(path, facts)
    if problem:
        raise damaged(path, problem)
    return facts.__dict__


def _facts(receipt: Receipt, file: str) -> ShardFacts:
    return ShardFacts(**{field.name: getattr(receipt, field.name) for field in fields(ShardFacts)} | {"file": file})


@dataclass(frozen=True)
class ShardCheck:
    """The result of the verification of a shard; `problems` is empty if it is intact."""

    shard: Path
    rows: int
    problems: tuple[str, ...]


def verify_dataset(path: Path, console: Console) -> Iterator[ShardCheck]:
    """Read every row of every shard and compare it with the manifest and with dataset.json.

    If the rows of the manifest exist, a damaged row is named by its image; this takes 44 bytes of memory per image. Without them
    (they may be deleted after the conversion) the comparison uses the hashes in dataset.json.

    Args:
        path: dataset.json.
        console: for progress.

    Yields:
        One result per shard.

    Raises:
        UserError: if dataset.json itself, or the manifest, is damaged.
    """
    dataset = Dataset.load(path, check_files=False)
    summary_path = path.parent / dataset.summary
    summary = load_summary(summary_path) if summary_path.exists() else None
    if summary is not None and summary.manifest_hash != dataset.manifest_hash:
        raise UserError(f"{path}: was made from another manifest than {summary_path}; convert again")
    total = sum(shard.bytes for shards in dataset.splits.values() for shard in shards)
    with console.progress("verify", total, "B") as progress:
        for split in dataset.splits:
            expected = None if summary is None else _Expected.load(summary_path, summary, split)
            for shard, facts in zip(dataset.shards(split), dataset.splits[split], strict=True):
                problems = _check_shard(shard, facts, len(dataset.class_names), expected, progress)
                yield ShardCheck(shard, facts.rows, tuple(problems))


@dataclass
class _Expected:
    """Labels and hashes of a split's rows, in storage order."""

    manifest: Path
    summary: Summary
    split: str
    labels: np.ndarray
    hashes: np.ndarray

    @classmethod
    def load(cls, summary_path: Path, summary: Summary, split: str) -> _Expected | None:
        manifest = summary_path.parent / summary.rows_file
        if not manifest.exists():
            return None
        images = summary.splits[split].images
        labels, hashes = np.empty(images, np.int32), np.empty((images, 32), np.uint8)
        number = 0
        for row in read_manifest(manifest, summary):
            if row.path.startswith(f"{split}/"):
                labels[number], hashes[number] = row.label, np.frombuffer(bytes.fromhex(row.sha256), np.uint8)
                number += 1
        return cls(manifest, summary, split, labels, hashes)

    def names(self, positions: list[int]) -> list[str]:
        """Paths of the images at these positions."""
        prefix, wanted = f"{self.split}/", set(positions)
        rows = (row.path for row in read_manifest(self.manifest, self.summary) if row.path.startswith(prefix))
        return [name for number, name in enumerate(rows) if number in wanted]


def _check_shard(shard: Path, facts: ShardFacts, classes: int, expected: _Expected | None, progress: Progress) -> list[str]:
    problem = file_problem(shard, facts)
    if problem:
        progress.update(facts.bytes)
        return [problem]
    try:
        index = read_index(shard)
    except UserError as error:
        progress.update(facts.bytes)
        return [str(error)]
    if len(index.labels) != facts.rows or index.first != facts.first:
        return [f"holds {len(index.labels)} rows from {index.first}, not {facts.rows} from {facts.first}"]
    out_of_range = [int(label) for label in index.labels if not 0 <= label < classes]
    if out_of_range:
        return [f"labels outside of 0 to {classes - 1}: {out_of_range[:10]}"]
    hashes, unreadable = _hash_rows(shard, index, progress)
    progress.update(facts.bytes - int(index.sizes.sum()))
    problems = [f"{len(unreadable)} rows cannot be read, the first is row {unreadable[0]}"] if unreadable else []
    if label_hash(index.labels, classes) != facts.labels:
        problems.append("the numbers of rows by label have changed")
    content = content_hash((facts.first + row, int(index.labels[row]), sha) for row, sha in enumerate(hashes))
    if content != facts.content:
        problems.append("the content has changed")
    if expected is not None:
        problems += _compare(index.labels, hashes, facts.first, expected)
    return problems


def _hash_rows(shard: Path, index: ShardIndex, progress: Progress) -> tuple[list[str], list[int]]:
    """SHA-256 of every image, and the rows that could not be read."""
    hashes, unreadable = [], []
    descriptor = os.open(shard, os.O_RDONLY)
    try:
        for row, (offset, size) in enumerate(zip(index.offsets.tolist(), index.sizes.tolist(), strict=True)):
            try:
                hashes.append(hashlib.sha256(read_image(descriptor, shard, offset, size)).hexdigest())
            except UserError:
                hashes.append("")
                unreadable.append(row)
            progress.update(size)
    finally:
        os.close(descriptor)
    return hashes, unreadable


def _compare(labels: np.ndarray, hashes: list[str], first: int, expected: _Expected) -> list[str]:
    rows = slice(first, first + len(labels))
    same = np.array([sha == row.tobytes().hex() for sha, row in zip(hashes, expected.hashes[rows], strict=True)])
    wrong = np.flatnonzero(~same | (labels != expected.labels[rows]))
    if not len(wrong):
        return []
    names = expected.names([first + int(row) for row in wrong[:10]])
    return [f"{len(wrong)} images are not those of the manifest: {', '.join(names)}" + (", …" if len(wrong) > 10 else "")]
