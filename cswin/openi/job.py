"""A job on the platform, from its parameters to its exit code. Read it from top to bottom.

Exit codes: 0 everything is complete; 75 the job was asked to stop, a job with the same train_url continues; 2 an error that the user
can fix; other codes are Snakemake's.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import yaml

from cswin.config.resolve import parse_settings
from cswin.convert.published import PREFIX
from cswin.data.sources.registry import INPUTS
from cswin.distributed.group import ProcessGroup
from cswin.distributed.stopping import EXIT_INTERRUPTED, EXIT_USER
from cswin.errors import UserError
from cswin.layout import RESULTS
from cswin.openi.inputs import bring_checkpoint, bring_data
from cswin.openi.mirror import Mirror
from cswin.openi.ownership import ownership
from cswin.openi.parameters import ROOT, Parameters, parse_parameters
from cswin.openi.storage import storage_for

LONGEST_BEAT = 10.0  # seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a job; entry point of the command line."""
    os.environ.setdefault("GLOG_v", "3")
    try:
        return Job(parse_parameters(sys.argv[1:] if arguments is None else arguments)).run()
    except UserError as error:
        say(str(error))
        return EXIT_USER


def say(line: str) -> None:
    """Write a line to the job's log."""
    print(f"cswin.openi: {line}", file=sys.stderr, flush=True)


class Job:
    """Copies the inputs, runs the workflow, copies the results."""

    def __init__(self, parameters: Parameters):
        self.parameters, self.work, self.train_url = parameters, parameters.work, parameters.train_url
        self.config, self.storage = self.work / "config.yaml", storage_for(self.train_url)
        self.mirror = Mirror(self.storage, self.train_url, self.work, self._check_owner)
        self._due = time.monotonic() + 60 * parameters.copy_minutes

    def run(self) -> int:
        """Run the job. Returns the exit code.

        Raises:
            UserError: for errors that the user can fix.
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
            with ownership(self.storage, self.train_url, beat, say) as self.lost:
                self._begin()
                code = self.processes.run(self._snakemake(), self._copy_when_due)
                self.mirror.copy()
        if why := self.processes.stopped:
            say(f"stopped by {why}; a job with the same train_url continues from here (exit code {EXIT_INTERRUPTED})")
            return EXIT_INTERRUPTED
        return code

    def _check_owner(self) -> None:
        if self.lost():
            self.processes.stop("another job with the same train_url")
            raise UserError(
                f"{self.train_url}: another job has taken over this train_url (see owner.json); this job writes nothing more there"
            )

    def _copy_when_due(self) -> None:
        """An error is reported, and the next call tries again; training continues."""
        if time.monotonic() < self._due:
            return
        try:
            self.mirror.copy()
        except (UserError, OSError) as error:
            say(f"not copied to train_url this time: {error}")
        self._due = time.monotonic() + 60 * self.parameters.copy_minutes

    def _begin(self) -> None:
        """Copy the inputs, write the configuration that names them, and restore the state of an earlier job."""
        given, values = self.parameters, self.parameters.values
        if given.data:
            kept = {key: value for key, value in values.get("data", {}).items() if key not in INPUTS}
            values["data"] = kept | bring_data(given.data, self.work, say)
        elif values.get("data", {}).get("source") != "digits":
            raise UserError(
                "data_url: missing; give --data_url or the environment variable data_url: the location of the archive of images"
            )
        places = given.models or (given.data if given.pretrained else [])
        if pretrained := bring_checkpoint(given.pretrained, places, self.work, say):
            values["pretrained"] = pretrained
        elif not (values.get("pretrained") or PREFIX).startswith(PREFIX):
            raise UserError(
                f"pretrained: this configuration starts from {values['pretrained']}; give --pretrained, a checkpoint's name or URL"
            )
        parse_settings(values)
        self.config.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
        results = self.work / RESULTS
        if results.exists():
            aside = results.with_name(f"{RESULTS}.{datetime.now():%Y%m%d-%H%M%S-%f}")
            results.rename(aside)
            say(f"a job continues from train_url only: the old content of {results} is now in {aside} (you may delete it)")
        if files := self.mirror.restore():
            say(f"continuing from {files} files at train_url")

    def _snakemake(self) -> list[str]:
        return [
            sys.executable, "-m", "snakemake", "all", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(self.work),
            "--workflow-profile", str(ROOT / "profiles" / "default"), "--configfile", str(self.config), "--cores", "all",
            "--nolock",  # a killed job leaves Snakemake's lock; openi.lock ends with its processes
            "--keep-going",  # a picture that fails must not end weeks of training
        ]  # fmt: skip


def _environment() -> dict[str, str]:
    """The environment of Snakemake. Raises UserError if the workflow is not installed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    if importlib.util.find_spec("snakemake") is None or shutil.which("cswin", path=path) is None:
        raise UserError(
            f"the workflow is not installed for {sys.executable}: pip install -c requirements.txt -e '.[workflow]' in {ROOT}"
        )
    if not (ROOT / "Snakefile").is_file():
        raise UserError(f"{ROOT}: holds no Snakefile; start from a copy of the repository, installed with pip install -e")
    return {**os.environ, "PATH": path, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
