"""Decides whether a complete stage is trained again, or whether its files are only written again from its state.

A complete stage with an unchanged identity is not trained again, whatever caused its job: the job writes checkpoint and record
again from the state, bit-identical. The exception is `--forcerun`. The job cannot see it, because Snakemake deletes a job's
declared files before it starts. So the workflow decides before any job starts, while these files still exist, and leaves marks in
the state folder, which no rule declares:

- `accepted`: the stage is complete, and a later job has used its result or the workflow has succeeded. This mark is needed because
  a `--forcerun` that is repeated after the workflow was killed at the end of the stage must not train the stage again.
- `repeat`: the stage was accepted, its checkpoint is undamaged, and `--forcerun` was given. The next job sets the state aside,
  with this mark, and trains from the first step.

A forced stage whose checkpoint is missing or damaged gets its files back from the state.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from cswin.errors import UserError
from cswin.layout import CHECKPOINT, RECORD, STATE

COMPLETE, ACCEPTED, REPEAT = "complete.json", "accepted", "repeat"


def accept(state: Path) -> None:
    """Note that a complete stage's result is in use: from now on, forcing the stage trains it from the first step."""
    state = Path(state)
    if (state / COMPLETE).exists() and not (state / ACCEPTED).exists():
        with contextlib.suppress(OSError):  # not writable: this user cannot force the stage anyway
            (state / ACCEPTED).touch()


def accept_if_used(state: Path, users: Iterable[Path]) -> None:
    """`accept` a stage if one of these files, which later jobs write, is newer than the stage's end."""
    with contextlib.suppress(FileNotFoundError):
        ended = (state / COMPLETE).stat().st_mtime_ns
        if not (state / REPEAT).exists() and any(file.exists() and file.stat().st_mtime_ns > ended for file in users):
            accept(state)


def ask_to_repeat(stage: Path, forced: bool) -> bool:
    """Set or remove the mark `repeat` of a stage. The workflow calls it before its jobs start.

    Args:
        stage: the stage's folder.
        forced: whether its job was forced. If not, a mark whose job never started (the checkpoint still exists) is removed.

    Returns:
        Whether the stage is complete and was forced, but will not be trained again.
    """
    accepted, repeat, complete = (stage / STATE / name for name in (ACCEPTED, REPEAT, COMPLETE))
    if repeat.exists() and not forced and (stage / CHECKPOINT).exists():
        repeat.rename(accepted)
    elif forced and accepted.exists() and _is_whole(stage, complete):
        accepted.rename(repeat)
    return forced and complete.exists() and not repeat.exists()


def is_damaged(stage: Path) -> bool:
    """Whether a stage's checkpoint exists, but its hash is not the one in the record.

    The record is written last. So a checkpoint that is not newer than its record is not read, and the check costs no time. A disk
    error that leaves the date unchanged is found when the file is read (`check_previous`, `cswin.checkpoint.load_checkpoint`).
    """
    checkpoint, record = stage / CHECKPOINT, stage / RECORD
    try:
        newer = checkpoint.stat().st_mtime_ns > record.stat().st_mtime_ns
    except (FileNotFoundError, NotADirectoryError):
        return False
    return newer and not _is_whole(stage, record)


def check_previous(checkpoint: Path, sha256: str) -> None:
    """Refuse to start from a stage's checkpoint whose hash is not the one in its record.

    Raises:
        UserError: before anything is changed; otherwise the damaged file would change the identity of the next stage.
    """
    record = checkpoint.with_name(RECORD)
    if checkpoint.name == CHECKPOINT and record.exists() and json.loads(record.read_text(encoding="utf-8"))["sha256"] != sha256:
        raise UserError(
            f"{checkpoint}: is damaged (its hash is not the one in {record.name}); remove it and give the same command again: it is "
            "written again from the stage's state, without training"
        )


def _is_whole(stage: Path, facts: Path) -> bool:
    """Whether the checkpoint exists and has the hash that is in `facts` (record.json or complete.json)."""
    try:
        with (stage / CHECKPOINT).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == json.loads(facts.read_text(encoding="utf-8"))["sha256"]
    except (FileNotFoundError, NotADirectoryError):
        return False
