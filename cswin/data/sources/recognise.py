"""Which source some files belong to, by their names: for `source: auto`, and to refuse another layout before all of it is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from cswin.data.sources.members import anchor, look
from cswin.data.sources.registry import SOURCES
from cswin.data.sources.source import Source, listed
from cswin.errors import UserError


def recognised(path: Path) -> type[Source] | None:
    """The layout at a path: of a folder, an archive, or the files that a pattern names; None: unknown, or nothing is there.

    Raises:
        UserError: if a file cannot be read.
    """
    place = Path(anchor(str(path)))
    if not place.exists():
        return None
    return _layout(look(place), place.is_dir(), list(SOURCES.values()))[0]


def _layout(names: Iterable[str], folder: bool, sources: list[type[Source]]) -> tuple[type[Source] | None, str]:
    """The first source with a name of its own, and that name. An archive is read no further than to that name."""
    if folder:
        names = list(names)
        pairs = ((source, name) for source in sources for name in names)
    else:
        pairs = ((source, name) for name in names for source in sources)
    for source, name in pairs:
        pattern = source.in_folder if folder else source.in_archive
        if pattern is not None and pattern.fullmatch(name):
            return source, name
    return None, ""


def open_source(kind: str, paths: Sequence[Path]) -> Source:
    """The source of this name; `auto`: of the layout that lies at the path.

    Raises:
        UserError: if the first files have the layout of another source, which the message names; for `auto`, if it is not known.
    """
    cls, path = SOURCES[kind], Path(anchor(str(paths[0])))
    sources = [cls, *SOURCES.values()]
    found, name = _layout(look(path), path.is_dir(), sources) if path.exists() else (None, "")
    if kind == "auto":
        if found is None:
            there = listed(list(look(path, 20))) if path.exists() else "nothing"
            raise UserError(
                f"{paths[0]}: the layout is not known (found: {there}); set data.source (docs/data.md lists the layouts)"
            )
        return found.at(paths[0])
    if found is not None and not issubclass(cls, found):
        keys = ", ".join(f"data.{key}" for key in found.inputs)
        raise UserError(
            f"{path}: {name!r}: this is {found.called}, not {cls.called}; set data.source: {found.kind}, with {keys}"
        )
    return cls(*paths)
