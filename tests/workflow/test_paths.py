"""Blanks, quotes and what else a shell gives a meaning to, in every path of a configuration and in the project's own folder."""

import re
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Workspace, shorten
from image_trees import small_files, write_tar, write_tree
from plans import Snakemake

from cswin.config.resolve import parse_settings
from cswin.data.sources.registry import SOURCES
from cswin.data.store.dataset import Dataset
from cswin.errors import UserError

ODD = 'it\'s (1) & "one"; $HOME `touch executed` | ü #%,=*?[a]!~\\n'
SHELL = r'    shell:\n((?: *".*"\n)+)'


def test_every_value_in_every_shell_command_is_quoted():
    """`:q` is Snakemake's quoting; a number of threads needs none."""
    rules = commands = 0
    for file in [ROOT / "Snakefile", *ROOT.glob("rules/**/*.smk")]:
        text = file.read_text()
        found = re.findall(SHELL, text)
        rules += len(re.findall(r"^ *shell:", text, re.MULTILINE))
        commands += len(found)
        for command in found:
            values = re.findall(r"{([^{}]+)}", command)
            assert [value for value in values if value != "threads" and not value.endswith(":q")] == [], file
    assert rules == commands > 15


@pytest.fixture(scope="module")
def snakemake(tmp_path_factory):
    run = Snakemake(tmp_path_factory.mktemp("snakemake"))
    yield run
    run.close()


def odd_workspace(folder: Path, data: dict, **values) -> Workspace:
    """The workflow in a folder with such a name, with such names for what it reads and makes."""
    workspace = Workspace.create(folder / ODD)
    workspace.edit("config/config.yaml", shorten)
    data = {"directory": f"all {ODD}", **data}
    workspace.edit("config/config.yaml", lambda v: (v["data"].update(data), v.update(values)))
    return workspace


@pytest.mark.slow
@pytest.mark.parametrize("source", ["archive", "ilsvrc2012", "folder"])
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
