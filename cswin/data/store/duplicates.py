"""Images that are there more than once, byte for byte: within train or val, and in both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cswin.data.sources.source import LISTED
from cswin.data.store.manifest import Row, SplitRows
from cswin.errors import UserError
from cswin.progress import Console


class Duplicates(NamedTuple):
    """What was found.

    Attributes:
        counts: "train", "val": images that repeat another one of the split; "train_in_val": images of train that are also in val.
        first: the first pairs, as text.
    """

    counts: dict[str, int]
    first: list[str]


def sentence(counts: dict[str, int]) -> str:
    """The counts in words."""
    return (
        f"{counts['train_in_val']:,} images of train are also in val; "
        f"{counts['train']:,} repeat another image of train, {counts['val']:,} of val"
    )


def judge(duplicates: Duplicates, images: Path, on_duplicate: str, console: Console) -> None:
    """Say what was found in the folder `images`.

    Raises:
        UserError: if something was found and `on_duplicate` is "fail".
    """
    if not duplicates.first:
        return
    found = f"{sentence(duplicates.counts)}: {'; '.join(duplicates.first)}"
    if on_duplicate == "fail":
        raise UserError(f"{images}: {found}. Remove them, or keep them with on_duplicate: report")
    console.say(f"manifest: {found}")


def find_duplicates(splits: Mapping[str, SplitRows]) -> Duplicates:
    """Compare the hashes of all images; a few 8-byte numbers per image of memory."""
    counts, first = {**dict.fromkeys(splits, 0), "train_in_val": 0}, []
    for group in _equal(splits):
        number = {split: sum(name == split for name, _ in group) for split in splits}
        for split in splits:
            counts[split] += max(0, number[split] - 1)
        counts["train_in_val"] += number["train"] if number["val"] else 0
        first += [" = ".join(row.path for _, row in group[:3])] if len(first) < LISTED else []
    return Duplicates(counts, first)


def _equal(splits: Mapping[str, SplitRows]) -> Iterator[list[tuple[str, Row]]]:
    """Groups of two or more rows with the same hash, each with its split."""
    names = list(splits)
    keys = np.concatenate([np.frombuffer(rows.keys, np.uint64) for rows in splits.values()])
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order], prepend=keys[order][:1] + 1))
    ends = np.append(starts[1:], len(keys))
    offsets = np.cumsum([0, *(len(rows.keys) for rows in splits.values())])
    for start, end in zip(*(edges[ends - starts > 1].tolist() for edges in (starts, ends)), strict=True):
        found: dict[str, list[tuple[str, Row]]] = {}
        for number in order[start:end].tolist():
            split = int(np.searchsorted(offsets, number, side="right")) - 1
            row = splits[names[split]].row(number - int(offsets[split]))
            found.setdefault(row.sha256, []).append((names[split], row))  # a key is a part of a hash
        yield from (group for group in found.values() if len(group) > 1)
