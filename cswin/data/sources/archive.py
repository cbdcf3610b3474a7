"""Extraction of the report's archive: one tar or tar.gz with train/ and val/ by class, alone or below one top folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cswin.atomic import atomic_path
from cswin.cores import usable_cores
from cswin.data.sources.tar_reader import Member, files, is_gzip, open_archive, read_data
from cswin.data.sources.tree_writer import JOURNAL_SECONDS, TreeWriter, check_space, existing_tree, open_tree
from cswin.errors import UserError
from cswin.progress import Console, Progress

SPLITS = ("train", "val")
_NAMED_IGNORED = 20


@dataclass
class Ignored:
    """Members that are no images: hidden files and what lies outside of train/ and val/."""

    count: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        """Count one; the first twenty are named."""
        self.count += 1
        if len(self.names) < _NAMED_IGNORED:
            self.names.append(name)


def place(archive: Path, member: Member, top: str | None) -> tuple[str, str, str | None] | None:
    """Where a member belongs.

    Args:
        archive: for messages.
        member: the file.
        top: the folder above train/ and val/ that earlier members had ("" for none), None if there were none.

    Returns:
        (folder "train/<class>", file name, top folder), or None for a file that is no image of the dataset.

    Raises:
        UserError: for a file in train/ or val/ that is not in a class folder of it, or below another top folder.
    """
    parts = member.parts
    depth = next((depth for depth in (0, 1) if len(parts) > depth and parts[depth] in SPLITS), None)
    if depth is None or any(part.startswith(".") for part in parts):
        return None
    here = parts[0] if depth else ""
    if top is not None and here != top:
        raise UserError(
            f"{archive}: {member.name!r} is below {here!r} while others are below {top!r}; there may be one top folder"
        )
    if len(parts) != depth + 3:
        raise UserError(
            f"{archive}: {member.name!r} is not in a class folder; the layout is train/<class>/<image> and val/<class>/<image>, "
            "alone or below one top folder"
        )
    return f"{parts[depth]}/{parts[depth + 1]}", parts[-1], here


def extract_archive(
    archive: Path, output: Path, receipt: Path, console: Console, journal_seconds: float = JOURNAL_SECONDS
) -> dict[str, Any]:
    """Extract the archive to `output`, then write `receipt`.

    A plain tar that was interrupted goes on at the member where it stood; a tar.gz is decompressed again up to there, without
    writing. Memory does not depend on the size of the archive.

    Args:
        archive: tar or tar.gz.
        output: folder that gets train/ and val/.
        receipt: JSON file, written last: source, number of files by class, ignored members.
        console: for progress.
        journal_seconds: how often the place is written down.

    Returns:
        The receipt's content.

    Raises:
        UserError: damaged archive, refused members, unknown layout, disk full, foreign files in `output`.
    """
    source = {"archive": identify(archive)}
    marker = existing_tree(output, source)
    if marker is None:
        with open_tree(output, source, journal_seconds) as tree:
            marker = _extract(archive, tree, console)
    else:
        console.say(f"extract: {output} is there already and whole")
    write_receipt(receipt, marker)
    return marker


def _extract(archive: Path, tree: TreeWriter, console: Console) -> dict[str, Any]:
    packed, size = is_gzip(archive), archive.stat().st_size
    place_now = tree.cursor or {"offset": 0, "members": 0, "top": None, "ignored": [0, []]}
    done = 0 if packed else place_now["offset"]
    if not packed or tree.cursor is None:
        check_space(tree.output, size - done, f"extracting {archive.name}")
    if tree.cursor is not None:
        console.say(f"extract: going on after {tree.written:,} files")
    ignored = Ignored(place_now["ignored"][0], list(place_now["ignored"][1]))
    with (
        console.progress(f"extract {archive.name}", size, "B", done) as progress,
        open_archive(archive, usable_cores()) as stream,
    ):
        members = _placed(archive, files(archive, stream, done), place_now, packed, ignored)
        for member, target, cursor in members:
            if target is not None:
                tree.add(*target, read_data(archive, stream, member))
            tree.reached(cursor)
            _show(progress, member.next, size, tree.written)
        progress.update(max(0, size - progress.done))
    if not tree.written:
        raise UserError(f"{archive}: holds no images in train/<class>/ and val/<class>/; is it the right archive?")
    for split in SPLITS:
        if not (tree.partial / split).is_dir():
            raise UserError(f"{archive}: holds no {split}/; the layout is train/<class>/<image> and val/<class>/<image>")
    return tree.complete({"ignored": {"count": ignored.count, "first": ignored.names}})


def _placed(
    archive: Path, members: Iterator[Member], start: dict[str, Any], packed: bool, ignored: Ignored
) -> Iterator[tuple[Member, tuple[str, str] | None, dict[str, Any]]]:
    """(member, (folder, name) or None, cursor after it); those before the cursor of a tar.gz are left out."""
    count, top = start["members"], start["top"]
    skip = count if packed else 0
    for number, member in enumerate(members):
        if number < skip:
            continue
        count += 1
        placed = place(archive, member, top)
        if placed is None:
            ignored.add(member.name)
        else:
            top = placed[2]
        cursor = {"offset": member.next, "members": count, "top": top, "ignored": [ignored.count, ignored.names]}
        yield member, placed and placed[:2], cursor


def _show(progress: Progress, position: int, size: int, written: int) -> None:
    """A tar.gz's decompressed size is unknown; for images it is that of the archive within a percent."""
    step = min(position, size) - progress.done
    if step > 0:
        progress.update(step, files=f"{written:,}")


def identify(archive: Path) -> dict[str, Any]:
    """What tells an archive from another without reading it: name, size, time of modification.

    Raises:
        UserError: if it is not there.
    """
    try:
        status = archive.stat()
    except OSError as error:
        raise UserError(f"{archive}: cannot be read ({error.strerror}); check the path of the archive") from error
    return {"name": archive.name, "bytes": status.st_size, "modified_ns": status.st_mtime_ns}


def write_receipt(receipt: Path, marker: dict[str, Any]) -> None:
    """The receipt says what was extracted and from what; it depends on content alone, not on times."""
    source = {key: {"name": value["name"], "bytes": value["bytes"]} for key, value in marker["source"].items()}
    totals = {split: sum(n for name, n in marker["files"].items() if name.startswith(f"{split}/")) for split in SPLITS}
    receipt.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(receipt) as temporary:
        temporary.write_text(json.dumps({**marker, "source": source, "totals": totals}, indent=1) + "\n")
