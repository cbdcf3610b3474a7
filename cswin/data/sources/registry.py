"""The sources by their names in the configuration (data.source)."""

from __future__ import annotations

from cswin.data.sources.archive import Archive
from cswin.data.sources.digits import Digits
from cswin.data.sources.folder import Folder
from cswin.data.sources.ilsvrc import Ilsvrc2012
from cswin.data.sources.source import Source

SOURCES: dict[str, type[Source]] = {source.kind: source for source in (Digits, Archive, Ilsvrc2012, Folder)}
INPUTS = tuple(key for source in SOURCES.values() for key in source.inputs)
