"""When a complete stage is trained again, and when its files are only made again from its state.

A stage that is complete and whose identity is the same is not trained again, whatever made its job run: its checkpoint and record
are written again from the state, with the same bits. The exception is a user who asks for it (`--forcerun`). The two look alike to
the job, since Snakemake deletes a job's declared files before it starts. So the workflow tells them apart before any job starts,
while the files are still there, by marks in the state's folder, which no rule declares:

- `accepted`: the stage is complete, and a later job has used its result or its workflow has succeeded. Without it a stage that ended
  just before the workflow was killed, and the same command, would look like a stage whose repetition is asked for.
- `repeat`: it was accepted, its checkpoint is whole, and its repetition was asked for. The next job sets the state aside, with
  the mark, and trains from nothing.

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
    """Note that a completed stage's result is in use: to force it from now on means from nothing."""
    state = Path(state)
    if (state / COMPLETE).exists() and not (state / ACCEPTED).exists():
        with contextlib.suppress(OSError):  # read-only, or another user's: nobody forces the stage from here
            (state / ACCEPTED).touch()


def accept_if_used(state: Path, users: Iterable[Path]) -> None:
    """`accept` a stage if one of these files, which later jobs write, is newer than its end."""
    with contextlib.suppress(FileNotFoundError):
        ended = (state / COMPLETE).stat().st_mtime_ns
        if not (state / REPEAT).exists() and any(file.exists() and file.stat().st_mtime_ns > ended for file in users):
            accept(state)


def ask_to_repeat(stage: Path, forced: bool) -> bool:
    """Note whether a stage's repetition is asked for; for the workflow, before its jobs start.

    Args:
        stage: the stage's folder.
        forced: whether its job was forced. If not, a request is withdrawn whose job never started: the checkpoint is still there.

    Returns:
        Whether the stage was forced and is complete, and is not trained again all the same.
    """
    accepted, repeat, complete = (stage / STATE / name for name in (ACCEPTED, REPEAT, COMPLETE))
    if repeat.exists() and not forced and (stage / CHECKPOINT).exists():
        repeat.rename(accepted)
    elif forced and accepted.exists() and _is_whole(stage, complete):
        accepted.rename(repeat)
    return forced and complete.exists() and not repeat.exists()


def is_damaged(stage: Path) -> bool:
    """Whether a stage's checkpoint is there, but is not the file that its record names.

    A file that is not newer than its record is not read, since the record is written last: the check then costs no time, and does
    not see what changes no date (a bad disk). Whoever reads the file does (`check_previous`, `cswin.checkpoint.load_checkpoint`).
    """
    checkpoint, record = stage / CHECKPOINT, stage / RECORD
    try:
        newer = checkpoint.stat().st_mtime_ns > record.stat().st_mtime_ns
    except FileNotFoundError:
        return False
    return newer and not _is_whole(stage, record)


def check_previous(checkpoint: Path, sha256: str) -> None:
    """Refuse to start from a stage's checkpoint that is not the file that its record names.

    Raises:
        UserError: before anything is changed; a wrong start would look like another computation.
    """
    record = checkpoint.with_name(RECORD)
    if checkpoint.name == CHECKPOINT and record.exists() and json.loads(record.read_text(encoding="utf-8"))["sha256"] != sha256:
        raise UserError(
            f"{checkpoint}: is damaged (its hash is not the one in {record.name}); remove it and give the same command again: it is "
            "made again from the stage's state, without training"
        )


def _is_whole(stage: Path, facts: Path) -> bool:
    """Whether the checkpoint is there and has the hash that `facts` (record.json, complete.json) names."""
    try:
        with (stage / CHECKPOINT).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == json.loads(facts.read_text(encoding="utf-8"))["sha256"]
    except FileNotFoundError:
        return False
