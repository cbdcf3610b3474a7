"""What the next machine needs to go on, as it is at one moment, while the workflow is running.

That is everything in results/ but leases, temporary files and all states except the newest one of each stage, together with
Snakemake's records of the jobs that made them: without the records it would know neither that a job has ended nor what its input
was. A declared file whose job has not ended stays out. Converted images (150 GB for ImageNet) are made anew on the next machine.
"""

from __future__ import annotations

import os
import shutil
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cswin.errors import UserError
from cswin.train.history import HISTORY
from cswin.train.state import PATTERN, StateFolder

RESULTS, RECORDS, MARKERS = "results", ".snakemake/metadata", ".snakemake/incomplete"
LEFT_OUT = ("lease", ".")  # beginnings of names: leases, temporary files


class Changing(Exception):
    """The workflow was just changing what was being gathered; a little later it will succeed."""


@dataclass(frozen=True)
class Selected:
    """A file to bring out.

    Attributes:
        path: below the work folder, with `/`.
        file: where its content lies and stays as it is.
        modified_ns: when the original was modified.
    """

    path: str
    file: Path
    modified_ns: int


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
        """Link or copy everything into `staging`, a folder on the same file system; it is emptied first.

        States come before all else. What was written before a state is therefore in the copies, a history at least as long as
        the state says above all, and so is Snakemake's record of every stage whose result was in use.

        Raises:
            Changing: if a job ended or a state was written meanwhile.
        """
        shutil.rmtree(staging, ignore_errors=True)
        states, outside = self._newest_states(), self._unfinished()
        selected = [self._take(path, staging, link=True) for path in states]
        records = dict(self._records())
        for path in self._others():
            if path not in outside:
                selected.append(self._take(path, staging, link=path in records))
        taken = {item.path for item in selected}
        selected += [self._take(record, staging, link=False) for path, record in records.items() if path in taken]
        if (states, outside, records) != (self._newest_states(), self._unfinished(), dict(self._records())):
            raise Changing("the workflow was just writing")
        return selected

    def check(self, selected: list[Selected]) -> None:
        """Look whether every state is whole and its history reaches as far as it says.

        Raises:
            UserError: if one is not; going on from it would begin the stage anew, so it must not replace an older one.
        """
        for item in selected:
            if item.file.match(PATTERN):
                self._check_state(item)

    def _newest_states(self) -> list[str]:
        """The newest state of each state folder, those set aside among them."""
        folders = sorted(self.work.glob(f"{RESULTS}/*/*/state*"))
        newest = (max(folder.glob(PATTERN), default=None) for folder in folders if folder.is_dir())
        return [self._relative(file) for file in newest if file is not None]

    def _others(self) -> Iterator[str]:
        for folder, folders, names in os.walk(self.work / RESULTS):
            folders[:] = sorted(name for name in folders if not name.startswith(LEFT_OUT))
            for name in sorted(names):
                file = Path(folder, name)
                if not name.startswith(LEFT_OUT) and file.suffix != ".damaged" and not file.match(PATTERN):
                    yield self._relative(file)

    def _records(self) -> Iterator[tuple[str, str]]:
        """(output in results/, Snakemake's record of it)."""
        for file in _files(self.work / RECORDS):
            output = _output(file.relative_to(self.work / RECORDS))
            if output.startswith(f"{RESULTS}/"):
                yield output, self._relative(file)

    def _unfinished(self) -> set[str]:
        """Outputs whose jobs have begun and not ended."""
        return {_output(file.relative_to(self.work / MARKERS)) for file in _files(self.work / MARKERS)}

    def _take(self, path: str, staging: Path, link: bool) -> Selected:
        source, target = self.work / path, staging / path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            modified = source.stat().st_mtime_ns
            if link:
                _link(source, target)
            else:
                shutil.copyfile(source, target)
        except FileNotFoundError as error:
            raise Changing(f"{path} was just removed") from error
        return Selected(path, target, modified)

    def _check_state(self, item: Selected) -> None:
        folder, status = item.file.parent, item.file.stat()
        key = (status.st_ino, status.st_size, status.st_mtime_ns)
        if key not in self._whole:
            state = StateFolder(folder, 2, self.say).load()
            if state is None:
                raise UserError(f"{item.path}: the newest training state is damaged and is not brought out")
            self._whole[key] = state.meta["history_bytes"]
        history = (folder.parent if folder.name == "state" else folder) / HISTORY  # set aside, both are in one folder
        if not history.is_file() or history.stat().st_size < self._whole[key]:
            raise UserError(f"{item.path}: its history is shorter than the state says; it is not brought out")

    def _relative(self, file: Path) -> str:
        return file.relative_to(self.work).as_posix()


def _files(folder: Path) -> list[Path]:
    return [Path(place, name) for place, _, names in os.walk(folder) for name in names]


def _output(record: Path) -> str:
    """The output that a record or marker of Snakemake is about: its path in base64, long ones cut into folders behind `@`."""
    try:
        return urlsafe_b64decode("".join(part.removeprefix("@") for part in record.parts)).decode()
    except ValueError:
        return ""


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # no hard links on this file system
        shutil.copyfile(source, target)
