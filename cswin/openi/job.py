"""A job on the platform, from its parameters to its exit code. Read from top to bottom.

Exit codes: 0 everything is made; 75 it was asked to stop, the same train_url goes on from there; 2 something that the user can put
right; else Snakemake's.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from cswin.atomic import atomic_path
from cswin.data.sources.registry import INPUTS
from cswin.errors import UserError
from cswin.openi.inputs import bring_checkpoint, bring_data
from cswin.openi.ownership import Ownership
from cswin.openi.parameters import ROOT, Parameters, check, parse_parameters
from cswin.openi.selection import RECORDS, RESULTS, Changing, Selected, Selection
from cswin.openi.snapshots import Snapshot, Snapshots
from cswin.openi.storage import join, storage_for
from cswin.openi.workflow import Workflow
from cswin.progress import size_text
from cswin.train.state import PATTERN
from cswin.train.stopping import EXIT_INTERRUPTED

MARKER = "openi.json"  # whose work a work folder is
LONGEST_BEAT = 10.0  # seconds
EVERYTHING = "all"
TRIES = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a job; the command line's entry."""
    os.environ.setdefault("GLOG_v", "3")
    try:
        return run(parse_parameters(sys.argv[1:] if arguments is None else arguments))
    except UserError as error:
        print(f"cswin.openi: {error}", file=sys.stderr, flush=True)
        return 2


def run(parameters: Parameters) -> int:
    """Bring in, run the workflow, bring out; returns the exit code.

    Raises:
        UserError: for everything that the user can put right.
    """
    check(parameters.values)
    work, config = parameters.work, parameters.work / "config.yaml"
    work.mkdir(parents=True, exist_ok=True)
    with (work / "openi.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{work}: another job works in this folder; end it, or give another --work_dir") from None
        storage = storage_for(parameters.train_url)
        workflow = Workflow(ROOT, work, config, (lock.fileno(),))
        workflow.listen()
        with Ownership(storage, parameters.train_url, min(LONGEST_BEAT, 15 * parameters.copy_minutes), say) as ownership:
            out = BringOut(storage, parameters, workflow, ownership)
            settings = _write_config(parameters, config)
            workflow.unlock()
            code = _continue(out, workflow, f"{settings.data.directory}/{settings.data.name}/dataset.json")
            code = code or workflow.run(EVERYTHING, out.at_interval)
            out.at_end()
    if workflow.stopped:
        say(f"stopped by {workflow.stopped}; a job with the same train_url goes on from here (exit code {EXIT_INTERRUPTED})")
        return EXIT_INTERRUPTED
    return code


def say(line: str) -> None:
    """A line in the job's log."""
    print(f"cswin.openi: {line}", file=sys.stderr, flush=True)


def _write_config(parameters: Parameters, file: Path):
    """Bring the inputs in and write the configuration that names them. Returns it, checked."""
    values = parameters.values
    if parameters.data:
        kept = {key: value for key, value in values.get("data", {}).items() if key not in INPUTS}
        values["data"] = kept | bring_data(parameters.data, parameters.work, say)
    elif values.get("data", {}).get("source") != "digits":
        raise UserError(
            "data_url: missing; give --data_url or the environment variable data_url: the archive of images is there"
        )
    places = parameters.models or (parameters.data if parameters.pretrained else [])
    pretrained = bring_checkpoint(parameters.pretrained, places, parameters.work, say)
    if pretrained:
        values["pretrained"] = pretrained
    elif values.get("pretrained"):
        raise UserError(
            f"pretrained: this configuration starts from {values['pretrained']}; give --pretrained, a checkpoint's name or URL"
        )
    settings = check(values)
    file.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return settings


