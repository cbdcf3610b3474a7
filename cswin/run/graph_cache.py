"""MindSpore's cache of compiled graphs, made safe to use.

MindSpore numbers the cached graphs in the order of their compilation and compares only Python files. With another batch size it
loads a wrong graph (observed: the first step fails). So each computation has its own folder, named by a digest of everything
that affects its graphs. The trainer compiles in a fixed order. A folder whose last user failed or was killed is deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cswin
from cswin.config.runtime import Runtime

FOLDER, IN_USE = "graphs", "in_use"
SHAPES = ("device_target", "devices", "batch_size", "accumulation", "eval_batch_size", "jit_backend", "jit_level")


def graphs_key(identity: dict[str, Any], runtime: Runtime) -> str:
    """A digest of the stage's identity, the keys of runtime that affect a graph, and the package's code."""
    digest = hashlib.sha256(json.dumps([identity, {name: getattr(runtime, name) for name in SHAPES}], sort_keys=True).encode())
    package = Path(cswin.__file__).parent
    for file in sorted(package.rglob("*.py")):
        digest.update(str(file.relative_to(package)).encode() + file.read_bytes())
    return digest.hexdigest()[:24]


@contextlib.contextmanager
def graph_cache(folder: Path, key: str, owner: bool) -> Iterator[None]:
    """Inside the context MindSpore keeps its compiled graphs in `folder`/graphs/`key`.

    Args:
        folder: the stage's folder.
        key: see `graphs_key`.
        owner: whether this process deletes old and unreliable graphs; true on the first rank only, before the others compile.
    """
    graphs = Path(folder).absolute() / FOLDER / key
    if owner:
        for other in graphs.parent.glob("*"):
            if other != graphs or (other / IN_USE).exists():
                shutil.rmtree(other)
        graphs.mkdir(parents=True, exist_ok=True)
        (graphs / IN_USE).touch()
    variables = {"MS_COMPILER_CACHE_ENABLE": "1", "MS_COMPILER_CACHE_PATH": str(graphs)}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
    if owner:  # not after an error
        (graphs / IN_USE).unlink()
