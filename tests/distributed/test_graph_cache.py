"""Compiled graphs are found again by the same computation alone, and compute the same bits."""

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import yaml
from ranks import SmallStage, small_dataset

from cswin.config.runtime import Runtime
from cswin.distributed.graph_cache import KEPT, graph_cache
from cswin.run.states import StateFolder


@pytest.fixture
def kept(tmp_path, monkeypatch) -> Path:
    """The folder of kept graphs."""
    monkeypatch.setenv("CSWIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("cswin.distributed.graph_cache._first_number", lambda folder: "graph 0")
    return tmp_path / "cache/graphs"


def compile_graph(shaped_by, content: str, whole: bool = True) -> str | None:
    """Use the cache as MindSpore does; what was found."""
    with graph_cache(shaped_by) as keep:
        file = Path(os.environ["MS_COMPILER_CACHE_PATH"], "rank_0/graph")
        found = file.read_text() if file.exists() else None
        file.parent.mkdir(exist_ok=True)
        file.write_text(found or content)
        if whole:
            keep()
            keep()
    assert not file.exists()
    return found


def test_only_the_same_computation_finds_a_graph(kept):
    assert compile_graph([1, {"batch": 32}], "first") is None
    assert compile_graph([1, {"batch": 64}], "second") is None
    assert compile_graph([1, {"batch": 32}], "third") == "first"
    assert len(list(kept.iterdir())) == 2


def test_other_sources_find_nothing(kept, tmp_path, monkeypatch):
    package = tmp_path / "cswin"
    package.mkdir()
    monkeypatch.setattr("cswin.__file__", str(package / "__init__.py"))
    for text in ("1", "2"):
        (package / "step.py").write_text(text)
        assert compile_graph("a", text) is None


def test_what_was_not_compiled_to_the_end_is_not_kept(kept):
    assert compile_graph("a", "cut", whole=False) is None
    with pytest.raises(RuntimeError), graph_cache("a"):
        raise RuntimeError
    assert compile_graph("a", "whole") is None
    assert compile_graph("a", "") == "whole"


@pytest.mark.parametrize("damage", [b"", b"othe", None])
def test_a_damaged_graph_is_compiled_again(kept, damage):
    compile_graph("a", "first")
    [file] = kept.glob("*/rank_0/graph")
    file.unlink() if damage is None else file.write_bytes(damage)
    assert compile_graph("a", "second") is None
    assert compile_graph("a", "") == "second"


@pytest.mark.parametrize("damage", ["", "[]", '{"gone": "0"}'])
def test_a_damaged_list_of_files_as_well(kept, damage):
    compile_graph("a", "first")
    [file] = kept.glob("*/files.json")
    file.write_text(damage)
    assert compile_graph("a", "second") is None
    assert compile_graph("a", "") == "second"


def test_of_two_at_once_one_is_kept(kept):
    with graph_cache("a") as keep:
        Path(os.environ["MS_COMPILER_CACHE_PATH"], "graph").write_text("slow")
        assert compile_graph("a", "fast") is None
        keep()
    assert compile_graph("a", "") == "fast"
    assert [path.name for path in kept.iterdir() if path.name.startswith(".")] == []


def test_old_graphs_go(kept):
    for number in range(KEPT + 3):
        compile_graph(number, str(number))
        for path in kept.iterdir():
            os.utime(path, (0, path.stat().st_mtime - 10))
    assert len(list(kept.iterdir())) == KEPT
    assert "MS_COMPILER_CACHE_PATH" not in os.environ
    assert compile_graph(KEPT + 2, "") == str(KEPT + 2) and compile_graph(0, "again") is None


BEFORE = {  # what a process does before, and how many graphs are kept before each of three such processes
    "nothing": ("", [0, 2, 2]),
    "another graph": ("other(ms.Tensor(1.0))", [0, 2, 2]),
    "another use": ("with graph_cache('b'): other(ms.Tensor(1.0))", [0, 0, 0]),
}


@pytest.mark.parametrize("before", BEFORE)
def test_the_cache_in_processes(tmp_path, before):
    """MindSpore counts on from other graphs, and uses the first folder for ever; stderr stays what it was."""
    code, found = BEFORE[before]
    script = tmp_path / "compile.py"
    script.write_text(f"""
import sys
import mindspore as ms
from cswin.distributed.graph_cache import graph_cache

@ms.jit
def other(x):
    return x * 3

@ms.jit
def wanted(x):
    return x * 2

{code}
streams, path = (sys.stderr, sys.__stderr__), list(sys.path)
with graph_cache("a") as keep:
    assert float(wanted(ms.Tensor(3.0))) == 6
    keep()
    assert streams == (sys.stderr, sys.__stderr__) and path == sys.path
""")
    for kept in found:
        environment = os.environ | {"CSWIN_CACHE": str(tmp_path / "cache"), "GLOG_v": "3"}
        assert len(list((tmp_path / "cache").rglob("*.mindir"))) == kept
        done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("how", [["-c"], ["-"], ["-m", "interactive"]])
def test_a_program_that_is_no_file(tmp_path, how):
    """MindSpore reads the sources of the program that runs: python -c, one from a pipe and a notebook have none."""
    (tmp_path / "double.py").write_text("import mindspore as ms\n@ms.jit\ndef double(x):\n    return x * 2\n")
    code = (
        "from double import double, ms\nfrom cswin.distributed.graph_cache import graph_cache\nwith graph_cache('a') as keep:\n"
    )
    code += "    print(double(ms.Tensor(3.0)))\n    keep()\n"
    (tmp_path / "interactive.py").write_text(f"import sys\nsys.argv = ['/no/such/launcher.py']\n{code}")
    environment = os.environ | {"CSWIN_CACHE": str(tmp_path / "cache"), "GLOG_v": "3"}
    command = [sys.executable, *how, *([code] if how == ["-c"] else [])]
    done = subprocess.run(command, input=code, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "6.0\n"), done.stderr
    assert len(list((tmp_path / "cache").rglob("*.mindir"))) == 2


def test_without_room_for_a_copy_the_graphs_are_compiled(kept, monkeypatch):
    compile_graph("a", "first")
    monkeypatch.setattr("cswin.distributed.graph_cache._copy", Mock(side_effect=OSError(28, "No space left on device")))
    with graph_cache("a") as keep:
        assert "MS_COMPILER_CACHE_PATH" not in os.environ
        keep()


def test_a_home_that_cannot_be_written_is_no_error(kept, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CSWIN_CACHE", str(tmp_path / "file"))
    assert compile_graph("a", "first") is None and compile_graph("a", "second") is None


def test_on_the_cpu_unless_the_user_says_otherwise():
    assert Runtime(device_target="CPU").caches_graphs and not Runtime(device_target="Ascend").caches_graphs
    assert Runtime(device_target="Ascend", graph_cache=True).caches_graphs
    assert not Runtime(device_target="CPU", graph_cache=False).caches_graphs
    with graph_cache("a", wanted=False) as keep:
        assert "MS_COMPILER_CACHE_PATH" not in os.environ
        keep()


@pytest.mark.slow
def test_another_stage_with_the_graphs_of_the_first_computes_the_same_bits(kept, tmp_path):
    """Other images, seed, rates and length: with its own graphs, and with those of the first stage."""
    SmallStage(tmp_path / "first", small_dataset(tmp_path / "data"), epochs=1).train()
    graphs = {path: path.read_bytes() for path in kept.rglob("*.mindir")}
    assert len(graphs) == 3, graphs.keys()  # that which counts, the training step and the evaluation
    data = small_dataset(tmp_path / "other", first=5000)
    arrays, histories = [], []
    for name, cache in (("found", True), ("compiled", False)):
        stage = SmallStage(tmp_path / name, data, epochs=2, graph_cache=cache)
        file = stage.folder / "stage.yaml"
        values = yaml.safe_load(file.read_text())
        values["seed"], values["schedule"]["base_lr"] = 7, 3e-4
        file.write_text(yaml.safe_dump(values))
        stage.train()
        arrays.append(StateFolder(stage.output / "state", 2, print).load().arrays)
        rows = [json.loads(line) for line in (stage.output / "history.jsonl").read_text().splitlines()]
        histories.append([{k: row[k] for k in ("loss", "lr", "grad_norm")} for row in rows if row["kind"] == "step"])
    assert {path: path.read_bytes() for path in kept.rglob("*.mindir")} == graphs
    assert histories[0] == histories[1]
    for name, value in arrays[1].items():
        assert np.array_equal(arrays[0][name], value), name
