"""Compiled graphs are found again by the same computation alone, and compute the same bits."""

import numpy as np
import pytest
from ranks import SmallStage, small_dataset

from cswin.config.runtime import Runtime
from cswin.run.graph_cache import graph_cache, graphs_key
from cswin.run.states import StateFolder


def cached(folder) -> set[str]:
    return {path.name for path in (folder / "graphs").iterdir()}


def test_what_shapes_a_graph_changes_the_key():
    identity, runtime = {"config": {"seed": 1}}, Runtime()
    key = graphs_key(identity, runtime)
    assert key == graphs_key({"config": {"seed": 1}}, runtime.model_copy(update={"workers": 3, "log_every": 7, "nodes": 2}))
    others = [graphs_key({"config": {"seed": 2}}, runtime)]
    for change in ({"batch_size": 64}, {"accumulation": 2}, {"devices": 4}, {"eval_batch_size": 9}, {"device_target": "CPU"}):
        others.append(graphs_key(identity, runtime.model_copy(update=change)))
    assert len({key, *others}) == 7


def test_a_folder_lives_until_its_user_ends_badly_or_another_comes(tmp_path):
    graphs = tmp_path / "graphs/a"
    with graph_cache(tmp_path, "a", owner=True):
        (graphs / "kept").touch()
    with graph_cache(tmp_path, "a", owner=True):
        assert (graphs / "kept").exists()
        with graph_cache(tmp_path, "a", owner=False):  # another rank clears nothing
            assert (graphs / "kept").exists()
    with pytest.raises(RuntimeError), graph_cache(tmp_path, "a", owner=True):
        raise RuntimeError
    with graph_cache(tmp_path, "a", owner=True):
        assert not (graphs / "kept").exists()
    with graph_cache(tmp_path, "b", owner=True):
        assert cached(tmp_path) == {"b"}


@pytest.mark.slow
def test_cached_graphs_compute_the_same_bits(tmp_path):
    dataset = small_dataset(tmp_path / "data")
    states, files = [], []
    for name in ("compiled", "found"):
        stage = SmallStage(tmp_path / name, dataset, epochs=1, graph_cache=True)
        if name == "found":
            stage.output.mkdir()
            (tmp_path / "compiled/stage/graphs").rename(stage.output / "graphs")
        stage.train()
        states.append(StateFolder(stage.output / "state", 2, print).load().arrays)
        files.append({path.name: path.stat().st_mtime_ns for path in stage.output.glob("graphs/*/rank_0/graph_cache/*.mindir")})
    assert files[0] == files[1] and len(files[0]) == 2  # training step and evaluation, written once
    for name, value in states[0].items():
        assert np.array_equal(states[1][name], value), name
