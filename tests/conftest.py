"""A workspace with a copy of the workflow, and a workspace with a finished short run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml
from recipes import CARRY

ROOT = Path(__file__).parents[1]
PARTS = ("Snakefile", "rules", "config", "profiles")


class Workspace:
    """A folder with the workflow's files, in which snakemake runs."""

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def create(cls, path: Path) -> Workspace:
        path.mkdir(parents=True, exist_ok=True)
        for part in PARTS:
            original = ROOT / part
            (shutil.copytree if original.is_dir() else shutil.copy2)(original, path / part)
        return cls(path)

    def copy(self, path: Path) -> Workspace:
        """An independent copy with the same dates."""
        shutil.copytree(self.path, path, symlinks=True)
        return Workspace(path)

    def snakemake(self, *arguments: str, timeout: float = 1200, check: bool = True) -> subprocess.CompletedProcess:
        """Run snakemake; stdout of the result contains stdout and stderr as text."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", *arguments],
            cwd=self.path, env=os.environ | {"PATH": path, "GLOG_v": "3"}, text=True, timeout=timeout,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stdout[-6000:]
        return done

    def planned(self, *arguments: str) -> dict[str, int]:
        """The rules that a dry run lists, with the number of jobs; empty if there is nothing to do."""
        output = self.snakemake("-n", *arguments).stdout
        if "Nothing to be done" in output:
            return {}
        table = output.split("Job stats:")[-1]
        jobs = dict(re.findall(r"^(\w+)\s+(\d+)$", table, re.MULTILINE))
        assert jobs, output
        return {rule: int(count) for rule, count in jobs.items() if rule not in ("total", "all", "final_acc")}

    def edit(self, file: str, change) -> None:
        """Rewrite a YAML file through a function on its values."""
        values = yaml.safe_load((self.path / file).read_text())
        change(values)
        (self.path / file).write_text(yaml.safe_dump(values, sort_keys=False))


def pytest_configure(config) -> None:
    """Compiled graphs are shared by the tests of one session, and not with the user's."""
    if not hasattr(config, "workerinput"):
        folder = tempfile.TemporaryDirectory(prefix="cswin-tests-")
        os.environ["CSWIN_CACHE"] = folder.name
        config.add_cleanup(folder.cleanup)


def pytest_collection_modifyitems(items) -> None:
    """Tests that need a finished run are slow: the run takes minutes. Files with slow tests come first, so that quick ones are left
    for the end, when a worker would have nothing else to do.
    """
    for item in items:
        if "finished_run" in item.fixturenames:
            item.add_marker("slow")
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def shorten(values: dict) -> None:
    """Shorten the digits' configuration to four epochs in three stages."""
    values["schedule"]["warmup_length"] = 1
    values["stages"] = {
        "stage1": {"start_epoch": 0, "epochs": 2},
        "stage2": {"start_epoch": 2, "epochs": 3, **CARRY, "schedule": {"cool_length": 1}},
        "stage3": {"start_epoch": 3, "epochs": 4, **CARRY, "schedule": {"cool_length": 1, "tail_length": 1}},
    }


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    """The workflow with nothing run yet."""
    return Workspace.create(tmp_path / "workspace")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Workspace:
    """The default configuration, shortened to four epochs in three stages, run to its end. Copy it before changing anything."""
    workspace = Workspace.create(tmp_path_factory.mktemp("finished") / "workspace")

    workspace.edit("config/config.yaml", shorten)
    workspace.snakemake("results/final_acc.csv", timeout=1800)
    return workspace
