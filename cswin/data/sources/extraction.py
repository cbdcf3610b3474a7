"""Extraction of any source to a folder with train/<class>/ and val/<class>/. An interrupted extraction resumes where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cswin.atomic import atomic_path
from cswin.data.disk import check_space
from cswin.data.sources.source import SPLITS, Source
from cswin.data.sources.tree_writer import JOURNAL_SECONDS, TreeWriter, existing_tree, open_tree
from cswin.progress import Console


def extract(
    source: Source, output: Path, receipt: Path, console: Console, journal_seconds: float = JOURNAL_SECONDS
) -> dict[str, Any]:
    """Extract a source to `output`, then write `receipt`. Memory does not depend on the size of the source.

    Args:
        source: the source of the images.
        output: folder for train/ and val/.
        receipt: JSON file, written last: the files read, the number of images by class, and facts that the source adds.
        console: for progress.
        journal_seconds: time between two entries of the journal.

    Returns:
        The receipt's content.

    Raises:
        UserError: damaged or rejected files, another layout, disk full, foreign files in `output`.
    """
    identity = source.identity()
    marker = existing_tree(output, identity)
    if marker is None:
        with open_tree(output, identity, journal_seconds) as tree:
            _fill(tree, source, sum(file["bytes"] for file in identity.values()), console)
            marker = tree.complete(source.complete)
    else:
        console.say(f"extract: {output} is there already and whole")
    _write_receipt(receipt, marker)
    return marker


def _fill(tree: TreeWriter, source: Source, size: int, console: Console) -> None:
    done = min(size, tree.cursor["position"]) if tree.cursor else 0
    check_space(tree.output, size - done, f"extracting {source.title}")
    if tree.cursor is not None:
        console.say(f"extract: going on after {tree.written:,} files")
    with console.progress(f"extract {source.title}", size, "B", done) as progress:
        for entry in source.entries(tree.cursor):
            tree.add(f"{entry.split}/{entry.class_name}", entry.name, entry.data)
            tree.reached(entry.cursor)
            # The decompressed size of a tar.gz is unknown; for images it equals that of the archive within a percent.
            progress.update(max(0, min(entry.cursor["position"], size) - progress.done), files=f"{tree.written:,}")
        progress.update(size - progress.done)


def _write_receipt(receipt: Path, marker: dict[str, Any]) -> None:
    """The receipt says what was extracted from which files. It depends only on content, not on times."""
    source = {key: {"name": value["name"], "bytes": value["bytes"]} for key, value in marker["source"].items()}
    totals = {split: sum(n for name, n in marker["files"].items() if name.startswith(f"{split}/")) for split in SPLITS}
    receipt.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(receipt) as temporary:
        temporary.write_text(json.dumps({**marker, "source": source, "totals": totals}, indent=1) + "\n")
