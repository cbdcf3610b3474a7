"""MindSpore's cache of compiled graphs, made safe to use: the stages of a run, its resumptions and its evaluations compile once.

MindSpore numbers the cached graphs in the order of their compilation and compares nothing but source files: with another batch
size it loads a wrong graph (seen: it fails at the first step). So graphs are kept under a digest of all that shapes them, and a
process compiles in a fixed order, in a copy of its own. This copy becomes the kept one when all graphs are compiled, by renaming, so the
remains of a killed process are never read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cswin
from cswin.provenance import versions

FILES, KEPT = "files.json", 50  # KEPT: graphs of so many computations, the last ones used


@contextlib.contextmanager
def graph_cache(shaped_by: Any, wanted: bool = True) -> Iterator[Callable[[], None]]:
    """MindSpore takes its compiled graphs from the cache while this lasts; once in a process.

    Args:
        shaped_by: all that shapes the graphs, except for sources and versions, as plain values.
        wanted: whether there is a cache at all.

    Yields:
        `keep`, to be called when all graphs are compiled; more calls do nothing.
    """
    if not wanted:
        yield lambda: None
        return
    from mindspore.common import api

    streams, path, program = (sys.stderr, sys.__stderr__), list(sys.path), api.entry_script_path

    def restore() -> None:  # MindSpore starts a Python of its own for the cache, which replaces these
        sys.stderr, sys.__stderr__ = streams
        sys.path[:] = path

    with tempfile.TemporaryDirectory(prefix="cswin-graphs-", ignore_cleanup_errors=True) as folder:
        cache, todo = {"MS_COMPILER_CACHE_ENABLE": "1", "MS_COMPILER_CACHE_PATH": folder}, []

        def keep() -> None:
            restore()
            while todo:
                with contextlib.suppress(OSError):  # it cannot be written: the next process compiles again
                    _keep(Path(folder), todo.pop())

        # MindSpore compares the sources of the program that runs. `python -c` and a notebook have none, which it does not survive;
        # _digest knows all sources, so it gets one file, always the same.
        api.entry_script_path = cswin.__file__
        try:
            with _environment(**cache):
                number = _first_number(Path(folder))
            kept = _root() / "graphs" / _digest([shaped_by, number])
            found = _take(kept, Path(folder)) if number else None
            if found is False:
                todo.append(kept)
            restore()
            with _environment(**({} if found is None else cache)):
                yield keep
        finally:
            restore()
            api.entry_script_path = program


def _first_number(folder: Path) -> str | None:
    """The name that MindSpore gives to the next graph; None if it does not use this folder: it reads the name once in a process."""
    import mindspore as ms

    @ms.jit
    def first(x):
        return x + 1.0

    first(ms.Tensor(0.0, ms.float32))
    return next((file.name for file in folder.rglob("*.mindir")), None)


def _root() -> Path:
    """CSWIN_CACHE, or a folder where caches of this user lie."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("CSWIN_CACHE") or f"{home}/cswin").expanduser()


def _digest(shaped_by: Any) -> str:
    package = Path(cswin.__file__).parent
    digest = hashlib.sha256(json.dumps([shaped_by, versions(), str(package)], sort_keys=True).encode())
    for file in sorted(package.rglob("*.py")):
        digest.update(str(file.relative_to(package)).encode() + file.read_bytes())
    return digest.hexdigest()[:24]


def _take(kept: Path, folder: Path) -> bool | None:
    """Copy the kept graphs.

    Returns:
        False where there are none, or where they are damaged: they are removed. None where there is no room for the copy.
    """
    if not kept.is_dir():
        return False
    try:
        sums = json.loads((kept / FILES).read_text())
        found = {name: (kept / name).read_bytes() for name in sums}
        whole = bool(found) and {name: _sum(content) for name, content in found.items()} == sums
    except (OSError, ValueError):
        whole = False
    if not whole:
        shutil.rmtree(kept, ignore_errors=True)
        return False
    try:
        _copy(found, folder)
    except OSError:
        return None
    with contextlib.suppress(OSError):  # another user's
        os.utime(kept)
    return True


def _copy(files: dict[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def _keep(folder: Path, kept: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    sums = {str(path.relative_to(folder)): _sum(path.read_bytes()) for path in files}
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=kept.parent) as new:
        shutil.copytree(folder, Path(new) / "graphs")
        (Path(new) / "graphs" / FILES).write_text(json.dumps(sums))
        (Path(new) / "graphs").rename(kept)  # fails where another process was faster
    for old in sorted(kept.parent.glob("[!.]*"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
