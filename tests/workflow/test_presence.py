"""Two snakemakes in one folder: the second one is told who the first is; one that was killed keeps nobody away."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from cswin.errors import UserError
from cswin.workflow import presence
from cswin.workflow.presence import Presence

HOLDER = """
import sys, time
from pathlib import Path
from cswin.workflow.presence import Presence
one = Presence(Path(sys.argv[1]))
one.take()
print("taken", flush=True)
time.sleep(600)
"""


@pytest.fixture
def at_work(tmp_path):
    """A process that is at work in tmp_path/workspace."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path / "workspace"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "taken\n"
    yield process
    process.kill()
    process.wait()


def test_the_other_process_is_named(at_work, tmp_path, monkeypatch):
    monkeypatch.setattr(presence, "PAUSE", 0.001)
    mine = Presence(tmp_path / "workspace")
    with pytest.raises(UserError, match=rf"host {socket.gethostname()}, process {at_work.pid}, since 20.*two runs"):
        mine.take()
    assert mine.advice().endswith("do not use --unlock")


def test_after_a_kill_nothing_is_in_the_way(at_work, tmp_path):
    mine = Presence(tmp_path / "workspace")
    locks = tmp_path / "workspace/.snakemake/locks"
    locks.mkdir()
    (locks / "0.output.lock").write_text("out\n")
    at_work.send_signal(signal.SIGKILL)
    at_work.wait()
    assert mine.other() is None
    assert mine.advice() == "a snakemake that has ended has left its lock in this folder: `snakemake --unlock` removes it"
    (locks / "0.output.lock").unlink()
    assert mine.advice() is None
    mine.take()
    assert f"process {os.getpid()}" in Presence(tmp_path / "workspace").other()


def test_without_locks_on_the_file_system_nothing_is_refused(at_work, tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(presence.fcntl, "flock", unsupported)
    Presence(tmp_path / "workspace").take()


@pytest.mark.slow
def test_through_snakemake(workspace, at_work):
    """Jobs are refused, whatever the target, also after --unlock; what runs no job is not."""
    wanted = "results/digits/config/stage1.yaml"
    assert workspace.planned(wanted) == {"stage_config": 1}
    workspace.snakemake("--unlock")
    refused = workspace.snakemake(wanted, check=False)
    assert refused.returncode != 0 and not (workspace.path / wanted).exists()
    assert f"process {at_work.pid}" in refused.stdout and "Traceback" not in refused.stdout
    at_work.kill()
    at_work.wait()
    workspace.snakemake(wanted)
    assert (workspace.path / wanted).exists()
