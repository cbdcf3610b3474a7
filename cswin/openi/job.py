"""A job on the platform, from its parameters to its exit code. Read from top to bottom.

Exit codes: 0 everything is made; 75 it was asked to stop, the same train_url goes on from there; 2 something that the user can put
right; else Snakemake's.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from cswin.atomic import atomic_path
from cswin.config.resolve import parse_settings
from cswin.config.settings import Settings
from cswin.data.sources.registry import INPUTS
from cswin.distributed.group import ProcessGroup
from cswin.distributed.stopping import EXIT_INTERRUPTED, EXIT_USER
from cswin.errors import UserError
from cswin.layout import RESULTS
from cswin.openi.inputs import bring_checkpoint, bring_data
from cswin.openi.ownership import Ownership
from cswin.openi.parameters import ROOT, Parameters, parse_parameters
from cswin.openi.selection import Changing, Selected, Selection
from cswin.openi.snapshots import Snapshot, Snapshots
from cswin.openi.storage import join, storage_for
from cswin.progress import size_text
from cswin.run.states import PATTERN

MARKER = "openi.json"  # whose work a work folder is
LONGEST_BEAT = 10.0  # seconds
TRIES = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a job; the command line's entry."""
    os.environ.setdefault("GLOG_v", "3")
    try:
        return Job(parse_parameters(sys.argv[1:] if arguments is None else arguments)).run()
    except UserError as error:
        print(f"cswin.openi: {error}", file=sys.stderr, flush=True)
        return EXIT_USER


def say(line: str) -> None:
    """A line in the job's log."""
    print(f"cswin.openi: {line}", file=sys.stderr, flush=True)


class Job:
    """Brings in, runs the workflow, brings out: resume state under resume/, what people read under results/."""

    def __init__(self, parameters: Parameters):
        parse_settings(parameters.values)  # what is wrong is said before anything is copied
        self.parameters, self.work, self.train_url = parameters, parameters.work, parameters.train_url
        self.config = self.work / "config.yaml"
        self.storage = storage_for(self.train_url)
        self.selection, self.snapshots = Selection(self.work, say), Snapshots(self.storage, self.train_url, say)
        self.work_id: str | None = None  # known once the work folder holds what there is to go on from
        self._due = time.monotonic() + 60 * parameters.copy_minutes
        self._published: dict[str, tuple[int, int]] = {}
        self._newest = 0

    def run(self) -> int:
        """Returns the exit code.

        Raises:
            UserError: for everything that the user can put right.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        with (self.work / "openi.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.work}: another job works in this folder; end it, or give another --work_dir") from None
            self.processes = ProcessGroup(_environment(), (lock.fileno(),))
            self.processes.listen()
            beat = min(LONGEST_BEAT, 15 * self.parameters.copy_minutes)
            with Ownership(self.storage, self.train_url, beat, say) as self.ownership:
                settings = self._write_config()
                if any(
                    (self.work / ".snakemake" / "locks").glob("*")
                ):  # left by a killed one: this job holds the folder's lock
                    subprocess.run([*self._snakemake(), "--unlock"], check=True, env=self.processes.environment)
                code = self._continue(str(settings.data.layout.dataset))
                code = code or self.processes.run([*self._snakemake(), "all"], self._copy_when_due)
                if self.work_id:
                    self.copy()
        if self.processes.stopped:
            say(
                f"stopped by {self.processes.stopped}; a job with the same train_url goes on from here (exit code {EXIT_INTERRUPTED})"
            )
            return EXIT_INTERRUPTED
        return code

    def copy(self) -> None:
        """Bring out the state as it is now.

        Raises:
            UserError: if the storage refuses, if another job has taken the train_url (the workflow is stopped then), or if the
                workflow kept writing.
        """
        if self.ownership.lost():
            self.processes.stop("another job with the same train_url")
            raise UserError(f"{self.train_url}: another job has taken this train_url over; nothing more is written there")
        staging = self.work / ".openi-staging"
        try:
            selected = _repeated(lambda: self.selection.gather(staging))
            try:
                self.selection.check(selected)
                snapshot = self.snapshots.commit(selected, self.work_id)
            finally:
                for item in selected:
                    self._publish(item)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        if snapshot.number != self._newest:
            say(f"snapshot {snapshot.number} is at train_url: {len(snapshot.entries)} files, {size_text(snapshot.bytes)}")
        self._newest = snapshot.number

    def _copy_when_due(self) -> None:
        """What goes wrong is said and tried again the next time, training goes on."""
        if time.monotonic() < self._due:
            return
        try:
            self.copy()
        except (UserError, OSError) as error:
            say(f"not copied to train_url this time: {error}")
        self._due = time.monotonic() + 60 * self.parameters.copy_minutes

    def _publish(self, item: Selected) -> None:
        """For people: the same names as in the work folder, without states and Snakemake's records."""
        status = item.file.stat()
        version = (status.st_mtime_ns, status.st_size)
        if item.path.startswith(f"{RESULTS}/") and not item.file.match(PATTERN) and self._published.get(item.path) != version:
            self.storage.put(item.file, join(self.train_url, item.path))
            self._published[item.path] = version

    def _write_config(self) -> Settings:
        """Bring the inputs in and write the configuration that names them. Returns it, checked."""
        given, values = self.parameters, self.parameters.values
        if given.data:
            kept = {key: value for key, value in values.get("data", {}).items() if key not in INPUTS}
            values["data"] = kept | bring_data(given.data, self.work, say)
        elif values.get("data", {}).get("source") != "digits":
            raise UserError(
                "data_url: missing; give --data_url or the environment variable data_url: the archive of images is there"
            )
        places = given.models or (given.data if given.pretrained else [])
        if pretrained := bring_checkpoint(given.pretrained, places, self.work, say):
            values["pretrained"] = pretrained
        elif values.get("pretrained"):
            raise UserError(
                f"pretrained: this configuration starts from {values['pretrained']}; give --pretrained, a checkpoint's name or URL"
            )
        self.config.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
        return parse_settings(values)

    def _continue(self, dataset: str) -> int:
        """Put what an earlier job left at train_url into a fresh work folder. Returns Snakemake's exit code.

        The converted images are made first. That leaves a manifest with the content that it had when the results were made, and
        results that are older than it: Snakemake compares the manifest's content and trains nothing again, unless the images
        really differ.
        """
        marker, snapshots = self.work / MARKER, self.snapshots.all()
        found = read_marker(marker, self.train_url, snapshots)
        if found["began_with"] is None:
            say(f"train_url holds a state to continue ({size_text(snapshots[0].bytes)}); making the dataset first")
            if code := self.processes.run([*self._snakemake(), dataset], lambda: None):
                return code
            shutil.rmtree(self.work / RESULTS, ignore_errors=True)  # by-products of making the dataset: configuration files
            found["began_with"] = self.snapshots.restore(snapshots, self.work).number
            _write_marker(marker, found)
            say(f"continuing from snapshot {found['began_with']}")
        self.work_id = found["work_id"]
        return 0

    def _snakemake(self) -> list[str]:
        return [
            sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(self.work),
            "--workflow-profile", str(ROOT / "profiles" / "default"), "--configfile", str(self.config), "--cores", "all",
            "--keep-going",  # nobody watches: a picture that fails must not end weeks of training
        ]  # fmt: skip


