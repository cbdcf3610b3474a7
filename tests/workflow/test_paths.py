"""Blanks, quotes and what else a shell gives a meaning to, in every path of a configuration and in the project's own folder."""

import os
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Workspace, shorten
from dry_runs import Snakemake
from image_trees import small_files, write_tar, write_tree

from cswin.config.resolve import parse_settings
from cswin.data.sources.registry import SOURCES
from cswin.data.store.dataset import Dataset
from cswin.errors import UserError
from cswin.workflow.resources import options, require_submittable

ODD = 'it\'s (1) & "one"; $HOME `touch executed` | ü #%,=*?[a]!~\\n'
SHELL = r'    shell:\n((?: *".*"\n)+)'


def test_every_value_in_every_shell_command_is_quoted():
    """`:q` is Snakemake's quoting; a number of threads needs none, nor does what is quoted already."""
    quoted = {
        "threads",
        "params.paths",
        "params.promised",
        "params.cleanup",
        "params.previous",
        "params.launcher",
        "params.limit",
    }
    rules = commands = 0
    for file in [ROOT / "Snakefile", *ROOT.glob("rules/**/*.smk")]:
        text = file.read_text()
        found = re.findall(SHELL, text)
        rules += len(re.findall(r"^ *shell:", text, re.MULTILINE))
        commands += len(found)
        for command in found:
            values = re.findall(r"{([^{}]+)}", command)
            assert [value for value in values if value not in quoted and not value.endswith(":q")] == [], file
    assert rules == commands > 15


def test_options_are_quoted():
    words = options(report="a b/it's", seed=0, expect_train=None, on_bad_image="$HOME")
    assert shlex.split(words) == ["--report", "a b/it's", "--seed", "0", "--on-bad-image", "$HOME"]


@pytest.fixture(scope="module")
def snakemake(tmp_path_factory):
    run = Snakemake(tmp_path_factory.mktemp("snakemake"))
    yield run
    run.close()


def odd_workspace(folder: Path, data: dict, odd: str = ODD, **values) -> Workspace:
    """The workflow in a folder with such a name, with such names for what it reads and makes."""
    workspace = Workspace.create(folder / odd)
    workspace.edit("config/config.yaml", shorten)
    data = {"directory": f"all {odd}", **data}
    workspace.edit("config/config.yaml", lambda v: (v["data"].update(data), v.update(values)))
    return workspace


@pytest.mark.slow
@pytest.mark.parametrize("source", ["archive", "ilsvrc2012", "folder", "kaggle", "auto"])
def test_whole_workflow_with_odd_names(snakemake, tmp_path, source):
    """With a stub in the place of `cswin`, which writes its files where the command line says."""
    given = tmp_path / f"given {ODD}"
    write_tree(given, {"images/train/one/1.png": b"1", "images/val/one/1.png": b"2"})
    data = {"source": source}
    for key in SOURCES[source].inputs:
        data[key] = str(given / f"{key} {ODD}.tar")
        Path(data[key]).write_text(key)
    if source == "folder":
        data["folder"] = str(given / "images")
    if source == "auto":  # used in place
        data["path"] = str(given / "images")
    (given / f"weights {ODD}").write_text("weights")
    workspace = odd_workspace(tmp_path, data, pretrained=str(given / f"weights {ODD}"))
    code, said = snakemake(workspace.path, "--cores", "4")
    assert code == 0, said[-3000:]
    assert (workspace.path / f"all {ODD}/digits/dataset.json").is_file()
    assert (workspace.path / "results/final_acc.csv").is_file()
    assert "Nothing to be done" in snakemake(workspace.path, "-n")[1]
    assert not list(tmp_path.rglob("executed"))


@pytest.mark.slow
def test_data_with_odd_names(tmp_path):
    """The real commands, from archive and folder to a dataset whose images are read back."""
    files = small_files(4, 2)
    archive = write_tar(tmp_path / f"{ODD}.tar.gz", files)
    folder = write_tree(tmp_path / f"images {ODD}", files)
    counts = {"classes": 3, "expect_train": 12, "expect_val": 6}
    workspace = odd_workspace(tmp_path, {"source": "archive", "archive": str(archive), "name": "a", **counts})
    hashes = []
    for name, data in (("a", {}), ("b", {"source": "folder", "archive": None, "folder": str(folder), "name": "b"})):
        workspace.edit("config/config.yaml", lambda v, data=data: v["data"].update(data))
        dataset = workspace.path / f"all {ODD}" / name / "dataset.json"
        workspace.snakemake(str(dataset.relative_to(workspace.path)), "--cores", "2")
        hashes.append(Dataset.load(dataset).manifest_hash)
    assert hashes[0] == hashes[1]
    assert not list(tmp_path.rglob("executed"))


@pytest.mark.parametrize(("path", "found"), [("a/{x}", "{"), ("a\nb", r"\n"), ("images/<run>/b", "<run>")])
def test_what_snakemake_cannot_name_is_refused(path, found):
    values = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    values["data"]["directory"] = path
    with pytest.raises(UserError) as refused:
        parse_settings(values)
    assert f"data.directory: {path!r} is refused" in str(refused.value)
    assert f"'{found}' in a path has a meaning for Snakemake; rename" in str(refused.value)


SBATCH = """#!/bin/bash
# runs the job at once; its number is its exit code
for word; do :; done
bash "$word" >> job.log 2>&1
echo $?
"""
SQUEUE = """#!/bin/bash
for word; do case $word in --jobs=0) echo COMPLETED ;; --jobs=*) echo FAILED ;; esac; done
"""


@pytest.mark.slow
def test_jobs_of_a_cluster_find_odd_names(snakemake, tmp_path):
    """Job scripts, with a stand-in for Slurm that runs each job at once."""
    programs = tmp_path / "bin"
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE), ("sinfo", "#!/bin/sh\nexit 1\n")):
        write_tree(programs, {name: text.encode()})
        (programs / name).chmod(0o755)
    odd = "it's (1) & one; | ü #%,=*?[a]!~"
    (tmp_path / f"given {odd}").write_text("an archive")
    workspace = odd_workspace(tmp_path, {"source": "archive", "archive": str(tmp_path / f"given {odd}")}, odd)
    target = f"all {odd}/digits/extracted.json"
    path = f"{programs}:{snakemake.output.parent / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    options = ("--workflow-profile", "profiles/generic", "--retries", "0", "--latency-wait", "2")
    code, said = snakemake(workspace.path, *options, target, PATH=path)
    jobs = workspace.path / "job.log"
    assert code == 0, said[-3000:] + (jobs.read_text() if jobs.exists() else "")
    assert (workspace.path / target).is_file()


@pytest.mark.parametrize("character", ['"', "$", "`", "\\"])
def test_what_jobs_of_a_cluster_cannot_find_is_refused(character):
    """The executors put paths between double quotes, or write them as Python does."""
    with pytest.raises(UserError, match=r"data.archive: a.b: jobs of a cluster cannot find a path with .* rename or move it"):
        require_submittable({"the project's folder": "/it's (1)", "data.archive": f"a{character}b"})


@pytest.mark.slow
def test_paths_are_refused_with_a_profile_for_a_cluster(workspace):
    workspace.edit("config/config.yaml", lambda v: v["data"].update(directory="a $HOME"))
    refused = workspace.snakemake("-n", "--workflow-profile", "profiles/generic", check=False)
    assert refused.returncode != 0 and "data.directory: a $HOME: jobs of a cluster" in refused.stdout
    assert workspace.planned("results/digits/config/stage1.yaml")