def _continue(out: BringOut, workflow: Workflow, dataset: str) -> int:
    """Put what an earlier job left at train_url into a fresh work folder. Returns Snakemake's exit code.

    The converted images are made first. That leaves a manifest with the content that it had when the results were made, and results
    that are older than it: Snakemake compares the manifest's content and trains nothing again, unless the images really differ.
    """
    marker, snapshots = workflow.work / MARKER, out.snapshots.all()
    found = read_marker(marker, out.parameters.train_url, snapshots)
    out.work_id = found["work_id"]
    if found["began_with"] is None:
        say(f"train_url holds a state to continue ({size_text(snapshots[0].bytes)}); making the dataset first")
        if code := workflow.run(dataset, lambda: None):
            return code
        shutil.rmtree(workflow.work / RESULTS, ignore_errors=True)  # by-products of making the dataset: configuration files
        found["began_with"] = out.snapshots.restore(snapshots, workflow.work).number
        _write_marker(marker, found)
        say(f"continuing from snapshot {found['began_with']}")
    out.ready = True
    return 0


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
    pending = found["began_with"] is None
    newest = not snapshots or snapshots[0].work_id == found["work_id"] or snapshots[0].number == found["began_with"]
    if found["train_url"] != train_url or not (pending or newest):
        raise UserError(
            f"{marker.parent}: holds the work of another job ({found['train_url']}), or one that was continued elsewhere; remove "
            "the folder, or give another --work_dir"
        )
    return found


def _write_marker(marker: Path, found: dict) -> None:
    with atomic_path(marker) as temporary:
        temporary.write_text(json.dumps(found), encoding="utf-8")


class BringOut:
    """Copies to train_url: resume state under resume/, what people read under results/.

    Args:
        storage: of train_url.
        parameters: of the job.
        workflow: stopped if another job takes the train_url.
        ownership: tells so.

    Attributes:
        work_id: of the work folder.
        ready: whether the work folder holds what there is to go on from; nothing is brought out before.
    """

    def __init__(self, storage, parameters: Parameters, workflow: Workflow, ownership: Ownership):
        self.storage, self.parameters, self.workflow, self.ownership = storage, parameters, workflow, ownership
        self.selection, self.snapshots = Selection(parameters.work, say), Snapshots(storage, parameters.train_url, say)
        self.work_id, self.ready = "", False
        self._due = time.monotonic() + 60 * parameters.copy_minutes
        self._copied: dict[str, tuple[int, int]] = {}
        self._newest = 0

    def at_interval(self) -> None:
        """Copy if it is time; what goes wrong is said and tried again the next time, training goes on."""
        if time.monotonic() < self._due:
            return
        try:
            self.copy()
        except (UserError, Changing, OSError) as error:
            say(f"not copied to train_url this time: {error}")
        self._due = time.monotonic() + 60 * self.parameters.copy_minutes

    def at_end(self) -> None:
        """The last copy; must succeed."""
        if self.ready:
            self.copy()

    def copy(self) -> None:
        """Bring out the state as it is now.

        Raises:
            UserError: if the storage refuses, or another job has taken the train_url (the workflow is stopped then).
            Changing: if the workflow kept writing.
        """
        if self.ownership.lost():
            self.workflow.stop("another job with the same train_url")
            raise UserError(
                f"{self.parameters.train_url}: another job has taken this train_url over; nothing more is written there"
            )
        staging = self.parameters.work / ".openi-staging"
        try:
            selected = self._gather(staging)
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

    def _gather(self, staging: Path) -> list[Selected]:
        for attempt in range(TRIES):
            try:
                return self.selection.gather(staging)
            except Changing:
                if attempt + 1 == TRIES:
                    raise
                time.sleep(1)
        raise AssertionError("unreachable")

    def _publish(self, item: Selected) -> None:
        """For people: the same names as in the work folder, without states and records."""
        version = (item.modified_ns, item.file.stat().st_size)
        if item.path.startswith(RECORDS) or item.file.match(PATTERN) or self._copied.get(item.path) == version:
            return
        self.storage.put(item.file, join(self.parameters.train_url, item.path))
        self._copied[item.path] = version