def _environment() -> dict[str, str]:
    """Of Snakemake. Raises UserError where the workflow cannot run."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    if importlib.util.find_spec("snakemake") is None or shutil.which("cswin", path=path) is None:
        raise UserError(
            f"the workflow is not installed for {sys.executable}: pip install -c requirements.txt -e '.[workflow]' in {ROOT}"
        )
    if not (ROOT / "Snakefile").is_file():
        raise UserError(f"{ROOT}: holds no Snakefile; start from a copy of the repository, installed with pip install -e")
    return {**os.environ, "PATH": path, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


def _repeated(gather: Callable[[], list[Selected]]) -> list[Selected]:
    for _ in range(TRIES - 1):
        try:
            return gather()
        except Changing:
            time.sleep(1)
    return gather()


def read_marker(marker: Path, train_url: str, snapshots: list[Snapshot]) -> dict:
    """What a work folder is: `began_with` is the number of the snapshot that was put into it, 0 for none, null as long as one is
    still to be put into it.

    Raises:
        UserError: if the folder belongs to another job, or what it holds is no longer the newest.
    """
    if not marker.is_file():
        if (marker.parent / RESULTS).exists():
            raise UserError(
                f"{marker.parent / RESULTS}: holds results that no job has made; move them, or give another --work_dir"
            )
        found = {"train_url": train_url, "work_id": os.urandom(8).hex(), "began_with": None if snapshots else 0}
        _write_marker(marker, found)
        return found
    found = json.loads(marker.read_text(encoding="utf-8"))
    if found["began_with"] is None and not snapshots:  # somebody has emptied train_url
        found["began_with"] = 0
    newest = not snapshots or snapshots[0].work_id == found["work_id"] or snapshots[0].number == found["began_with"]
    if found["train_url"] != train_url or not (found["began_with"] is None or newest):
        raise UserError(
            f"{marker.parent}: holds the work of another job ({found['train_url']}), or one that was continued elsewhere; remove "
            "the folder, or give another --work_dir"
        )
    return found


def _write_marker(marker: Path, found: dict) -> None:
    with atomic_path(marker) as temporary:
        temporary.write_text(json.dumps(found), encoding="utf-8")
