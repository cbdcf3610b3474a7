"""Resume state in the storage: immutable objects named by their content, and an index that is written last.

    <train_url>/resume/objects/<sha256>       contents
    <train_url>/resume/index-00000017.json    which contents under which names make up the state; with its own checksum

A snapshot exists from the moment when its index is there, and all its objects are there by then. Objects are never overwritten,
and are removed only when neither of the last two indexes needs them. So whenever a job is killed, the newest index is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from cswin.checkpoint import file_sha256
from cswin.errors import UserError
from cswin.layout import RESULTS
from cswin.openi.selection import MARKERS, RECORDS, Selected
from cswin.openi.storage import Storage, join

FORMAT = "cswin-openi-1"
KEPT = 2  # snapshots
NOTHING_WHOLE = (
    "holds no snapshot that can be read whole; restore it from a copy, or give another train_url to start from nothing"
)


@dataclass(frozen=True)
class Entry:
    """A file of a snapshot: path below the work folder, content, date."""

    path: str
    sha256: str
    bytes: int
    modified_ns: int


@dataclass(frozen=True)
class Snapshot:
    """A resume state.

    Attributes:
        number: ascending.
        work_id: of the work folder that it came from.
        entries: its files.
    """

    number: int
    work_id: str
    entries: tuple[Entry, ...]

    @property
    def bytes(self) -> int:
        """Of all files together."""
        return sum(entry.bytes for entry in self.entries)


class Snapshots:
    """The snapshots at a train_url.

    Args:
        storage, url: the place.
        say: receives messages.
    """

    def __init__(self, storage: Storage, url: str, say: Callable[[str], None]):
        self.storage, self.say = storage, say
        self.folder, self.objects = join(url, "resume"), join(url, "resume", "objects")
        self._present: set[str] = set()  # objects that are known to be there, whole
        self._hashes: dict[tuple, str] = {}

    def all(self) -> list[Snapshot]:
        """Readable snapshots, the newest first.

        Raises:
            UserError: if there are some and none is readable.
        """
        names = [name for name in self.storage.names(self.folder) if name.startswith("index-")]
        snapshots = [found for name in sorted(names, reverse=True) if (found := self._read(name)) is not None]
        if names and not snapshots:
            raise UserError(f"{self.folder}: {NOTHING_WHOLE}")
        return snapshots

    def commit(self, selected: list[Selected], work_id: str) -> Snapshot:
        """Bring a state out; on return it is what the next start finds. Where nothing has changed, it is there already."""
        before = self.all()
        entries = tuple(self._bring_out(item) for item in selected)
        if before and (before[0].entries, before[0].work_id) == (entries, work_id):
            return before[0]
        snapshot = Snapshot(1 + (before[0].number if before else 0), work_id, entries)
        content = json.dumps(asdict(snapshot))
        check = hashlib.sha256(content.encode()).hexdigest()
        self.storage.write(
            join(self.folder, _index(snapshot)), json.dumps({"format": FORMAT, "sha256": check, "snapshot": content})
        )
        self._clean_up([snapshot, *before][:KEPT])
        return snapshot

    def restore(self, snapshots: list[Snapshot], work: Path) -> Snapshot:
        """Put the newest of the snapshots that can be read whole into a work folder.

        Dates keep their order and lie before now, so that what is made here from now on is newer.

        Raises:
            UserError: if none can be read.
        """
        arriving = work / ".openi-arriving"
        for snapshot in snapshots:
            shutil.rmtree(arriving, ignore_errors=True)
            try:
                for entry in snapshot.entries:
                    self.storage.get(join(self.objects, entry.sha256), arriving / entry.path)
                    if file_sha256(arriving / entry.path) != entry.sha256:
                        raise UserError(f"{entry.path}: its content does not match its checksum")
            except UserError as error:
                self.say(f"snapshot {snapshot.number} cannot be used ({error}); trying the one before")
                continue
            _set_dates(snapshot, arriving)
            _move_in(snapshot, arriving, work)
            return snapshot
        raise UserError(f"{self.folder}: {NOTHING_WHOLE}")

    def _bring_out(self, item: Selected) -> Entry:
        status = item.file.stat()
        key = (status.st_ino, status.st_size, status.st_mtime_ns)
        sha = self._hashes[key] = self._hashes.get(key) or file_sha256(item.file)
        target = join(self.objects, sha)
        if sha not in self._present and not (self.storage.exists(target) and self.storage.size(target) == status.st_size):
            self.storage.put(item.file, target)
            if (there := self.storage.size(target)) != status.st_size:
                raise UserError(f"{target}: has {there:,} bytes after copying, not {status.st_size:,}; is the storage full?")
        self._present.add(sha)
        return Entry(item.path, sha, status.st_size, status.st_mtime_ns)

    def _read(self, name: str) -> Snapshot | None:
        try:
            outer = json.loads(self.storage.read(join(self.folder, name)))
            if outer["format"] != FORMAT or hashlib.sha256(outer["snapshot"].encode()).hexdigest() != outer["sha256"]:
                raise ValueError("its checksum does not match")
            values = json.loads(outer["snapshot"])
            return Snapshot(values["number"], values["work_id"], tuple(Entry(**entry) for entry in values["entries"]))
        except (ValueError, TypeError, KeyError) as error:
            self.say(f"{join(self.folder, name)}: is damaged ({error}) and not used")
            return None

    def _clean_up(self, kept: list[Snapshot]) -> None:
        """Remove all other snapshots, indexes first, and the objects that nothing needs any more."""
        indexes, needed = {_index(snapshot) for snapshot in kept}, {e.sha256 for snapshot in kept for e in snapshot.entries}
        for name in self.storage.names(self.folder):
            if name.startswith("index-") and name not in indexes:
                self.storage.remove(join(self.folder, name))
        for name in self.storage.names(self.objects):
            if name not in needed:
                self._present.discard(name)
                self.storage.remove(join(self.objects, name))


def _index(snapshot: Snapshot) -> str:
    return f"index-{snapshot.number:08d}.json"


def _set_dates(snapshot: Snapshot, folder: Path) -> None:
    newest = max((entry.modified_ns for entry in snapshot.entries), default=0)
    shift = min(0, time.time_ns() - newest)  # the other machine's clock may have been ahead
    for entry in snapshot.entries:
        os.utime(folder / entry.path, ns=(entry.modified_ns + shift, entry.modified_ns + shift))


def _move_in(snapshot: Snapshot, arriving: Path, work: Path) -> None:
    """Snakemake's records first, the results in one rename last: results are there whole or not at all.

    What Snakemake has recorded on this machine stays: of the dataset, which has been made here. A marker (of a job that had not ended)
    has the same name as the record of the file that it is about.
    """
    here = {file.relative_to(work / RECORDS) for file in (work / RECORDS).rglob("*") if file.is_file()}
    for entry in snapshot.entries:
        folder = next((folder for folder in (RECORDS, MARKERS) if entry.path.startswith(f"{folder}/")), None)
        if folder and Path(entry.path).relative_to(folder) not in here:
            target = work / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            (arriving / entry.path).replace(target)
    if (arriving / RESULTS).exists():
        (arriving / RESULTS).rename(work / RESULTS)
    shutil.rmtree(arriving, ignore_errors=True)
