"""What the next machine needs to go on, as it is at one moment, while the workflow is running.

That is everything in results/ but leases, temporary files and all states except the newest one of each stage, together with
Snakemake's records: without them it would not know what a finished job's input was, nor that another job has not ended. They are
copied unread. Converted images (150 GB for ImageNet) are made anew on the next machine.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cswin.errors import UserError
from cswin.layout import HISTORY, RESULTS, STATE
from cswin.run.states import PATTERN, StateFolder

RECORDS, MARKERS = ".snakemake/metadata", ".snakemake/incomplete"
WHOLE = ".safetensors"  # files of this kind appear by a rename and are never changed: a link to one keeps its content
LEFT_OUT = shutil.ignore_patterns("lease*", ".*", "*.damaged", PATTERN)


class Changing(UserError):
    """The workflow was just changing what was being gathered; a little later it will succeed."""


@dataclass(frozen=True)
class Selected:
    """A file to bring out.

    Attributes:
        path: below the work folder, with `/`.
        file: a copy whose content stays as it is.
    """

    path: str
    file: Path


class Selection:
    """Gathers files of a work folder; whole states are remembered, so that each is read once.

    Args:
        work: the folder in which the workflow runs.
        say: receives messages.
    """

    def __init__(self, work: Path, say: Callable[[str], None]):
        self.work, self.say = Path(work), say
        self._whole: dict[tuple, int] = {}  # a state's identity -> bytes of history that it needs

    def gather(self, staging: Path) -> list[Selected]:
        """Link or copy everything, with its dates, into `staging`, a folder on the same file system; it is emptied first.

        States come before all else, so that the copy of a history is at least as long as the state says.

        Raises:
            Changing: if a job began or ended or a state was written meanwhile.
        """
        shutil.rmtree(staging, ignore_errors=True)
        before = self._moment()
        try:
            for state in before[0]:
                (staging / state).parent.mkdir(parents=True, exist_ok=True)
                _take(self.work / state, staging / state)
            for folder, ignore in ((RESULTS, LEFT_OUT), (RECORDS, None), (MARKERS, None)):
                if (self.work / folder).is_dir():
                    shutil.copytree(
                        self.work / folder, staging / folder, ignore=ignore, copy_function=_take, dirs_exist_ok=True
                    )
        except (FileNotFoundError, shutil.Error) as error:
            raise Changing(f"a file was just removed ({error})") from error
        if before != self._moment():
            raise Changing("the workflow was just writing")
        return [Selected(file.relative_to(staging).as_posix(), file) for file in _files(staging)]

    def check(self, selected: list[Selected]) -> None:
        """Look whether every state is whole and its history reaches as far as it says.

        Raises:
            UserError: if one is not; going on from it would begin the stage anew, so it must not replace an older one.
        """
        for item in selected:
            if item.file.match(PATTERN):
                self._check_state(item)

    def _moment(self) -> tuple[list[str], list[tuple]]:
        """The newest state of each state folder, those set aside among them; Snakemake's records with their dates."""
        folders = [folder for folder in self.work.glob(f"{RESULTS}/*/*/state*") if folder.is_dir()]
        newest = [max(folder.glob(PATTERN), default=None) for folder in sorted(folders)]
        states = [file.relative_to(self.work).as_posix() for file in newest if file is not None]
        records = [file for folder in (RECORDS, MARKERS) for file in _files(self.work / folder)]
        try:
            return states, [(file, file.stat().st_mtime_ns) for file in records]
        except FileNotFoundError as error:
            raise Changing(f"a job was just ending ({error})") from error

    def _check_state(self, item: Selected) -> None:
        folder, status = item.file.parent, item.file.stat()
        key = (status.st_ino, status.st_size, status.st_mtime_ns)
        if key not in self._whole:
            state = StateFolder(folder, 2, self.say).load()
            if state is None:
                raise UserError(f"{item.path}: the newest training state is damaged and is not brought out")
            self._whole[key] = state.meta["history_bytes"]
        history = (folder.parent if folder.name == STATE else folder) / HISTORY  # set aside, both are in one folder
        if not history.is_file() or history.stat().st_size < self._whole[key]:
            raise UserError(f"{item.path}: its history is shorter than the state says; it is not brought out")


def _files(folder: Path) -> list[Path]:
    return sorted(Path(place, name) for place, _, names in os.walk(folder) for name in names)


def _take(source: str | Path, target: str | Path) -> None:
    if Path(source).suffix == WHOLE:
        try:
            os.link(source, target)
            return
        except FileNotFoundError:
            raise
        except OSError:  # no hard links on this file system
            pass
    shutil.copy2(source, target)
